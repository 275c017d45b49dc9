"""Spout: textures shared between Windows programs by name, through SpoutGL.

SpoutGL 0.1.1's traps, which this file goes around: ``getSenderName`` is bound to the width, so
names come from the sender list; arguments are positional and all required; a GL context belongs
to its thread, so each end makes its own hidden one in ``open``; ``isFrameNew`` can be true with no
picture behind it, so ``receiveImage`` must have said yes as well. The Spout library in it (2.007.013)
reads pictures through pixel buffers of its own, but gives the one of the call before: the first is
none at all, and each comes a frame late. So where moderngl is there we receive a texture and read
that ourselves. ``receiveTexture`` and ``sendTexture`` keep all of Python waiting while they wait for
another program, the image calls do not: a program that makes us wait is met by images again.
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
from sdbridge.textures.pixel_buffers import GL_TEXTURE_2D, Download, Upload, usable

log = logging.getLogger(__name__)

GL_RGBA = 0x1908
GL_BGRA = 0x80E1
DXGI_BGRA = (87, 88, 90, 91)  # B8G8R8A8, B8G8R8X8 and their typeless and sRGB forms

_POLL_S = 0.002
_LOOK_EVERY_S = 0.25
_SILENCE_S = 1.0
_LARGEST_SIDE = 16384
_SLOW_CALL_S, _SLOW_CALLS = 0.02, 3

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
    pixel_buffers: bool = option(True)


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
        self._download: Download | None = None  # None: pictures come as images
        self._unwritten = True  # whether the next image call gives no picture yet
        self._patience = _Patience()
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
        if self._chosen.pixel_buffers:
            context = _pixel_buffer_context()
            self._download = Download(context) if context is not None else None
        self._patience = _Patience()
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
        if self._download is not None:
            self._download.close()
        self._download = self._buffer = None
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
        download = self._download if self._buffer is not None else None
        if download is not None:
            began = self.clock.now_ns()
            received = native.receiveTexture(download.name, GL_TEXTURE_2D, self._chosen.bottom_up, 0)
            if self._patience.is_over(self.clock.now_ns() - began):
                log.warning("spout: %s makes us wait; its pictures come as images now", self._target)
                download.close()
                self._download, self._unwritten = None, True
                return None
        else:
            into = None if self._buffer is None else self._buffer.reshape(-1)
            received = native.receiveImage(into, self._colour_order, self._chosen.bottom_up, 0)
        self._linked = self._buffer is not None and bool(native.isConnected())
        if native.isUpdated():
            # The sender is new or its size changed; nothing was written this time.
            self._make_room(int(native.getSenderWidth()), int(native.getSenderHeight()))
            return None
        if not received or self._buffer is None or not native.isFrameNew():
            return None
        if download is not None:
            return download.read()
        if self._unwritten:
            self._unwritten = False
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
        self._unwritten = True
        if self._download is not None:
            self._download.make_room(width, height)
        self._way = _way(self._native)
        log.info("spout: receiving %s, %dx%d", self._target, width, height)


@dataclass(frozen=True)
class SpoutSenderOptions:
    """``bottom_up`` hands the picture over upside down; ``gpu`` lets the engine send where it can."""

    bottom_up: bool = option(False)
    cpu_share: bool = option(False)
    pixel_buffers: bool = option(False)
    gpu: bool = option(True)


class Sender(stub.Sender):
    """One sender under one name for the whole show; its size follows the frames."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = SpoutSenderOptions()
        self._native: Any = None
        self.clock: Clock = SystemClock()
        self._upload: Upload | None = None  # None: pictures go as images
        self._patience = _Patience()
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
        if self._chosen.pixel_buffers:
            context = _pixel_buffer_context()
            self._upload = Upload(context) if context is not None else None
        self._patience = _Patience()

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._native is None:
            return
        pixels = check_pixels(frame.pixels)
        if self._upload is not None:
            sent = self._send_texture(self._upload, pixels)
        else:
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

    def _send_texture(self, upload: Upload, pixels: np.ndarray) -> bool:
        height, width = pixels.shape[:2]
        upload.write(pixels)
        began = self.clock.now_ns()
        sent = self._native.sendTexture(upload.name, GL_TEXTURE_2D, width, height, self._chosen.bottom_up, 0)
        if self._patience.is_over(self.clock.now_ns() - began):
            log.warning("spout: a receiver of %s makes us wait; pictures go as images now", self.name)
            upload.close()
            self._upload = None
        return bool(sent)

    def describe(self) -> str:
        if self._native is None or self._size is None:
            return f"spout {self.name}"
        return f"spout {self.name}, {self._size[0]}x{self._size[1]} by {self._way}"

    def close(self) -> None:
        native, self._native = self._native, None
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        if native is not None:
            native.releaseSender()
            native.closeOpenGL()
            disclaim_name(self.name)


class _Patience:
    """Over once several calls in a row kept all of Python waiting."""

    def __init__(self) -> None:
        self._slow = 0

    def is_over(self, took_ns: int) -> bool:
        self._slow = self._slow + 1 if took_ns > _SLOW_CALL_S * 1e9 else 0
        return self._slow >= _SLOW_CALLS


def _pixel_buffer_context() -> Any:
    """The context that Spout has just made current, for pixel buffers; None where they do not work."""
    context, why = usable()
    if context is None:
        log.info("spout: without pixel buffers of our own: %s", why)
    return context


def _way(native: Any) -> str:
    return "GPU" if native.isGLDXReady() else "CPU share"
