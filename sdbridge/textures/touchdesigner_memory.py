"""TouchDesigner's Shared Mem In and Out TOPs: pictures through named memory, with TouchDesigner's own locks.

For Windows and TouchDesigner Commercial, Pro or Educational, Mem Type Local. On Linux the same
code runs over POSIX shared memory without locks, which is how it is tested. On macOS TouchDesigner
keeps a directory of names of its own, so use Syphon there.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, check_pixels
from sdbridge.shared_block import attach_block
from sdbridge.textures import stub
from sdbridge.textures import touchdesigner_layout as layout
from sdbridge.textures.options import option, read_options
from sdbridge.textures.pace import Pace

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_LOCK_MS = 100
_WAIT_OBJECT_0, _WAIT_ABANDONED = 0x00, 0x80


def block_name(name: str) -> str:
    """The name of the memory for the TOP's Memory Name."""
    return f"TouchSHM{name}"


def info_name(name: str) -> str:
    """The name of the little block beside it."""
    return f"TouchSHM{name}4jhd783h"


def _availability(platform: str = sys.platform) -> tuple[bool, str]:
    if platform == "win32":
        return True, "named memory is part of Windows"
    if platform == "darwin":
        return False, "TouchDesigner on macOS keeps its names to itself; use Syphon"
    return True, "POSIX shared memory stands in for Windows' own; TouchDesigner does not run here"


