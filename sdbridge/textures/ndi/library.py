"""How libndi is found, started, and left where ndi-python would stop every Python thread.

Measured with ndi-python 6.3.2.6 when a source has died: destroying its receiver takes 0.5 to 16 s
with the interpreter's lock held, which would stop the output too. The same function called through
ctypes leaves the lock free (worst stall of another thread: 5 ms), so it is. Pointing the receiver
at the source's new address takes up to 12 s as well; a new receiver shows frames in 0.03 s.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import re
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: Earlier ones hold the interpreter's lock while a frame is sent (26 ms of every 33 at 30 fps).
OLDEST = (6, 3, 2, 6)

#: libndi is linked with these, and a bare Linux has them not: then ndi-python cannot even be imported.
_NEEDED_ON_LINUX = ("libavahi-common.so.3", "libavahi-client.so.3")

#: Names under which this process itself sends, so that "the first source" is never our own picture.
own_names: set[str] = set()


def available() -> tuple[bool, str]:
    """Whether NDI can run here, and why. Does not load NDI's own library."""
    if importlib.util.find_spec("NDIlib") is None:
        return False, 'ndi-python is not installed; pip install "sdbridge[ndi]" (no wheel for Intel Macs)'
    version = importlib.metadata.version("ndi-python")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:4])
    if numbers < OLDEST:
        wanted = ".".join(str(part) for part in OLDEST)
        return False, f"ndi-python {version} stalls other threads; pip install 'ndi-python>={wanted}'"
    missing = [name for name in _NEEDED_ON_LINUX if sys.platform == "linux" and not _can_be_loaded(name)]
    if missing:
        step = "apt install libavahi-client3 (Debian, Ubuntu), dnf install avahi-libs (Fedora)"
        return False, f"NDI needs {' and '.join(missing)}; {step}"
    return True, f"NDI runs by ndi-python {version}"


@cache
def _can_be_loaded(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@cache
def load() -> ModuleType:
    """ndi-python with its library started, once a process. Raises SDB-TEXTURE-UNAVAILABLE."""
    able, why = available()
    if not able:
        raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"NDI cannot be used: {why}")
    try:
        ndi = importlib.import_module("NDIlib")
    except (ImportError, OSError) as error:
        raise SdbridgeError(
            "SDB-TEXTURE-UNAVAILABLE", f"the NDI library cannot be loaded: {error}"
        ) from error
    if not ndi.initialize():
        raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", "the NDI library refuses to start on this processor")
    return ndi


def destroy_receiver(receiver: object) -> None:
    """Let a receiver go. Takes seconds if its source is dead, so it happens beside, and nobody waits."""

    def destroy() -> None:
        native = _native()
        if native is None:
            load().recv_destroy(receiver)
        else:
            native.NDIlib_recv_destroy(_pointer(receiver))

    # A daemon thread: the end of the process is not held up by a library waiting for a dead peer.
    threading.Thread(target=destroy, name="ndi-destroy", daemon=True).start()


@cache
def _native() -> Any:
    """libndi itself as ctypes sees it, or None if it is not where ndi-python keeps it."""
    folder = Path(load().__file__ or "").parent
    patterns = ("libndi*.so.*", "libndi*.dylib", "Processing.NDI.Lib*.dll", "libndi*.so")
    for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
        try:
            native = ctypes.CDLL(str(path))
            native.NDIlib_recv_destroy.argtypes = [ctypes.c_void_p]
            native.NDIlib_recv_destroy.restype = None
        except (OSError, AttributeError) as error:
            log.debug("%s is not the NDI library: %s", path, error)
            continue
        return native
    log.warning("the NDI library was not found in %s; a lost source may stall the output briefly", folder)
    return None


def _pointer(capsule: object) -> int:
    """The native handle that ndi-python keeps in a capsule."""
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    pointer = pointer_of(capsule, name_of(capsule))
    assert pointer is not None
    return int(pointer)
