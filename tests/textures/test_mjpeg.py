"""MJPEG over a real HTTP server: pictures arrive, nobody watching costs nothing, slow viewers harm no one."""

import asyncio
import http.client
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
import uvicorn

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures.mjpeg import Sender
from sdbridge.textures.test_card import TestCard, read_number


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender("out", {}) as opened:
        yield opened


@pytest.fixture
def port(sender: Sender) -> Iterator[int]:
    """The sender's app on a real server, as the bridge mounts it."""
    app = sender.mounts["/output.mjpeg"]
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def wait_for(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def frame(number: int, width: int = 320, height: int = 240) -> Frame:
    return Frame(TestCard(width, height).draw(number), number, 0)


class Parts:
    """A hand-written reader of the multipart stream."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.connection.request("GET", "/output.mjpeg")
        self.answer = self.connection.getresponse()
        self.boundary = self.answer.headers.get_param("boundary").encode()

    def next(self) -> np.ndarray:
        lines = []
        while not lines or lines[-1]:
            line = self.answer.readline()
            assert line, "the stream ended"
            lines.append(line.rstrip(b"\r\n"))
            if lines == [b""]:
                lines.clear()
        assert lines[0] == b"--" + self.boundary
        length = next(
            int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")
        )
        return simplejpeg.decode_jpeg(self.answer.read(length), "RGBA")

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def watch(port: int) -> Iterator:
    """Opens viewers and closes all of them at the end."""
    opened: list[Parts] = []

    def another() -> Parts:
        opened.append(Parts(port))
        return opened[-1]

    yield another
    for parts in opened:
        parts.close()


def test_a_viewer_sees_the_last_frame_at_once_and_then_every_new_one(sender: Sender, watch) -> None:
    sender.send(frame(41), {})
    parts = watch()
    assert parts.answer.status == 200
    assert read_number(parts.next()) == 41
    for number in (42, 43):
        sender.send(frame(number), {})
        assert read_number(parts.next()) == number
    sender.send(frame(44, 200, 100), {})
    assert parts.next().shape == (100, 200, 4), "the size may change"


def test_nothing_is_encoded_while_nobody_watches(sender: Sender, watch) -> None:
    for number in range(5):
        sender.send(frame(number), {})
    assert sender.encoded == 0 and sender.receivers == 0
    parts = watch()
    parts.next()
    assert sender.receivers == 1
    parts.close()
    wait_for(lambda: sender.receivers == 0)
    encoded = sender.encoded
    sender.send(frame(9), {})
    assert sender.encoded == encoded


def test_two_viewers_share_one_encoding(sender: Sender, watch) -> None:
    one, two = watch(), watch()
    wait_for(lambda: sender.receivers == 2)
    sender.send(frame(7), {})
    assert read_number(one.next()) == read_number(two.next()) == 7
    assert sender.encoded == 1


def test_a_viewer_that_does_not_read_delays_neither_sender_nor_others(sender: Sender, watch) -> None:
    _stuck, quick = watch(), watch()
    wait_for(lambda: sender.receivers == 2)
    noise = np.random.default_rng(1).integers(0, 255, (720, 1280, 4), dtype=np.uint8)
    for number in range(40):  # far more than the socket buffers of the stuck one hold
        sender.send(Frame(noise, number, 0), {})
        assert quick.next().shape == (720, 1280, 4)


def test_close_ends_the_streams(sender: Sender, watch) -> None:
    parts = watch()
    sender.send(frame(1), {})
    parts.next()
    sender.close()
    sender.close()
    rest = parts.answer.read()
    assert rest.strip() == b"--" + parts.boundary
    wait_for(lambda: sender.receivers == 0)


def test_other_methods_are_turned_away(port: int, sender: Sender) -> None:
    for method, status in (("POST", 405), ("HEAD", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, "/output.mjpeg")
        assert connection.getresponse().status == status
        connection.close()
    assert sender.receivers == 0


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_ffmpeg_reads_the_stream(sender: Sender, port: int) -> None:
    ended = threading.Event()

    def send_cards() -> None:
        card, number = TestCard(320, 240), 0
        while not ended.wait(1 / 40):
            sender.send(Frame(card.draw(number), number, 0), {})
            number += 1

    thread = threading.Thread(target=send_cards, daemon=True)
    thread.start()
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-nostdin",
        "-f",
        "mpjpeg",
        "-i",
        f"http://127.0.0.1:{port}/output.mjpeg",
    ]
    command += ["-frames:v", "15", "-f", "rawvideo", "-pix_fmt", "rgba", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
    finally:
        ended.set()
        thread.join()
    assert done.returncode == 0, done.stderr
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, 240, 320, 4)
    numbers = [read_number(picture) for picture in pictures]
    assert len(numbers) == 15 and None not in numbers and numbers == sorted(numbers)


def test_the_number_of_viewers_is_bounded() -> None:
    sender = Sender("out", {"viewers": 1})
    sender.open()

    async def two_viewers() -> list[int]:
        statuses: list[int] = []
        never = asyncio.Event()

        async def receive() -> dict:
            await never.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        app = sender.mounts["/output.mjpeg"]
        scope = {"type": "http", "method": "GET"}
        first = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0)
        await app(scope, receive, send)
        never.set()
        await first
        return statuses

    assert asyncio.run(two_viewers()) == [200, 503]


def test_a_path_without_a_slash_is_refused() -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-OPTION"):
        Sender("out", {"path": "output.mjpeg"}).open()
    with Sender("out", {"path": "/control.mjpeg"}) as other:
        assert list(other.mounts) == ["/control.mjpeg"]
