"""Spout: textures shared between Windows programs by name, through SpoutGL.

SpoutGL 0.1.1's traps, which this file goes around: ``getSenderName`` is bound to the width, so
names come from the sender list; arguments are positional and all required; a GL context belongs
to its thread, so each end makes its own hidden one in ``open``; ``isFrameNew`` can be true with no
picture behind it, so ``receiveImage`` must have said yes as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, check_pixels
from sdbridge.textures import stub
from sdbridge.textures.options import option, read_options

log = logging.getLogger(__name__)

GL_RGBA = 0x1908
GL_BGRA = 0x80E1
DXGI_BGRA = (87, 88, 90, 91)  # B8G8R8A8, B8G8R8X8 and their typeless and sRGB forms

_POLL_S = 0.002
_LOOK_EVERY_S = 0.25
_SILENCE_S = 1.0
_LARGEST_SIDE = 16384

#: Names we send under, and by how many of our senders, so that "the active sender" is never our own picture.
_own_names: Counter[str] = Counter()


def claim_name(name: str) -> None:
    """From now on ``name`` is one of ours, whichever of our processes sends under it."""
    _own_names[name] += 1


def disclaim_name(name: str) -> None:
    _own_names[name] -= 1
    if _own_names[name] <= 0:
        del _own_names[name]


def _availability(platform: str = sys.platform) -> tuple[bool, str]:
    if platform != "win32":
        return False, f"Spout exists on Windows only, this is {platform}"
    if importlib.util.find_spec("SpoutGL") is None:
        return False, "SpoutGL is not installed; pip install SpoutGL (Python up to 3.13)"
    return True, "SpoutGL is installed"


def _library() -> Any:
    try:
        return importlib.import_module("SpoutGL")
    except (ImportError, OSError) as error:
        raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"SpoutGL cannot be loaded: {error}") from error


@dataclass(frozen=True)
class SpoutReceiverOptions:
    """``bottom_up`` is for senders whose first row is the lowest; ``cpu_share`` for laptops with two GPUs."""

    bottom_up: bool = option(False)
    cpu_share: bool = option(False)


class Receiver(stub.Receiver):
    """A sender by name, or without a name the active one that is not ourselves."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._chosen = SpoutReceiverOptions()
        self._native: Any = None
        self._target = ""
        self._buffer: np.ndarray | None = None
        self._colour_order = GL_RGBA
        self._last_frame_ns: int | None = None
        self._last_look_ns: int | None = None
        # Status is asked for from other threads, and Spout belongs to this one: so its answers are kept.
        self._linked = False
        self._way = ""

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        if not cls.available()[0]:
            return ()
        try:
            native = _library().SpoutReceiver()
        except SdbridgeError as error:
            log.warning("%s", error)
            return ()
        active = native.getActiveSender()
        return tuple(
            stub.Source(name, "the active sender" if name == active else "")
            for name in native.getSenderList()
            if name not in _own_names
        )

    def open(self) -> None:
        self._chosen = read_options(SpoutReceiverOptions, self.options, "spout")
        native = _library().SpoutReceiver()
        if not native.createOpenGL():
            raise SdbridgeError(
                "SDB-TEXTURE-UNAVAILABLE", "Spout cannot get an OpenGL context on this machine"
            )
        if self._chosen.cpu_share:
            native.setCPUshare(True)
        self._native = native
        if self.name:
            self._aim_at(self.name)

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if self._native is None:
            return None
        end = self.clock.now_ns() + int(timeout_s * 1e9)
        while True:
            if not self.name and not self.connected:
                self._look()
            pixels = self._poll() if self._target else None
            now = self.clock.now_ns()
            if pixels is not None:
                self._last_frame_ns = now
                return pixels
            if now >= end:
                return None
            self.clock.sleep(min(_POLL_S, (end - now) / 1e9))

    @property
    def connected(self) -> bool:
        last = self._last_frame_ns
        return self._linked or (last is not None and self.clock.now_ns() - last < _SILENCE_S * 1e9)

    def describe(self) -> str:
        target = self._target or self.name or "the active sender"
        buffer = self._buffer
        if self.connected and buffer is not None:
            return f"spout {target}, {buffer.shape[1]}x{buffer.shape[0]} by {self._way}"
        return f"spout, waiting for {target}"

    def close(self) -> None:
        native, self._native = self._native, None
        self._buffer = None
        self._linked = False
        self._last_frame_ns = None
        if native is not None:
            native.releaseReceiver()
            native.closeOpenGL()

    def _look(self) -> None:
        now = self.clock.now_ns()
        if self._last_look_ns is not None and now - self._last_look_ns < _LOOK_EVERY_S * 1e9:
            return
        self._last_look_ns = now
        names = [name for name in self._native.getSenderList() if name not in _own_names]
        active = self._native.getActiveSender()
        wanted = active if active in names else (names[0] if names else "")
        if wanted and wanted != self._target:
            self._aim_at(wanted)

    def _aim_at(self, name: str) -> None:
        self._target = name
        self._buffer = None
        self._native.setReceiverName(name)

    def _poll(self) -> np.ndarray | None:
        """One look at the shared texture; None if there is no new picture in it."""
        native = self._native
        into = None if self._buffer is None else self._buffer.reshape(-1)
        received = native.receiveImage(into, self._colour_order, self._chosen.bottom_up, 0)
        self._linked = self._buffer is not None and bool(native.isConnected())
        if native.isUpdated():
            # The sender is new or its size changed; nothing was written this time.
            self._make_room(int(native.getSenderWidth()), int(native.getSenderHeight()))
            return None
        if not received or self._buffer is None or not native.isFrameNew():
            return None
        pixels, self._buffer = self._buffer, np.empty_like(self._buffer)
        if self._colour_order == GL_BGRA:
            # Imported here: a Spout test program needs no video library.
            from sdbridge.textures.geometry import swap_red_and_blue

            return swap_red_and_blue(pixels)
        return pixels

    def _make_room(self, width: int, height: int) -> None:
        if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
            log.warning("spout: %s says it is %dx%d; left out", self._target, width, height)
            self._buffer = None
            return
        # Read in the sender's own order: the driver then copies and converts nothing.
        self._colour_order = GL_BGRA if int(self._native.getSenderFormat()) in DXGI_BGRA else GL_RGBA
        self._buffer = np.empty((height, width, 4), np.uint8)
        self._way = _way(self._native)
        log.info("spout: receiving %s, %dx%d", self._target, width, height)


