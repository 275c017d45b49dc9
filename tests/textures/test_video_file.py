"""Films and pictures made here on the fly: played at their rate, looped, and never fatal when bad."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from sdbridge.textures.image_file import Receiver as ImageReceiver
from sdbridge.textures.test_card import TestCard, read_number
from sdbridge.textures.video_file import Receiver, _camera_address, _is_live

FRAMES = 8


def make_film(path: Path, frames: int = FRAMES, fps: int = 40, codec: str = "mpeg4") -> Path:
    card = TestCard(320, 192)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 192, "yuv420p", 8_000_000
        for number in range(frames):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(card.draw(number)[..., :3].copy(), "rgb24"))
            )
        container.mux(stream.encode())
    return path


def make_picture(path: Path, pixels: np.ndarray) -> Path:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgba")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def play() -> Iterator[Callable[..., Receiver]]:
    opened: list[Receiver] = []

    def start(name: object, **options: object) -> Receiver:
        receiver = Receiver(str(name), options)
        receiver.open()
        opened.append(receiver)
        return receiver

    yield start
    for receiver in opened:
        receiver.close()


def frame_from(receiver: Receiver, seconds: float = 15.0) -> np.ndarray:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pixels = receiver.receive(0.1)
        if pixels is not None:
            return pixels
    raise AssertionError(receiver.describe())


def test_a_film_is_played_in_order_and_looped(tmp_path: Path, play) -> None:
    receiver = play(make_film(tmp_path / "loop.mp4"))
    first = frame_from(receiver)
    assert first.shape == (192, 320, 4) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert receiver.connected and "320x192 at 40 fps" in receiver.describe()
    numbers = [read_number(first)] + [read_number(frame_from(receiver)) for _ in range(2 * FRAMES)]
    steps = [(after - before) % FRAMES for before, after in pairwise(numbers)]
    assert any(after < before for before, after in pairwise(numbers)), "it loops"
    assert steps.count(1) > len(steps) / 2, f"in order, perhaps with drops: {numbers}"


def test_without_loop_it_ends_and_says_so(tmp_path: Path, play) -> None:
    receiver = play(make_film(tmp_path / "once.mp4", 3), loop=False)
    frame_from(receiver)
    end = time.monotonic() + 60
    while receiver.connected:
        receiver.receive(0.02)
        assert time.monotonic() < end
    assert "it has ended" in receiver.describe()
    assert receiver.receive(0.0) is None


def test_a_missing_file_is_waited_for_and_played_when_it_appears(tmp_path: Path, play, monkeypatch) -> None:
    monkeypatch.setattr("sdbridge.textures.video_file._RETRY_S", 0.05)
    path = tmp_path / "later.mp4"
    receiver = play(path)
    assert receiver.receive(0.1) is None
    assert not receiver.connected and "No such file" in receiver.describe()
    make_film(tmp_path / "made.mp4").rename(path)
    frame_from(receiver)
    assert receiver.connected


@pytest.mark.parametrize(
    "content", [b"", b"not a film at all" * 1000, b"\x00\x00\x00\x18ftypmp42" + b"\xff" * 5000]
)
def test_garbage_is_said_and_gives_none(tmp_path: Path, play, content: bytes) -> None:
    path = tmp_path / "garbage.mp4"
    path.write_bytes(content)
    receiver = play(path)
    assert receiver.receive(0.3) is None
    assert not receiver.connected and "waiting" in receiver.describe()


def test_a_film_cut_short_plays_what_is_there(tmp_path: Path, play) -> None:
    whole = make_film(tmp_path / "whole.mpg", codec="mpeg2video", fps=25).read_bytes()
    path = tmp_path / "short.mpg"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert frame_from(play(path)).shape == (192, 320, 4)


def test_a_stream_over_http_is_received_and_its_end_survived(tmp_path: Path, play) -> None:
    make_film(tmp_path / "stream.ts", frames=30, codec="mpeg2video", fps=25)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: handler(*arguments, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        receiver = play(f"http://127.0.0.1:{server.server_address[1]}/stream.ts")
        assert frame_from(receiver).shape == (192, 320, 4)
        nobody = play("rtsp://127.0.0.1:1/nothing", timeout_s=1)
        assert nobody.receive(0.2) is None and not nobody.connected
    finally:
        server.shutdown()
        server.server_close()


def test_what_pyav_cannot_open_names_the_program_that_can(play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    receiver = play("carrier-pigeon://127.0.0.1/film")
    end = time.monotonic() + 60
    while "ffmpeg installed" not in receiver.describe() and time.monotonic() < end:
        receiver.receive(0.05)
    assert "knows no carrier-pigeon" in receiver.describe() and not receiver.connected


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs Debian's ffmpeg")
def test_an_rtsp_stream_is_received(tmp_path: Path, play) -> None:
    film = make_film(tmp_path / "film.mp4", frames=25, fps=25)
    command = [sys.executable, str(Path(__file__).parent / "peers" / "rtsp_server.py"), str(film)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            receiver = play(f"rtsp://127.0.0.1:{server.stdout.readline().strip()}/film")
            numbers = {read_number(frame_from(receiver, 30)) for _ in range(50)}  # two rounds of the film
            assert len(numbers - {None}) >= 10, "it moves"
            assert "320x192" in receiver.describe()
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its ffmpeg too


def speaks_srt() -> bool:
    if not shutil.which("ffmpeg"):
        return False
    done = subprocess.run(["ffmpeg", "-hide_banner", "-protocols"], capture_output=True, text=True)
    return "srt" in done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(not speaks_srt(), reason="needs an ffmpeg that speaks SRT")
@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_an_srt_stream_comes_by_way_of_ffmpeg_and_is_met_again(codec: str, play) -> None:
    """PyAV's own FFmpeg has no SRT."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"srt://127.0.0.1:{free.getsockname()[1]}"
    film = ["-re", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-c:v", codec, "-g", "25"]
    send = ["ffmpeg", "-nostdin", "-loglevel", "error", *film, "-f", "mpegts", f"{address}?mode=listener"]
    receiver = play(address, timeout_s=2)
    for _ in range(2):
        with subprocess.Popen(send) as source:
            try:
                for _ in range(10):
                    assert frame_from(receiver, 40).shape == (240, 320, 4)
            finally:
                source.kill()
        end = time.monotonic() + 40
        while receiver.connected and time.monotonic() < end:
            receiver.receive(0.1)
        assert not receiver.connected, "the end of the source is noticed"
    receiver.close()
    assert not [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


def test_no_name_and_close_twice_are_harmless(play) -> None:
    receiver = play("")
    assert receiver.receive(0.05) is None
    receiver.close()
    receiver.close()
    assert receiver.receive(0.0) is None


def test_cameras_and_streams_are_told_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _is_live("rtsp://x/1") and _is_live("camera:0") and _is_live("/dev/video0")
    assert not _is_live("clip.mp4") and not _is_live("C:/clips/a.mov")
    monkeypatch.setattr("sys.platform", "linux")
    assert _camera_address("camera:2") == "/dev/video2"
    monkeypatch.setattr("sys.platform", "win32")
    assert _camera_address("camera:Logitech") == "video=Logitech"
    monkeypatch.setattr("sys.platform", "darwin")
    assert _camera_address("camera:0") == "0"


def test_a_picture_is_given_with_its_alpha_and_read_again_when_it_changes(tmp_path: Path) -> None:
    pixels = TestCard(64, 48).draw(5)
    pixels[:10, :, 3] = 99
    path = make_picture(tmp_path / "still.png", pixels)
    clock = StepClock()
    receiver = ImageReceiver(str(path), {"fps": 10})
    receiver.clock = clock
    with receiver:
        given = receiver.receive(1.0)
        assert (given == pixels).all() and "64x48" in receiver.describe()
        given[:] = 0
        assert (receiver.receive(1.0) == pixels).all(), "what the caller got is the caller's"
        path.write_bytes(b"half written")
        clock.ns += 1_000_000_000
        assert (receiver.receive(1.0) == pixels).all(), "a broken file leaves the good picture"
        make_picture(path, pixels[:20].copy())
        clock.ns += 1_000_000_000
        assert receiver.receive(1.0).shape == (20, 64, 4)


def test_a_missing_picture_is_said(tmp_path: Path) -> None:
    with ImageReceiver(str(tmp_path / "none.png"), {"fps": 240}) as receiver:
        assert receiver.receive(0.1) is None and receiver.receive(0.1) is None
        assert not receiver.connected and "No such file" in receiver.describe()


class StepClock:
    """A clock that moves only when someone sleeps or the test says so."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += max(0, round(seconds * 1e9))
