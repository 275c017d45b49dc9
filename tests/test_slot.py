"""The mailboxes: newest wins, drops are exact, nothing is torn, and the creator alone removes the block."""

import contextlib
import gc
import multiprocessing
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.slot import LatestSlot, SharedSlot


def frame(number: int, width: int = 8, height: int = 4) -> Frame:
    return Frame(np.full((height, width, 4), number % 256, np.uint8), number, 1000 + number, 2000 + number)


def test_a_thread_slot_gives_the_newest_and_counts_the_rest():
    slot: LatestSlot[int] = LatestSlot()
    assert slot.take() is None
    for number in (1, 2, 3):
        slot.put(number)
    assert slot.take() == 3
    assert slot.take() is None
    assert (slot.writes, slot.drops) == (3, 2)


def test_a_waiting_thread_is_woken_by_a_frame_and_by_the_end():
    slot: LatestSlot[int] = LatestSlot()
    threading.Timer(0.01, slot.put, [7]).start()
    assert slot.take(timeout_s=10) == 7
    threading.Timer(0.01, slot.close).start()
    assert slot.take(timeout_s=10) is None


def test_what_is_written_is_read_whole():
    with SharedSlot.create(8 * 4 * 4) as slot, SharedSlot.attach(slot.name) as reader:
        assert reader.take() is None
        slot.write(frame(5))
        taken = reader.take()
        assert taken is not None
        assert (taken.frame_id, taken.received_at_ns, taken.revision) == (5, 1005, 2005)
        assert taken.pixels.shape == (4, 8, 4) and np.all(taken.pixels == 5)
        assert taken.pixels.flags.owndata and taken.pixels.flags.c_contiguous
        assert reader.take() is None


def test_waiting_is_one_until_the_counting_reader_took_the_newest():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        assert slot.waiting == 0
        slot.write(frame(1))
        slot.write(frame(2))
        assert slot.waiting == 1
        assert reader.take() is not None
        assert slot.waiting == 0


def test_drops_are_exact_while_reading_and_while_nobody_reads():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        for number in range(1, 6):
            slot.write(frame(number))
        assert slot.drops == 4
        taken = reader.take()
        assert taken is not None and taken.frame_id == 5
        assert (slot.writes, slot.drops) == (5, 4)
        slot.write(frame(6))
        assert slot.drops == 4
        slot.write(frame(7))
        assert slot.drops == 5


def test_an_onlooker_reads_without_counting():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name, counting=False) as onlooker:
        slot.write(frame(1))
        slot.write(frame(2))
        assert onlooker.take() is not None
        assert slot.drops == 1  # nobody who counts took either


def test_the_layout_is_the_pinned_one():
    """Read with struct from the words of the design, not with the code under test."""
    with SharedSlot.create(100) as slot:
        slot.write(frame(1, width=2, height=3))
        slot.write(frame(2, width=2, height=3))
        memory = bytes(slot._memory)
    magic, version, capacity, buffers, latest = struct.unpack_from("<8s4I", memory, 0)
    writes, drops = struct.unpack_from("<2Q", memory, 24)
    assert (magic, version, capacity, buffers, writes, drops) == (b"SDBSLOT1", 1, 128, 3, 2, 0)
    start = 64 + latest * (64 + capacity)
    sequence, frame_id, received, revision, width, height = struct.unpack_from("<4Q2I", memory, start)
    assert sequence % 2 == 0
    assert (frame_id, received, revision, width, height) == (2, 1002, 2002, 2, 3)
    assert memory[start + 64 : start + 64 + 24] == bytes([2]) * 24


def test_memory_is_used_again_but_never_while_anyone_holds_a_part_of_it():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        held, places = [], set()
        for number in range(1, 40):
            slot.write(frame(number))
            taken = reader.take()
            assert taken is not None
            places.add(taken.pixels.ctypes.data)
            held = [*held[-2:], (number, taken.pixels[1:3])]  # views of the last three
            del taken
            assert all((view == kept).all() for kept, view in held)
        assert len(places) <= 5


def test_a_borrowed_frame_stays_whole_whatever_is_written_meanwhile():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        assert reader.borrow() is None
        slot.write(frame(1))
        for number in range(2, 50):
            borrowed = reader.borrow()
            assert borrowed is not None and borrowed.frame_id == number - 1
            assert not borrowed.pixels.flags.writeable
            copy = borrowed.pixels.copy()
            for again in (100, 101, 102, 103, number):
                slot.write(frame(again))
            assert (borrowed.pixels == copy).all() and (copy == number - 1).all()
            del borrowed
        assert slot.writes == 1 + 48 * 5
        assert slot.drops == 48 * 4
        del copy


def test_a_borrowed_frame_is_good_until_the_next_and_then_until_it_is_written_over():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        slot.write(frame(1))
        first = reader.borrow()
        assert first is not None and first.loan is not None
        for number in range(2, 20):
            slot.write(frame(number))
        assert first.loan.whole()
        second = reader.borrow()
        assert second is not None and first.loan.whole()  # written over only by the writes to come
        kept = first.own()
        slot.write(frame(20))
        slot.write(frame(21))
        assert not first.loan.whole() and second.loan.whole()
        assert kept is not None and kept.loan is None and (kept.pixels == 1).all()
        assert first.own().pixels is kept.pixels  # the copy that was made in time serves all who ask later
        del first, second


