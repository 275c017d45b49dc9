"""A sender that writes a film: in its own thread, never over an existing file, readable if cut off."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.geometry import fit_frame, scaler
from sdbridge.textures.options import option, read_options

log = logging.getLogger(__name__)

_ENDINGS = (".mkv", ".mp4", ".mov", ".webm", ".avi", ".ts")
_WAITING_FRAMES = 30
_TIME_BASE = Fraction(1, 1000)  # milliseconds: frames come when they come


@dataclass(frozen=True)
class RecordingOptions:
    """``codec`` is any that FFmpeg has (libx264, h264_nvenc, ffv1, prores_ks); ``quality`` 0 is best."""

    folder: str = option("recordings")
    codec: str = option("libx264")
    quality: int = option(18, low=0, high=51)
    preset: str = option("veryfast")
    fps: float = option(30.0, low=1, high=240)


@dataclass(frozen=True)
class _Keep:
    """A later frame in the shape of the first: all of it, between bars."""

    fit: Literal["fit"] = "fit"
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotate: int = 0
    swap_red_blue: bool = False
    alpha: Literal["keep"] = "keep"


class Sender(stub.Sender):
    """``name`` is a file, or a word that a file in ``folder`` gets with the time added.

    The first frame gives the size; later ones of another size are fitted into it. A disk that
    fills up ends the film, which keeps what it has, and nothing else. Matroska (mkv) stays
    readable even if the machine dies.
    """

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        #: The file being written, once the first frame came.
        self.path: Path | None = None
        self.written = 0
        self.dropped = 0
        self._chosen = RecordingOptions()
        self._waiting: queue.Queue[tuple[np.ndarray, int] | None] = queue.Queue(_WAITING_FRAMES)
        self._thread: threading.Thread | None = None
        self._start_ns: int | None = None
        self._why_ended = ""

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, f"PyAV {av.__version__} writes films"

    def open(self) -> None:
        self._chosen = read_options(RecordingOptions, self.options, "recording")
        if self._chosen.codec not in av.codec.codecs_available:
            raise SdbridgeError("SDB-TEXTURE-OPTION", f"this FFmpeg has no codec {self._chosen.codec!r}")
        self._waiting = queue.Queue(_WAITING_FRAMES)
        self._start_ns = None
        self._why_ended = ""
        self.fault = None
        self.path = None
        self.written = self.dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._thread.start()

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._thread is None or self._why_ended:
            return
        now = self.clock.now_ns()
        if self._start_ns is None:
            self._start_ns = now
        try:
            self._waiting.put_nowait((frame.pixels, (now - self._start_ns) // 1_000_000))
        except queue.Full:
            self.dropped += 1  # the encoder or the disk is slower than the frames

    @property
    def receivers(self) -> int:
        return int(self._thread is not None and not self._why_ended)

    def describe(self) -> str:
        where = self.path or self.name or self._chosen.folder
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        ended = f", ended: {self._why_ended}" if self._why_ended else ""
        return f"recording {where}, {self.written} frames{dropped}{ended}"

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        while thread.is_alive():
            try:
                self._waiting.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        thread.join(10.0)

    def _write_all(self) -> None:
        try:
            first = self._waiting.get()
            if first is None:
                return
            self.path = self._free_path()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(self.path), "w") as container:
                self._write_film(container, first)
        except (av.FFmpegError, OSError, ValueError) as error:
            self._why_ended = getattr(error, "strerror", None) or str(error)
            what = f"the film {self.path} ended after {self.written} frames: {self._why_ended}"
            self.fault = SdbridgeError("SDB-RECORDING-ENDED", what)
        else:
            log.info("recording: %s has %d frames", self.path, self.written)

    def _write_film(self, container: Any, first: tuple[np.ndarray, int]) -> None:
        pixels, at_ms = first
        height, width = (max(2, side + side % 2) for side in pixels.shape[:2])  # 4:2:0 needs even sides
        stream = container.add_stream(
            self._chosen.codec, rate=Fraction(self._chosen.fps).limit_denominator(1001)
        )
        stream.width, stream.height = width, height
        stream.codec_context.time_base = _TIME_BASE
        formats = stream.codec_context.codec.video_formats or ()
        names = [candidate.name for candidate in formats]
        stream.pix_fmt = next((name for name in ("yuv420p", "yuv422p10le") if name in names), "yuv420p")
        if self._chosen.codec in ("libx264", "libx265"):
            stream.options = {"crf": str(self._chosen.quality), "preset": self._chosen.preset}
        last_ms = -1
        item: tuple[np.ndarray, int] | None = first
        while item is not None:
            pixels, at_ms = item
            at_ms = max(at_ms, last_ms + 1)  # a film's times must rise
            picture = av.VideoFrame.from_numpy_buffer(fit_frame(pixels, width, height, _Keep()), "rgba")
            converted = scaler().reformat(picture, format=stream.pix_fmt, threads=1)
            converted.pts, converted.time_base = at_ms, _TIME_BASE
            container.mux(stream.encode(converted))
            last_ms = at_ms
            self.written += 1
            item = self._waiting.get()
        container.mux(stream.encode())

    def _free_path(self) -> Path:
        """A file that does not exist yet."""
        if self.name.endswith(_ENDINGS):
            wanted = Path(self.name)
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            wanted = Path(self._chosen.folder) / f"{_plain(self.name) or 'sdbridge'}-{stamp}.mkv"
        path, number = wanted, 2
        while path.exists():
            path = wanted.with_stem(f"{wanted.stem}-{number}")
            number += 1
        return path


def _plain(name: str) -> str:
    """A name without what file systems dislike."""
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in name).strip()
