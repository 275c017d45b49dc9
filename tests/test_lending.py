"""Pictures lent through the whole bridge: none is torn, whatever laps whom and whoever is killed."""

import itertools
import os
import secrets
import signal
import threading
import time

import numpy as np
import pytest

from sdbridge.bridge import Bridge
from sdbridge.config import Config
from sdbridge.engine.interface import EngineState
from sdbridge.engine.pipe import SPAWN
from sdbridge.testing import FakeReceiver, FakeSender, FakeTextures, number_of, numbered_picture
from sdbridge.textures.shared_memory import FrameReader, FrameWriter

SIDE = 256


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))


def is_whole(pixels: np.ndarray) -> bool:
    """Whether every pixel says the same number."""
    number = number_of(pixels)
    rest = pixels.reshape(-1, 4)[1:]
    return bool((rest == number % 251).all()) and pixels[0, 0, 3] == 255


def flood(name: str, seconds: float) -> None:
    """Child: pictures as fast as they can be written, which laps every reader."""
    pictures = [numbered_picture(number, SIDE, SIDE) for number in range(1, 200)]
    with FrameWriter(name, SIDE, SIDE) as writer:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for picture in pictures:
                writer.write(picture)


def config(source: str, sink: str, **more: object) -> Config:
    return Config.model_validate(
        {
            "port": 0,
            "engine": {"kind": "passthrough", "width": SIDE, "height": SIDE},
            "input": {"main": {"backend": "shared_memory", "name": source}},
            "output": [{"backend": "shared_memory", "name": sink}],
            **more,
        }
    )


def wait_until(wanted, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted()


def test_nothing_is_torn_from_a_flooding_source_to_a_reader_with_previews_and_freezes_meanwhile():
    mark = secrets.token_hex(4)
    child = SPAWN.Process(target=flood, args=(f"in{mark}", 4.0), daemon=True)
    seen = 0
    with Bridge(config(f"in{mark}", f"out{mark}"), control=False) as bridge:
        bridge.start()
        wait_until(lambda: bridge.engine.state is EngineState.STREAMING)
        child.start()
        wait_until(lambda: bridge.output.frames_made > 5)
        with FrameReader(f"out{mark}") as reader:
            frozen = False
            while child.is_alive():
                frame = reader.read(0.05)
                if frame is not None and number_of(frame.pixels) in range(1, 200):
                    assert is_whole(frame.pixels)
                    seen += 1
                for picture in (bridge.input_frame(), bridge.output_frame()):
                    assert picture is None or (picture.loan is None and is_whole(picture.pixels))
                if seen % 40 == 39:
                    frozen = not frozen
                    bridge.store.set("output.freeze", frozen)
                    seen += 1
            held = reader.read(0.5)  # the source is gone, the last picture is repeated
            assert held is not None and is_whole(held.pixels)
        child.join()
        assert child.exitcode == 0
    assert seen > 30


def test_a_killed_engine_leaves_the_picture_on_the_air_whole_and_unchanged():
    receiver = FakeReceiver("main", {"fps": 200.0, "width": SIDE, "height": SIDE})
    sender = FakeSender("out", {"keep": 5000})
    given = config("", "").model_copy(update={"parameters": {"output.fps": 100}})
    textures = FakeTextures({"main": receiver}, [sender])
    with Bridge(given, textures=textures, control=False) as bridge:
        bridge.start()
        for _kill in range(3):
            wait_until(lambda: bridge.engine.state is EngineState.STREAMING)
            made = bridge.output.frames_made
            wait_until(lambda made=made: bridge.output.frames_made > made + 20)
            before = bridge.engine.restarts
            os.kill(bridge.engine.client.process_id, signal.SIGKILL)
            wait_until(lambda before=before: bridge.engine.restarts > before)
        wait_until(lambda: bridge.engine.state is EngineState.STREAMING)
        made = bridge.output.frames_made
        wait_until(lambda: bridge.output.frames_made > made + 20)
    pictures = [
        (frame, about)
        for frame, about in zip(sender.frames, sender.abouts, strict=True)
        if about["source_frame"]
    ]
    assert all(is_whole(frame.pixels) for frame, _ in pictures)
    repeats = [
        (number_of(before.pixels), number_of(after.pixels))
        for (before, _), (after, about) in itertools.pairwise(pictures)
        if about["new"] == "0"
    ]
    assert len(repeats) > 20 and all(before == after for before, after in repeats)


def test_a_sender_too_slow_for_the_engine_shows_newer_pictures_and_whole_ones():
    class Slow(FakeSender):
        def send(self, frame, about):
            time.sleep(0.05)
            super().send(frame, about)

    receiver = FakeReceiver("main", {"fps": 300.0, "width": SIDE, "height": SIDE})
    sender = Slow("out", {})
    textures = FakeTextures({"main": receiver}, [sender])
    with Bridge(config("", ""), textures=textures, control=False) as bridge:
        bridge.start()
        wait_until(lambda: bridge.output.frames_made > 150)
        assert threading.active_count() < 60
    numbers = [
        number_of(f.pixels) for f, a in zip(sender.frames, sender.abouts, strict=True) if a["new"] == "1"
    ]
    assert numbers == sorted(numbers) and len(numbers) > 3
    assert all(
        is_whole(f.pixels) for f, a in zip(sender.frames, sender.abouts, strict=True) if a["source_frame"]
    )