def test_a_borrowed_frame_is_good_although_its_writer_died_in_the_middle_of_a_write():
    """At the worst instant: the mark of a write is on its buffer, and nobody will ever take it away."""
    slot = SharedSlot.create(128, counting=True)
    writer = SharedSlot.attach(slot.name, counting=False)
    writer.write(frame(1))
    borrowed = slot.borrow()
    longs, _, _ = writer._buffer(int(writer._words[5]))
    longs[0] += 1
    del longs
    writer.close()
    slot.close()
    assert borrowed.loan.whole() and (borrowed.own().pixels == 1).all()
    del borrowed


def test_a_reader_that_moves_its_mark_as_the_writer_comes_by_costs_no_frame():
    """The mark stood on the first candidate when that was looked at, and stands on the second now."""

    class Words:
        def __init__(self, words):
            self.words = words
            self.marks = [(int(words[5]) + step) % 3 + 1 for step in (1, 2)]

        def __getitem__(self, at):
            return self.marks.pop(0) if at == 13 and self.marks else self.words[at]

        def __setitem__(self, at, value):
            self.words[at] = value

    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        slot.write(frame(1))
        slot._words = Words(slot._words)
        assert slot.write(frame(2))
        assert not slot._words.marks and reader.take().frame_id == 2
        slot._words = slot._words.words


def test_an_onlooker_is_lent_a_frame_and_told_when_it_is_gone():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name, counting=False) as onlooker:
        assert onlooker.lend() is None
        slot.write(frame(1))
        lent = onlooker.lend()
        assert lent is not None and lent.frame_id == 1 and not lent.pixels.flags.writeable
        assert onlooker.lend() is None
        slot.write(frame(2))
        slot.write(frame(3))
        assert lent.loan.whole() and (lent.pixels == 1).all()
        slot.write(frame(4))
        assert not lent.loan.whole() and lent.own() is None
        del lent


class Broken:
    """A loan of a frame that changes while it is read."""

    def whole(self) -> bool:
        return False

    def copy(self) -> None:
        return None


def test_a_lent_frame_that_changes_under_the_copy_is_not_published():
    with SharedSlot.create(128) as slot, SharedSlot.attach(slot.name) as reader:
        slot.write(frame(1))
        lent = frame(2)
        assert not slot.write(Frame(lent.pixels, 2, 0, 0, Broken()))
        assert (slot.writes, slot.drops) == (1, 0)
        assert reader.take().frame_id == 1
        assert reader.take() is None and reader.borrow() is None
        for number in (3, 4, 5, 6):
            slot.write(frame(number))
        assert reader.take().frame_id == 6 and (slot.writes, slot.drops) == (5, 3)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_lent_frames_that_outlive_their_slot_leak_nothing_and_complain_of_nothing(recwarn, monkeypatch):
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def once():
        slot = SharedSlot.create(128, counting=True)
        with SharedSlot.attach(slot.name, counting=False) as writer:
            writer.write(frame(1))
        lent = slot.borrow()
        slot.close()
        del slot
        gc.collect()
        assert (lent.pixels == 1).all()

    def held():
        with open("/proc/self/maps") as maps:
            return sum(map(is_block, os.listdir("/proc/self/fd"))), sum("sdb_" in line for line in maps)

    def is_block(descriptor):  # others come and go with the threads of tests before this one
        with contextlib.suppress(OSError):
            return "sdb_" in os.readlink(f"/proc/self/fd/{descriptor}")
        return False

    once()
    gc.freeze()  # what other tests imported would be searched 20 times
    try:
        before = held()
        for _ in range(20):
            once()
        assert held() == before and not complaints
    finally:
        gc.unfreeze()


def test_a_frame_still_borrowed_when_the_slot_closes_can_be_read_to_its_end():
    slot = SharedSlot.create(128)
    reader = SharedSlot.attach(slot.name)
    slot.write(frame(9))
    borrowed = reader.borrow()
    reader.close()
    slot.close()
    assert borrowed is not None and (borrowed.pixels == 9).all()
    del borrowed


def test_a_block_that_claims_more_than_it_holds_is_refused():
    with SharedSlot.create(64) as slot:
        slot._words[3] = 1 << 30
        with pytest.raises(SdbridgeError, match=r"SDB-SLOT-LAYOUT: .* is shorter than it says"):
            SharedSlot.attach(slot.name)


def test_a_frame_that_is_too_large_is_refused_with_its_numbers():
    with SharedSlot.create(64) as slot:
        with pytest.raises(SdbridgeError, match=r"SDB-SLOT-SIZE: a frame of 8x4 needs 128 bytes.*holds 64"):
            slot.write(frame(1))
        assert not slot.fits(frame(1))


