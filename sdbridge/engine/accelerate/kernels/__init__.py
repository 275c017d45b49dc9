"""May our own Triton kernels run here? (Nothing in this package but its modules imports triton.)"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from functools import cache

from sdbridge.errors import first_line

log = logging.getLogger(__name__)

#: Tritons whose Gluon the Hopper kernels are written for: from the first one on, before the second. Each was
#: compiled by (3.5.1, 3.6.0, 3.7.1); 3.8 ends the process over them, 3.9 has other names.
_GLUON = ((3, 5), (3, 8))


def available() -> tuple[bool, str]:
    """Whether Triton and a CUDA device it can compile for are here, and why not. Imports no Triton."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    if _FAULT:
        return False, _FAULT[0]
    if interpreted():
        return True, "Triton's interpreter"
    import torch

    if not torch.cuda.is_available():
        return False, "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"compute capability {major}.{minor}; the kernels need 8.0"
    return True, f"Triton on {torch.cuda.get_device_name()}"


#: What kept Triton, or ours on it, from being imported: there is no second try in a process.
_FAULT: list[str] = []


def importable() -> tuple[bool, str]:
    """``available``, and that this Triton loads and has what our kernels name. Says it once where not."""
    able, why = available()
    if not able:
        return able, why
    try:
        for module in ("unet", "linear", "tiny_vae"):
            importlib.import_module(f"{__name__}.{module}")
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:
        _FAULT.append(f"Triton cannot be used: {type(error).__name__}: {first_line(error)}")
        log.warning("%s; graphs of PyTorch's own operations run instead", _FAULT[0])
    return available()


def read_sources() -> int:
    """Have Triton read the kernels that are imported, and how many those are.

    It parses each function when it is first called, up to 4 ms in the interpreter's one lock: those that only
    a later change calls, such as canny's, held a frame up.
    """
    importlib.import_module(f"{__name__}.canny")
    ours = [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.")]
    functions = [
        each for module in ours for each in vars(module).values() if hasattr(type(each), "cache_key")
    ]
    return sum(bool(each.cache_key) for each in functions)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (tests on machines without a GPU)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def gluon_fits() -> bool:
    """Whether the Hopper kernels are written for the installed Triton; True where there is none."""
    try:
        found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        return True
    return found is None or _GLUON[0] <= (int(found[1]), int(found[2])) < _GLUON[1]