class NamedMutex:
    """A Windows mutex that another program may hold; on other systems nothing to hold."""

    def __init__(self, name: str, kernel: Any = None) -> None:
        self._name = name
        self._kernel = kernel
        self._handle: Any = None

    def open(self) -> None:
        if self._kernel is None:
            if sys.platform != "win32":
                return
            self._kernel = _kernel32()
        self._handle = self._kernel.CreateMutexW(None, False, self._name)
        if not self._handle:
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"the lock {self._name} cannot be opened")

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Whether we got it within a tenth of a second; a program that hangs on to it is not waited for."""
        if self._handle is None:
            yield True
            return
        # Abandoned means that its holder died; the lock is ours all the same.
        got = self._kernel.WaitForSingleObject(self._handle, _LOCK_MS) in (_WAIT_OBJECT_0, _WAIT_ABANDONED)
        try:
            yield got
        finally:
            if got:
                self._kernel.ReleaseMutex(self._handle)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._kernel.CloseHandle(handle)


def _kernel32() -> Any:
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]  # Windows
    kernel.CreateMutexW.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_wchar_p]
    kernel.CreateMutexW.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    kernel.WaitForSingleObject.restype = ctypes.c_uint32
    kernel.ReleaseMutex.argtypes = [ctypes.c_void_p]
    kernel.CloseHandle.argtypes = [ctypes.c_void_p]
    return kernel


@dataclass(frozen=True)
class TouchDesignerReceiverOptions:
    """How often to look: the layout has no frame number, so each look is taken for a new frame."""

    fps: float = option(60.0, low=1, high=240)


class Receiver(stub.Receiver):
    """What a Shared Mem Out TOP writes. The block is opened anew twice a second: only so its end shows."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._pace = Pace(60.0, self.clock)
        self._mutex = NamedMutex(block_name(name) + "Mutex")
        self._block: shared_memory.SharedMemory | None = None
        self._last_look_ns: int | None = None
        self._size: tuple[int, int] | None = None
        self._why = "there is no such block"
        self._open = False

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return ()  # names of memory cannot be listed

    def open(self) -> None:
        self._pace = Pace(
            read_options(TouchDesignerReceiverOptions, self.options, "touchdesigner_memory").fps, self.clock
        )
        self._mutex.open()
        self._open = True

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if not self._open:
            return None
        if self._pace.wait(timeout_s) is None:
            return None
        now = self.clock.now_ns()
        if self._last_look_ns is None or now - self._last_look_ns > _LOOK_EVERY_S * 1e9:
            self._last_look_ns = now
            self._attach()
        if self._block is None:
            return None
        with self._mutex.held() as got:
            pixels = self._read() if got else None
        self._size = (pixels.shape[1], pixels.shape[0]) if pixels is not None else None
        return pixels

    @property
    def connected(self) -> bool:
        return self._size is not None

    def describe(self) -> str:
        if self._size is not None:
            return f"TouchDesigner memory {self.name}, {self._size[0]}x{self._size[1]}"
        return f"TouchDesigner memory, waiting for {self.name}: {self._why}"

    def close(self) -> None:
        self._open = False
        self._detach()
        self._mutex.close()

    def _attach(self) -> None:
        self._detach()
        ending = ""
        try:
            info = attach_block(info_name(self.name))
        except (OSError, ValueError):
            pass  # TouchDesigner's own Out TOP has none
        else:
            ending = layout.read_name_ending(_bytes_of(info)) or ""
            info.close()
        try:
            self._block = attach_block(block_name(self.name) + ending)
        except (OSError, ValueError):
            self._why = "there is no such block"
            self._size = None

    def _detach(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.close()

    def _read(self) -> np.ndarray | None:
        assert self._block is not None
        with _bytes_of(self._block) as block:
            try:
                return layout.read_pixels(block, layout.read_header(block))
            except ValueError as error:
                if str(error) != self._why:
                    self._why = str(error)
                    log.warning("touchdesigner_memory: %s: %s", self.name, error)
                return None


@dataclass(frozen=True)
class TouchDesignerSenderOptions:
    """The largest frame there is room for, and the header's version: every TouchDesigner knows 1."""

    max_width: int = option(1920, low=16, high=8192)
    max_height: int = option(1080, low=16, high=8192)
    version: int = option(1, low=1, high=2)


class Sender(stub.Sender):
    """What a Shared Mem In TOP reads under our name."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = TouchDesignerSenderOptions()
        self._mutex = NamedMutex(block_name(name) + "Mutex")
        self._info_mutex = NamedMutex(info_name(name) + "Mutex")
        self._block: shared_memory.SharedMemory | None = None
        self._info: shared_memory.SharedMemory | None = None
        self._size: tuple[int, int] | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    def open(self) -> None:
        self._chosen = read_options(TouchDesignerSenderOptions, self.options, "touchdesigner_memory")
        room = self._chosen.max_width * self._chosen.max_height * 4
        self._block = _created(block_name(self.name), layout.HEADER_BYTES[2] + room)
        self._info = _created(info_name(self.name), layout.INFO_BYTES)
        self._mutex.open()
        self._info_mutex.open()
        with self._info_mutex.held():
            _bytes_of(self._info)[: layout.INFO_BYTES] = layout.pack_info()

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._block is None:
            return
        pixels = self._fitting(check_pixels(frame.pixels))
        height, width = pixels.shape[:2]
        header = layout.pack_header(width, height, self._chosen.version)
        with self._mutex.held() as got:
            if not got:
                return  # a reader hangs on to the lock; the next frame comes soon
            with _bytes_of(self._block) as block:
                block[: len(header)] = header
                room = np.frombuffer(block, np.uint8, pixels.size, len(header)).reshape(pixels.shape)
                room[...] = pixels[::-1]  # TouchDesigner's first row is the lowest
                del room
        self._size = (width, height)

    def describe(self) -> str:
        size = f", {self._size[0]}x{self._size[1]}" if self._size else ""
        return f"TouchDesigner memory {self.name}{size}"

    def close(self) -> None:
        for block in (self._block, self._info):
            if block is not None:
                block.close()
                block.unlink()
        self._block = self._info = None
        self._mutex.close()
        self._info_mutex.close()

    def _fitting(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if width * height <= self._chosen.max_width * self._chosen.max_height:
            return pixels
        from sdbridge.textures.geometry import resize

        scale = min(self._chosen.max_width / width, self._chosen.max_height / height)
        return resize(pixels, max(1, int(width * scale)), max(1, int(height * scale)))


def _bytes_of(block: shared_memory.SharedMemory) -> memoryview:
    """A view to be let go before the block is closed."""
    content: Any = block.buf
    return memoryview(content)


def _created(name: str, size: int) -> shared_memory.SharedMemory:
    """A block of at least ``size``; one that TouchDesigner kept open over our restart is used again."""
    try:
        return shared_memory.SharedMemory(name, create=True, size=size)
    except FileExistsError:
        kept = shared_memory.SharedMemory(name)
    if kept.size >= size:
        return kept
    kept.close()
    if sys.platform == "win32":  # there it goes when the last program lets it go, and not before
        raise SdbridgeError(
            "SDB-TEXTURE-NAME",
            f"the memory {name} exists with {kept.size} bytes, {size} are needed; make its TOP inactive once",
        )
    kept.unlink()
    return shared_memory.SharedMemory(name, create=True, size=size)
