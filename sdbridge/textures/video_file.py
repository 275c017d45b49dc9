"""Films, cameras and streams by PyAV: at their own rate, looped, opened again when they break off."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.slot import LatestSlot
from sdbridge.textures import stub
from sdbridge.textures.ffmpeg_relay import FfmpegRelay
from sdbridge.textures.geometry import scaler
from sdbridge.textures.options import option, read_options

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_LATE_S = 0.25  # further behind its time than this, a film goes on from now instead of hurrying
_CAMERA_FORMATS = {"linux": "v4l2", "win32": "dshow", "darwin": "avfoundation"}
_NETWORK = ("rtsp", "rtsps", "rtmp", "srt", "udp", "rtp", "http", "https")


@dataclass(frozen=True)
class VideoFileOptions:
    """``format`` is FFmpeg's name of a device or container; ``rtsp_transport`` is tcp or udp."""

    loop: bool = option(True)
    format: str = option("")
    fps: float = option(0.0, low=0, high=240)
    size: str = option("")
    rtsp_transport: str = option("tcp", choices=("tcp", "udp"))
    timeout_s: float = option(5.0, low=0.5, high=60)


class Receiver(stub.Receiver):
    """Reads in a thread of its own, since a stream may keep a reader waiting for seconds.

    ``name`` is a file, an address (rtsp, srt, http, ...), or ``camera:N`` or ``/dev/videoN``. What
    cannot be opened or breaks off is tried again every second. ``fps`` 0 is the source's own rate;
    for a file another number plays it faster or slower, for a camera it asks for that mode.
    """

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._chosen = VideoFileOptions()
        self._slot: LatestSlot[np.ndarray] = LatestSlot()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._relay: FfmpegRelay | None = None
        self._playing = ""
        self._why = "closed"

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, f"PyAV {av.__version__} reads files, cameras and streams"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        camera_format = _CAMERA_FORMATS.get(sys.platform, "")
        enumerate_devices = getattr(av, "enumerate_input_devices", None)
        if enumerate_devices is None or not camera_format:
            return tuple(stub.Source(str(path), "camera") for path in sorted(Path("/dev").glob("video*")))
        try:
            return tuple(
                stub.Source(f"camera:{device.name}", f"camera {device.description}")
                for device in enumerate_devices(camera_format)
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            log.debug("video_file: no cameras can be listed: %s", error)
            return ()

    def open(self) -> None:
        self._chosen = read_options(VideoFileOptions, self.options, "video_file")
        self._ended.clear()
        self._why = "opening"
        self._slot = LatestSlot()
        self._thread = threading.Thread(target=self._play_again_and_again, name="video_file", daemon=True)
        self._thread.start()

    def receive(self, timeout_s: float) -> np.ndarray | None:
        return self._slot.take(timeout_s)

    @property
    def connected(self) -> bool:
        return bool(self._playing)

    def describe(self) -> str:
        if self._playing:
            return f"video {self.name}, {self._playing}"
        return f"video {self.name or '(no name given)'}, waiting: {self._why}"

    def close(self) -> None:
        self._ended.set()
        self._slot.close()
        if self._relay is not None:
            self._relay.kill()
        thread, self._thread = self._thread, None
        if thread is not None:
            # A read from a dead stream may take until its timeout; it is not waited for.
            thread.join(1.0)
        self._playing = ""
        self._why = "closed"

    def _play_again_and_again(self) -> None:
        while not self._ended.is_set():
            try:
                with self._opened() as container:
                    self._play(container)
                self._why = "it has ended"
                if not self._chosen.loop and not _is_live(self.name):
                    self._playing = ""
                    return
                if self._playing:
                    continue
                self._why = "there is no picture in it"
            except (av.FFmpegError, OSError, ValueError) as error:
                self._why = str(error)
                if self._playing:
                    log.warning("video_file: %s broke off: %s; trying again", self.name, error)
            self._playing = ""
            self._ended.wait(_RETRY_S)

    def _opened(self) -> Any:
        name, container_format = self.name, self._chosen.format or None
        wishes: dict[str, str] = {}
        if name.startswith(("camera:", "/dev/video")):
            container_format = container_format or _CAMERA_FORMATS.get(sys.platform)
            name = _camera_address(name)
            if self._chosen.fps:
                wishes["framerate"] = f"{self._chosen.fps:g}"
            if self._chosen.size:
                wishes["video_size"] = self._chosen.size
        elif name.startswith("rtsp"):
            wishes["rtsp_transport"] = self._chosen.rtsp_transport
        if _is_live(self.name):
            wishes["fflags"] = "nobuffer"
        timeout = (self._chosen.timeout_s, self._chosen.timeout_s)
        try:
            return av.open(name, format=container_format, options=wishes, timeout=timeout)
        except av.ProtocolNotFoundError:
            self._relay = FfmpegRelay(name, self._chosen.timeout_s)
            return self._relay

    def _play(self, container: Any) -> None:
        """All pictures of one pass, each at its time; a live source gives its own time."""
        if not container.streams.video:
            raise ValueError("there is no picture in it")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE" if _is_live(self.name) else "AUTO"  # frame threads add delay
        rate = float(stream.average_rate or 30)
        speed = self._chosen.fps / rate if self._chosen.fps and not _is_live(self.name) else 1.0
        start_ns: int | None = None
        for number, (frame, at_s) in enumerate(_timed(container.decode(stream), rate)):
            if self._ended.is_set():
                return
            if number == 0:
                self._playing = f"{frame.width}x{frame.height} at {rate * speed:.4g} fps"
            if not _is_live(self.name):
                now = self.clock.now_ns()
                if start_ns is None or now - start_ns - at_s / speed * 1e9 > _LATE_S * 1e9:
                    start_ns = now - int(at_s / speed * 1e9)
                left_s = at_s / speed - (now - start_ns) / 1e9
                if left_s > 0 and self._ended.wait(left_s):
                    return
            self._slot.put(np.asarray(scaler().reformat(frame, format="rgba").to_ndarray()))
        if start_ns is not None:
            self._ended.wait(1 / rate / speed)  # the last picture has its time too, before the first again


def _timed(frames: Iterator[Any], rate: float) -> Iterator[tuple[Any, float]]:
    """Each frame with its seconds from the first; counted where the file gives no time."""
    first: float | None = None
    for number, frame in enumerate(frames):
        at_s = frame.time
        if at_s is None:
            yield frame, number / rate
            continue
        if first is None:
            first = at_s
        yield frame, max(0.0, at_s - first)


def _is_live(name: str) -> bool:
    scheme = name.partition("://")[0].lower() if "://" in name else ""
    return name.startswith(("camera:", "/dev/video")) or scheme in _NETWORK


def _camera_address(name: str) -> str:
    device = name.removeprefix("camera:")
    if sys.platform == "win32" and not device.startswith("video="):
        return f"video={device}"
    if sys.platform.startswith("linux") and device.isdigit():
        return f"/dev/video{device}"
    return device
