"""Frames between programs through shared memory: whole, newest first, and met again after a restart."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.slot import SharedSlot
from sdbridge.textures.shared_memory import FrameReader, FrameWriter, Receiver, Sender, block_name
from sdbridge.textures.test_card import TestCard, read_number

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys, time, numpy as np
from sdbridge.textures.shared_memory import FrameWriter
heavy = {name.split(".")[0] for name in sys.modules} & {"torch", "diffusers", "av", "starlette", "pydantic"}
assert not heavy, heavy
pixels = np.full((48, 64, 4), int(sys.argv[2]), np.uint8)
with FrameWriter(sys.argv[1], 64, 48) as writer:
    print("up", flush=True)
    while True:
        writer.write(pixels)
        time.sleep(0.005)
"""


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"test {request.node.name} {time.monotonic_ns()}"


def start_writer(name: str, value: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(value)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline().strip() == "up"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_another_python_program_writes_without_heavy_imports_and_is_met_again_after_a_kill(name: str) -> None:
    first = start_writer(name, 11)
    with Receiver(name, {}) as receiver:
        pixels = receiver.receive(60.0)
        assert pixels.shape == (48, 64, 4) and (pixels == 11).all()
        assert receiver.connected and "64x48" in receiver.describe()
        end(first)  # killed: its block is left behind
        second = start_writer(name, 22)  # and taken over here
        try:
            deadline = time.monotonic() + 60
            while pixels is None or pixels[0, 0, 0] != 22:
                pixels = receiver.receive(0.1)
                assert time.monotonic() < deadline
        finally:
            end(second)
    with FrameWriter(name):
        pass  # clears what the kill left


def test_sender_to_reader_keeps_pixels_numbers_and_times(name: str) -> None:
    with Sender(name, {"max_width": 320, "max_height": 240}) as sender, FrameReader(name) as reader:
        card = TestCard(320, 240).draw(77)
        sender.send(Frame(card, 77, 123, 9), {})
        frame = reader.read(1.0)
        assert (frame.pixels == card).all()
        assert (frame.frame_id, frame.received_at_ns, frame.revision) == (77, 123, 9)
        assert reader.read(0.0) is None, "a frame is read once"
        assert block_name(name) in sender.describe() and "320x240" in sender.describe()


def test_only_the_newest_is_read(name: str) -> None:
    with FrameWriter(name, 64, 64) as writer, FrameReader(name) as reader:
        for value in (1, 2, 3):
            writer.write(np.full((8, 8, 4), value, np.uint8))
        assert (reader.read(1.0).pixels == 3).all()


def test_a_frame_larger_than_the_room_is_made_smaller(name: str) -> None:
    with Sender(name, {"max_width": 256, "max_height": 256}) as sender, FrameReader(name) as reader:
        sender.send(Frame(TestCard(1024, 512).draw(3), 3, 0), {})
        frame = reader.read(1.0)
        assert (frame.width, frame.height) == (256, 128) and read_number(frame.pixels) == 3


def test_a_writer_that_starts_again_in_the_same_process_is_met(name: str) -> None:
    with FrameReader(name) as reader:
        for value in (1, 2):
            with FrameWriter(name, 8, 8) as writer:
                writer.write(np.full((8, 8, 4), value, np.uint8))
                assert (reader.read(3.0).pixels == value).all()


def test_the_last_frame_of_a_killed_writer_is_nothing_new(name: str) -> None:
    writer = start_writer(name, 5)
    end(writer)
    with Receiver(name, {}) as receiver:
        assert receiver.receive(0.6) is None and not receiver.connected
    with FrameWriter(name):
        pass  # clears what the kill left


def test_two_writers_of_one_name_are_refused(name: str) -> None:
    with FrameWriter(name, 8, 8), pytest.raises(SdbridgeError, match="SDB-TEXTURE-NAME"):
        Sender(name, {}).open()


def test_nobody_and_a_foreign_block_give_none(name: str) -> None:
    from multiprocessing import shared_memory

    with Receiver(name, {}) as receiver:
        assert receiver.receive(0.05) is None
        assert not receiver.connected and "waiting" in receiver.describe()
    block = shared_memory.SharedMemory(block_name(name), create=True, size=4096)
    try:
        block.buf[:8] = b"whatever"
        with Receiver(name, {}) as receiver:
            assert receiver.receive(0.3) is None
    finally:
        block.close()
        block.unlink()


def test_a_block_that_lies_about_its_size_gives_none(name: str) -> None:
    slot = SharedSlot.create(8 * 8 * 4, block_name(name))
    try:
        slot.write(Frame(np.zeros((8, 8, 4), np.uint8), 1, 0))
        for buffer in range(3):
            slot._buffer(buffer)[1][8:10] = 60_000
        with Receiver(name, {}) as receiver:
            assert receiver.receive(0.1) is None
    finally:
        slot.close()


def test_names_are_short_plain_and_different() -> None:
    assert block_name("sdbridge") == "sdbtex_sdbridge"
    awkward = ["a b", "a_b", "a/b", "Bühne", "x" * 60, "x" * 61, ""]
    names = [block_name(name) for name in awkward]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 30 and "/" not in name and name.isascii() for name in names)
