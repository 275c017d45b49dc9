"""One engine through its real process (and through a thread): frames, changes, drain, sizes, faults, end."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sdbridge.engine.client import EngineClient, wait_for_state
from sdbridge.engine.interface import EngineConfig, EngineState
from sdbridge.engine.pipe import Wake
from sdbridge.frame import Frame
from sdbridge.parameters.table import TABLE
from sdbridge.testing import number_of, numbered_picture

SHM = Path("/dev/shm")


class Bench:
    """A client with its events kept and a way to wait for frames."""

    def __init__(self, kind="fake", in_process=False, values=None, **options):
        self.ready = Wake()
        self.events = []
        told = {**TABLE.defaults(), "width": 64, "height": 64, **(values or {})}
        self.client = EngineClient(
            EngineConfig(kind=kind, options=options),
            told,
            0,
            self.ready,
            lambda client, event, what: self.events.append((event, what)),
            in_process=in_process,
        )

    def __enter__(self):
        self.client.start()
        assert wait_for_state(self.client, EngineState.STREAMING, 60), self.events
        return self

    def __exit__(self, *_):
        self.client.stop()
        self.ready.close()

    def offer(self, number, size=64, role="main"):
        self.client.offer(role, Frame(numbered_picture(number, size, size), number, time.monotonic_ns()))

    def offer_and_see_taken(self, number):
        """A change applied after the offer means that the loop came round, and so has the frame."""
        self.offer(number)
        self.client.change({"strength": number / 1000}, number)
        self.wait(lambda: self.client.applied_revision == number)

    def frames(self, until, timeout_s=30.0, offering=False):
        """Frames as they come until one fulfils ``until``; new input all the while if ``offering``."""
        got, deadline, number = [], time.monotonic() + timeout_s, 1000
        while time.monotonic() < deadline:
            if offering:
                number += 1
                self.offer(number, self.client.size[0])
            self.ready.wait(0.02)
            frame = self.client.take()
            if frame is not None:
                got.append(frame)
                if until(frame):
                    return got
        raise AssertionError(f"not within {timeout_s} s; got {[f.frame_id for f in got]}, {self.events}")

    def control_out(self, number):
        """What leaves in the control role when picture ``number`` came in by it, and a frame after it."""
        self.offer(number, role="control")
        time.sleep(0.05)
        self.offer(1)
        self.frames(lambda f: True)
        return self.client.take("control")

    def wait(self, wanted, timeout_s=90.0):
        deadline = time.monotonic() + timeout_s
        while not wanted() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert wanted(), self.events


def painted(frame):
    """(strength as 0 to 255, seed, triggers) that the fake engine wrote."""
    return tuple(int(part) for part in frame.pixels[0, 1, :3])


@pytest.mark.parametrize("in_process", [False, True])
def test_a_frame_comes_back_generated_with_its_id_and_time(in_process):
    with Bench(in_process=in_process) as bench:
        sent_ns = time.monotonic_ns()
        bench.client.offer("main", Frame(numbered_picture(7), 7, sent_ns))
        frame = bench.frames(lambda f: True)[0]
        assert (frame.frame_id, frame.received_at_ns, number_of(frame.pixels)) == (7, sent_ns, 7)
        assert frame.pixels[5, 5, 0] == 255 - 7


def test_the_client_knows_where_the_time_of_a_start_went():
    with Bench(load_s=0.05) as bench:
        parts = bench.client.start_parts_s
    assert parts["all"] > parts["load"] == 0.05 and parts.keys() == {"imports", "load", "warm_up", "all"}


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_a_change_sent_before_a_frame_shows_in_that_frame(kind):
    """With a new value before every frame and no waiting, through the real process."""
    with Bench(kind) as bench:
        seen = []
        for step in range(1, 241):
            bench.client.change({"strength": step / 255}, step)
            bench.offer(step)
            bench.ready.wait(0.003)
            frame = bench.client.take()
            seen += [frame] if frame is not None else []
        if not seen or seen[-1].frame_id < 240:
            seen += bench.frames(lambda f: f.frame_id == 240)
        assert len(seen) > 20
        for frame in seen:
            assert painted(frame)[0] >= frame.frame_id, "a frame older than the change before it"
            assert frame.revision >= frame.frame_id
        bench.wait(lambda: bench.client.applied_revision == 240)


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_the_values_of_a_bundle_arrive_in_the_same_frame(kind):
    with Bench(kind) as bench:
        for step in range(1, 200):
            bench.client.change({"strength": step / 255, "seed.1.value": step}, step)
            bench.offer(step)
            bench.ready.wait(0.002)
            frame = bench.client.take()
            if frame is not None:
                strength, seed, _ = painted(frame)
                assert strength == seed or frame.revision == 0


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_triggers_are_never_merged(kind):
    with Bench(kind) as bench:
        for revision in range(1, 6):
            bench.client.change({"style.1.grab": True, "strength": 0.1 * revision}, revision)
        bench.offer(1)
        assert painted(bench.frames(lambda f: True)[-1])[2] == 5


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_txt2img_paints_without_input_at_the_outputs_rate(kind):
    with Bench(kind, values={"mode": "txt2img", "output.fps": 200.0}) as bench:
        frames = bench.frames(lambda f: f.frame_id >= 20)
        assert frames[-1].pixels.shape == (64, 64, 4)
        bench.client.change({"mode": "img2img"}, 1)
        bench.wait(lambda: bench.client.applied_revision == 1)
        bench.client.take()
        made = bench.client.frames_made
        bench.client.ping()
        bench.wait(lambda: bench.client.pongs == bench.client.pings)
        assert bench.client.frames_made <= made + 1  # it waits for input again


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_what_is_inside_comes_out_when_the_input_stops(kind):
    with Bench(kind, pipeline=3) as bench:
        for number in range(1, 6):
            bench.offer_and_see_taken(number)
        bench.wait(lambda: bench.client.frames_made == 5)
        assert bench.client.take().frame_id == 5
        assert bench.client.dropped == 0


@pytest.mark.parametrize("frames", [13, 11])
def test_a_chunk_of_four_goes_the_same_way(frames):
    """The video engines' shape: one frame starts, then four go in and four come out, each by itself.

    Eleven leave a chunk short; when the input stops it is made whole with its last frame.
    """
    with Bench("fake_chunks") as bench:
        for number in range(1, frames + 1):
            bench.offer_and_see_taken(number)
        bench.wait(lambda: bench.client.frames_made == 13)
        assert bench.client.take().frame_id == frames
        assert bench.client.dropped == 0
        assert bench.client.spec.chunk_in == 4 and bench.client.spec.size_multiple == 16


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_the_size_changes_live_both_ways(kind):
    with Bench(kind) as bench:
        for revision, side in enumerate((256, 32, 128), 1):
            bench.client.change({"width": side, "height": side}, revision)
            assert bench.client.size == (side, side)
            frame = bench.frames(lambda f, side=side: f.width == side, offering=True)[-1]
            assert frame.pixels.shape == (side, side, 4)


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_a_frame_of_the_former_size_is_left_out(kind):
    with Bench(kind) as bench:
        bench.client.change({"width": 32, "height": 32}, 1)
        bench.offer(1, size=64)
        bench.wait(lambda: bench.client.applied_revision == 1)
        bench.offer(2, size=32)
        assert [f.frame_id for f in bench.frames(lambda f: True)] == [2]


def test_an_output_larger_than_its_slot_gets_a_new_slot():
    with Bench() as bench:
        bench.client.change({"post.upscale": "2x"}, 1)
        frame = bench.frames(lambda f: f.width == 128, offering=True)[-1]
        assert frame.pixels.shape == (128, 128, 4)


def test_an_input_that_is_switched_off_is_as_if_it_never_was_there():
    with Bench("passthrough") as bench:
        assert number_of(bench.control_out(50).pixels) == 50
        bench.offer(51, role="control")  # lies in its slot, unread
        bench.client.withdraw("control")
        bench.offer_and_see_taken(2)  # which may have been faster than the order
        bench.frames(lambda f: f.frame_id == 2)
        bench.client.take("control")
        bench.offer_and_see_taken(3)
        bench.frames(lambda f: f.frame_id == 3)
        assert bench.client.take("control") is None
        bench.offer(52, role="control")
        bench.offer_and_see_taken(4)
        bench.frames(lambda f: f.frame_id == 4)
        assert number_of(bench.client.take("control").pixels) == 52


def test_the_control_role_goes_in_and_out():
    with Bench("passthrough") as bench:
        control = bench.control_out(50)
        assert control is not None and number_of(control.pixels) == 50


def test_one_bad_frame_is_told_and_survived():
    with Bench("faulty") as bench:
        bench.client.change({"prompt.1.text": "raise"}, 1)
        bench.offer(1)
        bench.wait(lambda: any(event == "error" for event, _ in bench.events))
        bench.client.change({"prompt.1.text": ""}, 2)
        bench.frames(lambda f: True, offering=True)
        assert bench.client.state is EngineState.STREAMING
        error = next(what for event, what in bench.events if event == "error")
        assert error.code == "SDB-ENGINE-FAULT" and "told to raise" in str(error)


def test_a_tick_that_breaks_on_the_device_is_told_and_survived():
    with Bench("fake_overlap") as bench:
        bench.client.change({"prompt.1.text": "raise"}, 1)
        bench.offer(1)
        bench.wait(lambda: any(event == "error" for event, _ in bench.events))
        bench.client.change({"prompt.1.text": ""}, 2)
        bench.frames(lambda f: True, offering=True)
        assert bench.client.state is EngineState.STREAMING


@pytest.mark.parametrize(
    ("fault", "code"),
    [("raise", "SDB-ENGINE-FAULT"), ("oom", "SDB-ENGINE-OOM"), ("exit", "SDB-ENGINE-DIED")],
)
def test_an_engine_past_help_fails_with_a_code(fault, code):
    with Bench("faulty") as bench:
        bench.client.change({"prompt.1.text": fault}, 1)
        for number in range(1, 400):
            bench.offer(number)
            time.sleep(0.005)
            if bench.client.state is EngineState.FAILED:
                break
        assert bench.client.state is EngineState.FAILED
        assert bench.client.last_error.code == code


def test_a_killed_engine_is_noticed_with_its_signal():
    with Bench() as bench:
        os.kill(bench.client.process_id, signal.SIGKILL)
        bench.wait(lambda: bench.client.state is EngineState.FAILED)
        assert "SIGKILL" in str(bench.client.last_error)


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_nothing_waits_for_an_engine_that_stands_still(kind):
    """SIGSTOP: every call of the bridge must return at once, thousands of times."""
    with Bench(kind) as bench:
        os.kill(bench.client.process_id, signal.SIGSTOP)
        for number in range(5000):
            bench.client.change({"strength": (number % 100) / 100, "prompt.1.text": "x" * 100}, number)
            bench.client.ping()
            bench.offer(number)
        assert bench.client.pongs < bench.client.pings
        assert bench.client.dropped >= 4990
        os.kill(bench.client.process_id, signal.SIGCONT)
        bench.wait(lambda: bench.client.pongs == bench.client.pings)
        bench.offer(5000)  # the frames before may have waited their time for the backlog in vain
        frame = bench.frames(lambda f: f.frame_id == 5000)[-1]
        assert painted(frame)[0] == round(0.99 * 255)


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_a_stopped_engine_can_still_be_ended(kind):
    with Bench(kind) as bench:
        process = bench.client._runner
        os.kill(bench.client.process_id, signal.SIGSTOP)
        bench.client.stop(timeout_s=0.1)
        assert not process.is_alive()


def test_loading_that_fails_is_told_with_its_own_code():
    bench = Bench("faulty")
    bench.client.config = EngineConfig(kind="faulty", model="bad")
    bench.client.start()
    bench.wait(lambda: bench.client.state is EngineState.FAILED)
    assert bench.client.last_error.code == "SDB-ENGINE-FAULT"
    bench.__exit__()


def test_an_unknown_kind_names_the_nearest():
    bench = Bench("passthru")
    bench.client.start()
    bench.wait(lambda: bench.client.state is EngineState.FAILED)
    assert "did you mean passthrough?" in str(bench.client.last_error)
    bench.__exit__()


@pytest.mark.skipif(not SHM.is_dir(), reason="looks into /dev/shm")
def test_stop_leaves_no_process_and_no_shared_memory():
    before = {file.name for file in SHM.iterdir()}
    bench = Bench()
    with bench:
        made = {slot.name for slot in bench.client._slots.values()}
        assert made <= {file.name for file in SHM.iterdir()}
        process = bench.client._runner
    assert not process.is_alive() and process.exitcode == 0
    assert not made & {file.name for file in SHM.iterdir()}
    assert before >= {file.name for file in SHM.iterdir() if file.name in made}


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_states_go_along_the_table(kind):
    with Bench(kind) as bench:
        pass
    assert [what for event, what in bench.events if event == "state"] == [
        EngineState.WARMING_UP,
        EngineState.STREAMING,
    ]
    assert bench.client.state is EngineState.STOPPED


def test_stats_come_with_what_the_loop_measured():
    with Bench() as bench:
        bench.frames(lambda f: f.frame_id > 1005, offering=True)
        bench.wait(lambda: bench.client.stats.ticks > 0, 10)
        assert bench.client.stats.unused == ("clip_skip",)


@pytest.mark.parametrize("kind", ["fake", "fake_overlap"])
def test_the_same_input_gives_the_same_output_twice(kind):
    def replay():
        with Bench(kind) as bench:
            out = []
            for number in (1, 2, 3):
                bench.client.change({"strength": number / 10}, number)
                bench.offer(number)
                out += bench.frames(lambda f, number=number: f.frame_id == number)
            return [frame.pixels for frame in out]

    for first, second in zip(replay(), replay(), strict=True):
        assert np.array_equal(first, second)
