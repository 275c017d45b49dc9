"""An NDI source by name or address: found again by itself when it was gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.textures import stub
from sdbridge.textures.ndi import finder, library
from sdbridge.textures.ndi.metadata import from_xml
from sdbridge.textures.options import option, read_options

log = logging.getLogger(__name__)

_GONE_AFTER_S = 0.5  # NDI tells nobody that a source died; silence must do
_LOOK_EVERY_S = 0.1
_KNOCK_EVERY_S = 5.0  # letting an unanswered connection go keeps a thread busy for seconds


@dataclass(frozen=True)
class NdiReceiverOptions:
    """``url`` is ``host:port`` and needs no discovery; ``groups`` and ``extra_ips`` are comma lists."""

    url: str = option("")
    groups: str = option("")
    extra_ips: str = option("")
    bandwidth: str = option("highest", choices=("highest", "lowest"))
    tally: bool = option(True)


class Receiver(stub.Receiver):
    """Silence for half a second means gone: from then on the name is looked for at its new address.

    By a name of another machine's source libndi finds it again itself; the finder here covers the
    case that it came back on another port, and names given without their machine.
    """

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        #: Attributes of the newest frame's XML metadata.
        self.metadata: Mapping[str, str] = {}
        self._chosen = NdiReceiverOptions()
        self._finder: finder.Finder | None = None
        self._native: object | None = None
        self._target: finder.Found | None = None
        self._size: tuple[int, int] | None = None
        self._last_frame_ns = 0
        self._last_look_ns = 0
        self._knocked_ns = 0  # when this connection was made
        self._answered = False  # by a frame
        self._vanished = False
        self._connected = False

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return library.available()

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return finder.list_sources()

    def open(self) -> None:
        self._chosen = read_options(NdiReceiverOptions, self.options, "ndi")
        library.load()
        address = self._chosen.url or (self.name if finder.is_address(self.name) else "")
        self._last_look_ns = self.clock.now_ns()
        if address:
            self._connect(finder.Found("" if address == self.name else self.name, address))
        else:
            self._finder = finder.Finder(self._chosen.groups, self._chosen.extra_ips)
            self._finder.open()

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if not self._connected:
            self._look()
        if self._native is None:
            self.clock.sleep(min(timeout_s, _LOOK_EVERY_S))
            return None
        pixels = self._capture(max(0, round(timeout_s * 1000)))
        now = self.clock.now_ns()
        if pixels is not None:
            self._last_frame_ns, self._answered = now, True
            self._size = (pixels.shape[1], pixels.shape[0])
            if not self._connected:
                self._connected = True
                log.info("ndi: receiving %s", self.describe())
        elif self._connected and now - self._last_frame_ns > _GONE_AFTER_S * 1e9:
            self._connected = False
            log.warning("ndi: %s sends no more; looking for it", self._target)
        return pixels

    @property
    def connected(self) -> bool:
        return self._connected

    def describe(self) -> str:
        where = self._target or finder.Found(self.name or "the first source seen", "")
        label = " at ".join(part for part in (where.name, where.address) if part)
        if self._connected and self._size:
            return f"ndi {label}, {self._size[0]}x{self._size[1]}"
        return f"ndi, waiting for {label}"

    def close(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            library.destroy_receiver(native)
        if self._finder is not None:
            self._finder.close()
            self._finder = None
        self._connected = False

    def _look(self) -> None:
        """Connect to what the name means now, unless that is where we wait already.

        A connection that never gave a frame is tried anew now and then, and so is an address, which means the
        same always.
        """
        now = self.clock.now_ns()
        every_s = _LOOK_EVERY_S if self._finder is not None else _KNOCK_EVERY_S
        if now - self._last_look_ns < every_s * 1e9:
            return
        self._last_look_ns = now
        if self._finder is None:
            if self._target is not None:
                self._connect(self._target)
            return
        found = finder.choose(self.name, self._finder.sources(), library.own_names)
        if found is None:
            self._vanished = True
            return
        unheard = not self._answered and now - self._knocked_ns > _KNOCK_EVERY_S * 1e9
        if self._native is None or self._vanished or unheard or found != self._target:
            self._connect(found)

    def _connect(self, target: finder.Found) -> None:
        ndi = library.load()
        self._target = target
        self._vanished = self._answered = False
        self._knocked_ns = self.clock.now_ns()
        old, self._native = self._native, None
        if old is not None:
            library.destroy_receiver(old)  # a new one connects at once, an old one thinks for seconds
        bandwidth = getattr(ndi, f"RECV_BANDWIDTH_{self._chosen.bandwidth.upper()}")
        source = ndi.Source(target.name or target.address, target.address)
        self._native = ndi.recv_create_v3(
            ndi.RecvCreateV3(source, ndi.RECV_COLOR_FORMAT_RGBX_RGBA, bandwidth, False, "sdbridge")
        )
        if self._native is not None and self._chosen.tally:
            # Tells the camera or program that its picture is in use, as the red light does.
            ndi.recv_set_tally(self._native, ndi.Tally(True, False))

    def _capture(self, timeout_ms: int) -> np.ndarray | None:
        """The newest of the waiting frames; older ones are let go unread."""
        ndi = library.load()
        newest: np.ndarray | None = None
        waiting = 1
        while waiting > 0:
            with _captured(ndi, self._native, timeout_ms) as frame:
                if frame is None:
                    return newest
                waiting = int(ndi.recv_get_queue(self._native).video_frames)
                if waiting == 0:
                    newest = _pixels_of(ndi, frame)
                    if newest is not None and frame.metadata:
                        self.metadata = from_xml(frame.metadata)
            timeout_ms = 0
        return newest


@contextmanager
def _captured(ndi: Any, receiver: object, timeout_ms: int) -> Iterator[Any]:
    """A video frame, or None; whatever came is given back to the library, since it leaks otherwise."""
    kind, video, _, metadata = ndi.recv_capture_v2(receiver, timeout_ms, True, False, True)
    try:
        yield video if kind == ndi.FRAME_TYPE_VIDEO else None
    finally:
        if kind == ndi.FRAME_TYPE_VIDEO:
            ndi.recv_free_video_v2(receiver, video)
        elif kind == ndi.FRAME_TYPE_METADATA:
            ndi.recv_free_metadata(receiver, metadata)


def _pixels_of(ndi: Any, frame: Any) -> np.ndarray | None:
    """The frame as RGBA of our own; None if it is in no format that was asked for."""
    pixels = np.asarray(frame.data)  # ndi-python hands out a copy, so it outlives the frame
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or 0 in pixels.shape:
        log.debug("ndi: a frame of %s %s was left out", pixels.dtype, pixels.shape)
        return None
    if frame.FourCC == ndi.FOURCC_VIDEO_TYPE_RGBX:
        pixels[..., 3] = 255
    elif frame.FourCC != ndi.FOURCC_VIDEO_TYPE_RGBA:
        log.debug("ndi: a frame of format %s was left out", frame.FourCC)
        return None
    return np.ascontiguousarray(pixels)
