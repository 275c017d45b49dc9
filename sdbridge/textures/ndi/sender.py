"""An NDI source that others see under our name, with metadata on each frame and a failover name."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, check_pixels
from sdbridge.textures import stub
from sdbridge.textures.geometry import with_even_sides
from sdbridge.textures.ndi import library
from sdbridge.textures.ndi.metadata import to_xml
from sdbridge.textures.options import option, read_options


@dataclass(frozen=True)
class NdiSenderOptions:
    """``failover``: full name of the source receivers turn to if we die. ``fps`` is only announced."""

    groups: str = option("")
    failover: str = option("")
    fps: float = option(60.0, low=1, high=240)
    metadata: bool = option(True)


class Sender(stub.Sender):
    """Paced by the bridge, so the library's own clock is off. Encodes nothing while nobody receives.

    NDI knows only even sizes and cuts odd ones; here the last row or column is doubled instead.
    """

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        #: The name as others see it, ``MACHINE (Name)``; quotes may have become spaces.
        self.public_name = ""
        self._chosen = NdiSenderOptions()
        self._native: object | None = None
        self._lock = threading.Lock()  # status is asked for from other threads while this one closes
        self._video: Any = None
        self._size: tuple[int, int] | None = None
        self.encoded = 0

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return library.available()

    def open(self) -> None:
        self._chosen = read_options(NdiSenderOptions, self.options, "ndi")
        ndi = library.load()
        settings = ndi.SendCreate(
            p_ndi_name=self.name or None,
            p_groups=self._chosen.groups or None,
            clock_video=False,
            clock_audio=False,
        )
        self._native = ndi.send_create(settings)
        if self._native is None:
            raise SdbridgeError("SDB-TEXTURE-NAME", f"another NDI output is already called {self.name!r}")
        self.public_name = ndi.send_get_source_name(self._native).ndi_name
        library.own_names.add(self.public_name)
        if self._chosen.failover:
            ndi.send_set_failover(self._native, ndi.Source(self._chosen.failover))
        self._video = ndi.VideoFrameV2(
            FourCC=ndi.FOURCC_VIDEO_TYPE_RGBA,
            frame_rate_N=round(self._chosen.fps * 1000),
            frame_rate_D=1000,
            timecode=ndi.SEND_TIMECODE_SYNTHESIZE,
        )

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._native is None:
            return
        self._size = (frame.width, frame.height)
        ndi = library.load()
        self._drop_incoming(ndi)
        if ndi.send_get_no_connections(self._native, 0) == 0:
            return
        # ndi-python takes any array and reads past its end if the shape is wrong.
        pixels = with_even_sides(check_pixels(frame.pixels))
        self._video.xres, self._video.yres = pixels.shape[1], pixels.shape[0]
        self._video.line_stride_in_bytes = 4 * pixels.shape[1]
        self._video.data = pixels
        if self._chosen.metadata:
            self._video.metadata = to_xml(frame, about, time.monotonic_ns())
        ndi.send_send_video_v2(self._native, self._video)
        self.encoded += 1

    @property
    def receivers(self) -> int:
        with self._lock:
            if self._native is None:
                return 0
            return int(library.load().send_get_no_connections(self._native, 0))

    @property
    def on_program(self) -> bool:
        """Tally: whether someone has our picture on air."""
        with self._lock:
            if self._native is None:
                return False
            ndi = library.load()
            tally = ndi.Tally()
            ndi.send_get_tally(self._native, tally, 0)
            return bool(tally.on_program)

    def describe(self) -> str:
        size = f", {self._size[0]}x{self._size[1]}" if self._size else ""
        air = ", on program" if self.on_program else ""
        return f"ndi {self.public_name or self.name}{size}, {self.receivers} receiving{air}"

    def close(self) -> None:
        with self._lock:
            native, self._native = self._native, None
            if native is not None:
                library.load().send_destroy(native)
                library.own_names.discard(self.public_name)

    def _drop_incoming(self, ndi: Any) -> None:
        """Receivers may send metadata to us; unread it would pile up in the library."""
        incoming = ndi.MetadataFrame()
        for _ in range(16):
            if ndi.send_capture(self._native, incoming, 0) != ndi.FRAME_TYPE_METADATA:
                return
            ndi.send_free_metadata(self._native, incoming)
