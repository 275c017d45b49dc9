"""A still picture as a source: read once, again whenever the file changes, given at a steady rate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.textures import stub
from sdbridge.textures.geometry import scaler
from sdbridge.textures.options import option, read_options
from sdbridge.textures.pace import Pace

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class ImageFileOptions:
    """How often the picture is given: the engine may make something new of it each time."""

    fps: float = option(30.0, low=0.1, high=240)


class Receiver(stub.Receiver):
    """A missing or half-written file is looked at again; a good picture stays until a better comes."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._pace = Pace(30.0, self.clock)
        self._picture: np.ndarray | None = None
        self._why = "it was not read yet"
        self._seen: tuple[int, int] | None = None
        self._last_look_ns: int | None = None
        self._open = False

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "PyAV reads png, jpeg, webp, bmp and tiff"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return ()

    def open(self) -> None:
        self._pace = Pace(read_options(ImageFileOptions, self.options, "image_file").fps, self.clock)
        self._open = True

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if not self._open:
            return None
        now = self.clock.now_ns()
        if self._last_look_ns is None or now - self._last_look_ns > _LOOK_EVERY_S * 1e9:
            self._last_look_ns = now
            self._look()
        if self._pace.wait(timeout_s) is None or self._picture is None:
            return None
        return self._picture.copy()

    @property
    def connected(self) -> bool:
        return self._picture is not None

    def describe(self) -> str:
        if self._picture is None:
            return f"picture {self.name}, waiting: {self._why}"
        height, width = self._picture.shape[:2]
        return f"picture {self.name}, {width}x{height}"

    def close(self) -> None:
        self._picture = None
        self._seen = None
        self._open = False

    def _look(self) -> None:
        try:
            state = Path(self.name).stat()
        except OSError as error:
            self._why = error.strerror or str(error)
            return
        mark = (state.st_mtime_ns, state.st_size)
        if mark == self._seen:
            return
        try:
            self._picture = read_picture(self.name)
            self._seen = mark
            log.info("image_file: read %s", self.describe())
        except (av.FFmpegError, OSError, ValueError) as error:
            self._why = str(error)


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as uint8 RGBA. Raises av.FFmpegError, OSError or ValueError, each saying why."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("there is no picture in it")
        for frame in container.decode(video=0):
            return np.asarray(scaler().reformat(frame, format="rgba").to_ndarray())
    raise ValueError("there is no picture in it")