def test_sizes_may_change_within_the_capacity():
    with SharedSlot.create(1024) as slot, SharedSlot.attach(slot.name) as reader:
        for width, height in ((2, 2), (16, 16), (1, 3)):
            slot.write(frame(9, width, height))
            taken = reader.take()
            assert taken is not None and (taken.width, taken.height) == (width, height)


def test_a_block_that_is_no_slot_is_refused():
    with SharedSlot.create(64) as slot:
        slot._memory[:8] = b"SDBSLOT9"
        with pytest.raises(SdbridgeError, match="SDB-SLOT-LAYOUT"):
            SharedSlot.attach(slot.name)


def test_closing_twice_and_using_a_closed_slot_are_harmless():
    slot = SharedSlot.create(128)
    name = slot.name
    slot.close()
    slot.close()
    assert slot.take() is None and slot.write(frame(1)) is False
    with pytest.raises(FileNotFoundError):
        SharedSlot.attach(name)


def test_a_foreign_process_that_attached_and_died_takes_nothing_with_it():
    """Before Python 3.13 the resource tracker of whoever attached would unlink the block."""
    code = textwrap.dedent("""
        import sys
        from sdbridge.slot import SharedSlot
        with SharedSlot.attach(sys.argv[1]) as slot:
            print(slot.take().frame_id)
    """)
    with SharedSlot.create(128) as slot:
        slot.write(frame(3))
        done = subprocess.run(
            [sys.executable, "-c", code, slot.name], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout.strip(), done.stderr) == ("3", "")
        SharedSlot.attach(slot.name).close()  # still there


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="looks into /dev/shm")
def test_a_creator_that_is_killed_leaves_no_block():
    code = textwrap.dedent("""
        import time
        from sdbridge.slot import SharedSlot
        slot = SharedSlot.create(1 << 16)
        print(slot.name, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert os.path.exists(f"/dev/shm/{name}")
        child.kill()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/dev/shm/{name}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/dev/shm/{name}")


def write_checked_frames(name: str, capacity_side: int, seconds: float) -> None:
    """Child: random whole frames of changing size, each with its own checksum as frame id."""
    slot = SharedSlot.attach(name, counting=False)
    random = np.random.default_rng(1)
    pool = random.integers(0, 256, capacity_side * capacity_side * 4 + 4096, np.uint8)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        side = int(random.integers(capacity_side // 2, capacity_side + 1))
        start = int(random.integers(0, 4096))
        pixels = pool[start : start + side * side * 4].reshape(side, side, 4)
        slot.write(Frame(pixels, zlib.crc32(pixels), side))
    slot.close()


def read_checked_frames(seconds: float, side: int = 256, borrow: bool = False) -> int:
    with SharedSlot.create(side * side * 4) as slot, SharedSlot.attach(slot.name) as reader:
        child = multiprocessing.get_context("spawn").Process(
            target=write_checked_frames, args=(slot.name, side, seconds), daemon=True
        )
        child.start()
        good = 0
        while child.is_alive():
            taken = reader.borrow() if borrow else reader.take()
            if taken is not None:
                assert taken.width == taken.received_at_ns, "header and pixels of different frames"
                assert zlib.crc32(taken.pixels) == taken.frame_id, "a torn frame"
                good += 1
            taken = None  # a view of shared memory must not outlive its slot
        child.join()
        assert child.exitcode == 0
        # The writer is done, so every frame was taken, dropped, or still lies there.
        good += reader.take() is not None
        assert good + slot.drops == slot.writes
        return good


@pytest.mark.parametrize("borrow", [False, True], ids=["copied", "borrowed"])
def test_no_frame_is_torn_between_processes_at_full_speed(borrow):
    assert read_checked_frames(seconds=2, borrow=borrow) > 20


def pass_on_lent_frames(seconds: float, side: int = 256) -> int:
    """A source at full speed, its frames copied from where they lie into a slot, and looked at there."""
    capacity = side * side * 4
    passed = broken = 0
    with (
        SharedSlot.create(capacity) as source,
        SharedSlot.attach(source.name, counting=False) as onlooker,
        SharedSlot.create(capacity) as slot,
        SharedSlot.attach(slot.name) as reader,
    ):
        child = multiprocessing.get_context("spawn").Process(
            target=write_checked_frames, args=(source.name, side, seconds), daemon=True
        )
        child.start()
        while child.is_alive():
            lent = onlooker.lend()
            if lent is None:
                continue
            if not slot.write(lent):
                broken += 1
                continue
            lent = None
            taken = reader.borrow()
            assert taken is not None and zlib.crc32(taken.pixels) == taken.frame_id, "a torn frame"
            passed += 1
            taken = None
        child.join()
        assert slot.writes == passed
    return passed


def test_no_frame_is_torn_on_its_way_from_a_source_s_memory_into_a_slot():
    assert pass_on_lent_frames(seconds=2) > 20


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_frame_is_torn_from_a_source_s_memory_into_a_slot_for_a_minute():
    assert pass_on_lent_frames(seconds=60, side=512) > 1000


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("borrow", [False, True], ids=["copied", "borrowed"])
def test_no_frame_is_torn_between_processes_for_a_minute(borrow):
    assert read_checked_frames(seconds=60, side=512, borrow=borrow) > 1000