@dataclass(frozen=True)
class SpoutSenderOptions:
    """``bottom_up`` hands the picture over upside down; ``gpu`` lets the engine send where it can."""

    bottom_up: bool = option(False)
    cpu_share: bool = option(False)
    gpu: bool = option(True)


class Sender(stub.Sender):
    """One sender under one name for the whole show; its size follows the frames."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = SpoutSenderOptions()
        self._native: Any = None
        self._size: tuple[int, int] | None = None
        self._way = ""  # asked once a size: status comes from other threads, Spout belongs to one
        self.refused = 0

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    def open(self) -> None:
        self._chosen = read_options(SpoutSenderOptions, self.options, "spout")
        library = _library()
        if self.name in library.SpoutReceiver().getSenderList():
            raise SdbridgeError("SDB-TEXTURE-NAME", f"another Spout sender is already called {self.name!r}")
        native = library.SpoutSender()
        if not native.createOpenGL():
            raise SdbridgeError(
                "SDB-TEXTURE-UNAVAILABLE", "Spout cannot get an OpenGL context on this machine"
            )
        if self._chosen.cpu_share:
            native.setCPUshare(True)
        native.setSenderName(self.name)
        claim_name(self.name)
        self._native = native

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._native is None:
            return
        pixels = check_pixels(frame.pixels)
        sent = self._native.sendImage(
            pixels.reshape(-1), frame.width, frame.height, GL_RGBA, self._chosen.bottom_up, 0
        )
        if sent:
            if self._size != (frame.width, frame.height):
                self._way = _way(self._native)
                self._size = (frame.width, frame.height)
            return
        self.refused += 1
        if self.refused == 1:
            log.warning("spout: %s did not take a frame of %dx%d", self.name, frame.width, frame.height)

    def describe(self) -> str:
        if self._native is None or self._size is None:
            return f"spout {self.name}"
        return f"spout {self.name}, {self._size[0]}x{self._size[1]} by {self._way}"

    def close(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            native.releaseSender()
            native.closeOpenGL()
            disclaim_name(self.name)


def _way(native: Any) -> str:
    return "GPU" if native.isGLDXReady() else "CPU share"
