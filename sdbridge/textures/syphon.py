"""Syphon: textures shared between macOS programs by name, through syphon-python's Metal half.

Syphon announces and finds through the run loop of the main thread, so something must call ``pump``
there a few times a second (``main_thread.rest`` does). Pictures are
taken and given in the texture's own thread. Syphon's convention is that the first row of a
texture is the lowest, hence ``bottom_up``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, check_pixels
from sdbridge.textures import stub
from sdbridge.textures.geometry import swap_red_and_blue
from sdbridge.textures.options import option, read_options

log = logging.getLogger(__name__)

METAL_RGBA8 = 70
METAL_BGRA8 = 80

_POLL_S = 0.002
_LOOK_EVERY_S = 0.25
_TEXTURES = 3  # the GPU may still read the last one, and the one before, while the next is written

#: Names this process itself serves under, so that "the first server" is never our own picture.
_own_names: set[str] = set()


def _availability(platform: str = sys.platform) -> tuple[bool, str]:
    if platform != "darwin":
        return False, f"Syphon exists on macOS only, this is {platform}"
    if importlib.util.find_spec("syphon") is None:
        return False, "syphon-python is not installed; pip install syphon-python"
    return True, "syphon-python is installed"


def _library(name: str = "syphon") -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"{name} cannot be loaded: {error}") from error


def pump(seconds: float) -> None:
    """Let Syphon announce and find for a while. On macOS, from the main thread only."""
    directory = _library().SyphonServerDirectory()
    directory.run_loop_interval = seconds
    directory.update_run_loop()


def _servers() -> list[Any]:
    directory = _library().SyphonServerDirectory()
    directory.run_loop_interval = 0.001  # the main thread does the waiting
    return list(directory.servers)


def _label(server: Any) -> str:
    """``app: name`` as people see it in other programs; either may be empty."""
    return ": ".join(part for part in (server.app_name, server.name) if part)


@dataclass(frozen=True)
class SyphonReceiverOptions:
    """``bottom_up`` is Syphon's own convention; switch it off for servers that show upside down."""

    bottom_up: bool = option(True)


class Receiver(stub.Receiver):
    """A server by ``app: name``, ``name`` or ``app``, or without a name the first that is not ourselves."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._chosen = SyphonReceiverOptions()
        self._open = False
        self._client: Any = None
        self._target = ""
        self._size: tuple[int, int] | None = None
        self._last_look_ns: int | None = None
        self._refused_format: int | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        if not cls.available()[0]:
            return ()
        try:
            others = [server for server in _servers() if server.name not in _own_names]
            return tuple(stub.Source(_label(server), f"Syphon {server.uuid}") for server in others)
        except SdbridgeError as error:
            log.warning("%s", error)
            return ()

    def open(self) -> None:
        self._chosen = read_options(SyphonReceiverOptions, self.options, "syphon")
        _library()
        self._open = True

    def receive(self, timeout_s: float) -> np.ndarray | None:
        end = self.clock.now_ns() + int(timeout_s * 1e9)
        while self._open:
            if self._client is not None and not self._client.is_valid:
                log.warning("syphon: %s is gone; looking for it", self._target)
                self._let_go()
            if self._client is None:
                self._look()
            if self._client is not None and self._client.has_new_frame:
                pixels = self._read()
                if pixels is not None:
                    self._size = (pixels.shape[1], pixels.shape[0])
                    return pixels
            now = self.clock.now_ns()
            if now >= end:
                return None
            self.clock.sleep(min(_POLL_S, (end - now) / 1e9))
        return None

    @property
    def connected(self) -> bool:
        return self._client is not None and self._size is not None

    def describe(self) -> str:
        if self._size is not None and self._client is not None:
            return f"syphon {self._target}, {self._size[0]}x{self._size[1]}"
        return f"syphon, waiting for {self.name or 'the first server'}"

    def close(self) -> None:
        self._open = False
        self._let_go()

    def _look(self) -> None:
        now = self.clock.now_ns()
        if self._last_look_ns is not None and now - self._last_look_ns < _LOOK_EVERY_S * 1e9:
            return
        self._last_look_ns = now
        for server in _servers():
            wanted = self.name in (_label(server), server.name, server.app_name)
            if wanted or (not self.name and server.name not in _own_names):
                try:
                    self._client = _library().SyphonMetalClient(server)
                except RuntimeError as error:  # it ended between being listed and being asked
                    log.debug("syphon: %s: %s", _label(server), error)
                    return
                self._target = _label(server)
                log.info("syphon: receiving %s", self._target)
                return

    def _read(self) -> np.ndarray | None:
        texture = self._client.new_frame_image
        if texture is None:
            return None
        pixel_format = int(texture.pixelFormat())
        if pixel_format not in (METAL_RGBA8, METAL_BGRA8):
            if pixel_format != self._refused_format:
                self._refused_format = pixel_format
                log.warning(
                    "syphon: %s has Metal format %d; only 70 and 80 are read", self._target, pixel_format
                )
            return None
        pixels = np.asarray(_library("syphon.utils.numpy").copy_mtl_texture_to_image(texture))
        if self._chosen.bottom_up:
            pixels = pixels[::-1]
        return swap_red_and_blue(pixels) if pixel_format == METAL_BGRA8 else pixels.copy()

    def _let_go(self) -> None:
        client, self._client = self._client, None
        self._size = None
        if client is not None:
            client.stop()


@dataclass(frozen=True)
class SyphonSenderOptions:
    """``bottom_up`` tells receivers that our rows run downwards; switch it off if they show upside down."""

    bottom_up: bool = option(True)


class Sender(stub.Sender):
    """A Metal server that alternates three textures of the frame's size."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = SyphonSenderOptions()
        self._server: Any = None
        self._textures: list[Any] = []
        self._next = 0
        self._watched = False
        self._size: tuple[int, int] | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return _availability()

    def open(self) -> None:
        self._chosen = read_options(SyphonSenderOptions, self.options, "syphon")
        try:
            self._server = _library().SyphonMetalServer(self.name)
        except RuntimeError as error:  # no Metal device
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"Syphon cannot serve: {error}") from error
        _own_names.add(self.name)

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._server is None:
            return
        pixels = check_pixels(frame.pixels)
        if self._size != (frame.width, frame.height):
            make = _library("syphon.utils.raw").create_mtl_texture
            self._textures = [make(self._server.device, frame.width, frame.height) for _ in range(_TEXTURES)]
            self._size = (frame.width, frame.height)
        texture = self._textures[self._next % _TEXTURES]
        self._next += 1
        _library("syphon.utils.numpy").copy_image_to_mtl_texture(pixels, texture)
        # A row order opposite to Syphon's own is said with the frame; receivers turn it for nothing.
        self._server.publish_frame_texture(texture, is_flipped=self._chosen.bottom_up)
        self._watched = bool(self._server.has_clients)

    @property
    def receivers(self) -> int:
        """Syphon tells whether there are any, not how many; as of the last frame."""
        return int(self._watched)

    def rename(self, name: str) -> None:
        """Appear under another name from now on; receivers stay connected."""
        if self._server is not None:
            self._server.name = name
            _own_names.discard(self.name)
            _own_names.add(name)
        self.name = name

    def describe(self) -> str:
        size = f", {self._size[0]}x{self._size[1]}" if self._size else ""
        watched = ", watched" if self.receivers else ""
        return f"syphon {self.name}{size}{watched}"

    def close(self) -> None:
        server, self._server = self._server, None
        self._watched = False
        self._textures = []
        self._size = None
        if server is not None:
            server.stop()
            _own_names.discard(self.name)
