"""Work beside the stream pauses while a frame is being queued, and never for longer than it should."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from sdbridge.engine.accelerate import courtesy, first_use
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.courtesy import (
    GivingWay,
    before_the_next,
    frame_begins,
    frame_is_out,
    frame_waits,
    frames_rest,
    queueing_a_frame,
)


@pytest.fixture(autouse=True)
def waiting():
    """Whatever frames other tests have run."""
    frame_waits()
    yield
    frame_waits()


def test_work_beside_goes_on_only_while_the_frames_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE_S", 600.0)
    beside = BesideTheStream(torch.device("cpu"), gives_way=True)
    inside, went_on, results = threading.Event(), threading.Event(), []

    def job():
        x = torch.ones(3)
        inside.set()
        assert went_on.wait(30)
        return torch.nn.functional.linear(x, torch.eye(3)) + x.sum()

    beside.submit(job, results.append, results.append)
    assert inside.wait(30)
    with queueing_a_frame():
        went_on.set()
        assert not beside.wait(0.2) and not results, "it stands at its next operation"
    assert beside.wait(30)
    assert torch.equal(results[0], torch.full((3,), 4.0))
    beside.close()


def test_a_frame_that_takes_long_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE_S", 0.0)
    frame_begins()
    with GivingWay():
        assert float(torch.ones(4).sum()) == 4.0


def test_the_frames_own_thread_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE_S", 600.0)
    with queueing_a_frame():
        assert float(torch.ones(4).sum()) == 4.0


def test_a_frame_that_raises_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE_S", 600.0)
    with pytest.raises(ValueError, match="bad"), queueing_a_frame():
        raise ValueError("bad")
    with GivingWay():
        assert float(torch.ones(4).sum()) == 4.0


@pytest.fixture
def hooks(monkeypatch) -> dict:
    """What Triton calls about a load, by when."""
    found: dict = {}

    def chain(name):
        return SimpleNamespace(add=lambda hook: found.update({name: hook}))

    runtime = SimpleNamespace(kernel_load_start_hook=chain("start"), kernel_load_end_hook=chain("end"))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=SimpleNamespace(runtime=runtime)))
    courtesy.watch_kernel_loads()
    return found


@pytest.fixture
def patient(monkeypatch) -> None:
    """Nobody goes on because time has passed."""
    for name in (
        "PATIENCE_S",
        "EDGE_PATIENCE_S",
        "_LOAD_PATIENCE_S",
        "_QUEUED_PATIENCE_S",
        "_LOAD_S",
        "_LATELY_S",
    ):
        monkeypatch.setattr(courtesy, name, 60.0)


class Beside:
    """A job beside frames, and what became of it."""

    def __init__(self, job) -> None:
        self.results: list = []
        self._asked = threading.Event()
        self.beside = BesideTheStream(torch.device("cpu"), gives_way=True)

        def work():
            self._asked.set()
            return job()

        self.beside.submit(work, self.results.append, self.results.append)

    def begin(self) -> None:
        """Frames come out until the job has begun: one is in flight from then on."""
        for _ in range(600):
            frame_is_out(1)
            frame_waits()
            if self._asked.wait(0.05):
                return
        raise AssertionError("it never began")

    def ends_when(self, step) -> bool:
        for _ in range(600):
            step()
            if self.beside.wait(0.05):
                self.beside.close()
                return True
        return False


def test_a_kernel_is_loaded_beside_the_stream_when_nothing_is_queued_and_the_next_frame_waits_for_it(
    hooks, patient
) -> None:
    hooks["start"]("module", "function", "name")  # the frames' own thread waits for nothing
    hooks["end"]("module", "function", "name")
    frame_begins()
    frame_waits()
    at, loading = [], threading.Event()

    def job():
        hooks["start"]("module", "function", "name")
        loading.set()
        at.append("loaded")
        hooks["end"]("module", "function", "name")
        at.append("reads the next kernel")

    run = Beside(job)
    run.begin()
    for _ in range(3):  # with one still queued it is no moment
        frame_is_out(1)
        before_the_next(1)
        assert not loading.wait(0.05)
    before_the_next(0)
    at.append("queues")
    assert run.ends_when(frame_waits)
    assert at == ["loaded", "queues", "reads the next kernel"]


def test_a_load_that_fails_keeps_one_frame_and_no_other(hooks, patient, monkeypatch) -> None:
    def job():
        hooks["start"]("module", "function", "name")
        raise RuntimeError("device kernel image is invalid")

    frame_begins()
    frame_waits()
    run = Beside(job)
    run.begin()
    assert run.ends_when(lambda: (frame_is_out(0), frame_waits()))
    assert isinstance(run.results[0], RuntimeError)
    monkeypatch.setattr(courtesy, "_LOAD_S", 0.01)
    before_the_next(0)
    monkeypatch.setattr(courtesy, "_LOAD_S", 60.0)
    before_the_next(0)  # or this would take a minute
    assert not courtesy.one_at_a_time()


def test_with_two_frames_in_flight_a_kernel_is_loaded_when_the_next_begins(
    hooks, patient, monkeypatch
) -> None:
    monkeypatch.setattr(courtesy, "ONE_AT_A_TIME", False)
    frame_begins()
    frame_waits()
    loaded = threading.Event()

    def job():
        hooks["start"]("module", "function", "name")
        loaded.set()

    run = Beside(job)
    assert not loaded.wait(0.2), "and nobody waits for a frame edge before it"
    assert run.ends_when(frame_begins) and loaded.is_set()


def test_between_the_frames_of_a_slow_source_nobody_beside_waits(hooks, patient) -> None:
    """They are sent, so somebody could be held up; but none is there now."""
    frame_begins()
    frame_waits()
    frame_is_out(0)
    frames_rest()
    with courtesy.beside_the_frames():
        assert courtesy.one_at_a_time() and courtesy.streams()
        for _ in range(3):
            hooks["start"]("module", "function", "name")
            hooks["end"]("module", "function", "name")
            courtesy.give_way()


def test_a_frame_that_ends_a_rest_waits_for_what_is_being_loaded(hooks, patient) -> None:
    loading, go_on, at = threading.Event(), threading.Event(), []

    def job():
        hooks["start"]("module", "function", "name")
        loading.set()
        assert go_on.wait(60)
        at.append("loaded")
        hooks["end"]("module", "function", "name")

    frame_begins()
    frame_waits()
    run = Beside(job)
    run.begin()
    frames_rest()
    assert loading.wait(60)
    threading.Timer(0.05, go_on.set).start()
    before_the_next(0)
    at.append("queues")
    assert run.ends_when(lambda: (frame_begins(), frame_waits()))
    assert at == ["loaded", "queues"]


def test_who_waits_for_a_frame_goes_on_when_the_frames_rest(patient) -> None:
    done = threading.Event()

    def job():
        courtesy.once_a_frame_is_queued()
        done.set()

    frame_begins()
    frame_waits()
    run = Beside(job)
    run.begin()
    frame_is_out(0)
    assert not done.wait(0.2)
    assert run.ends_when(frames_rest) and done.is_set()


def test_without_frames_nobody_beside_waits_for_any(hooks, patient, monkeypatch) -> None:
    monkeypatch.setattr(courtesy, "_LATELY_S", 0.0)
    with courtesy.beside_the_frames():
        assert courtesy.one_at_a_time()
        hooks["start"]("module", "function", "name")
        hooks["end"]("module", "function", "name")
        courtesy.once_a_frame_is_queued()
    assert not courtesy.one_at_a_time()


def test_one_frame_is_in_flight_from_before_the_work_begins_until_all_of_it_is_done(patient) -> None:
    frame_begins()
    frame_waits()
    go_on, began = threading.Event(), threading.Event()

    def load():
        with courtesy.at_work():
            began.set()
            assert go_on.wait(60)
            raise OSError("the file is gone")

    def loads():
        with pytest.raises(OSError, match="gone"):
            load()

    loading = threading.Thread(target=loads)
    loading.start()
    for _ in range(600):
        if courtesy.one_at_a_time():
            break
        began.wait(0.05)
    assert courtesy.one_at_a_time() and not began.is_set(), "a frame that it knew nothing of may be queued"
    for _ in range(600):
        frame_is_out(1)
        if began.wait(0.05):
            break
    go_on_too = threading.Event()
    beside = BesideTheStream(torch.device("cpu"), gives_way=True)
    beside.submit(lambda: go_on_too.wait(60), lambda result: None, lambda error: None)
    for _ in range(600):
        if courtesy._at_work == 2:
            break
        go_on_too.wait(0.05)
    go_on.set()
    loading.join(60)
    assert courtesy.one_at_a_time(), "the other one is still at work"
    go_on_too.set()
    for _ in range(600):
        frame_is_out(0)
        if beside.wait(0.05):
            break
    beside.close()
    assert not courtesy.one_at_a_time()


def test_what_holds_the_drivers_lock_begins_when_a_frame_has_just_been_queued(patient) -> None:
    frame_begins()
    frame_waits()
    done = threading.Event()

    def job():
        courtesy.once_a_frame_is_queued()
        done.set()

    run = Beside(job)
    run.begin()
    frame_begins()
    frame_is_out(0)
    assert not done.wait(0.2), "a frame is being queued"
    assert run.ends_when(frame_waits) and done.is_set()
    courtesy.once_a_frame_is_queued()  # the frames' own thread waits for nothing


def test_a_triton_without_that_hook_loads_at_any_time(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    courtesy.watch_kernel_loads()
    assert "loaded at any time" in caplog.text


def test_an_operation_whose_code_may_have_to_be_loaded_has_a_moment_between_two_frames(
    patient, monkeypatch
) -> None:
    """Once for each form; what was met before, and what only looks at a tensor, goes on at once."""
    monkeypatch.setattr(first_use, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(first_use, "_met", set())
    asked: list[str] = []
    monkeypatch.setattr(courtesy, "load_begins", lambda: asked.append("begins"))
    monkeypatch.setattr(courtesy, "load_ends", lambda: asked.append("ends"))
    linear = torch.nn.functional.linear
    x, weight = torch.ones(2, 4), torch.eye(4)
    with queueing_a_frame():  # frames run
        pass
    with GivingWay():
        linear(x, weight)
        assert asked == ["begins", "ends"]
        linear(x + 0.0, weight)
        assert len(asked) == 4, "the sum is new, the product is not"
        linear(x, weight)
        x.view(4, 2).permute(1, 0).unsqueeze(0)
        assert len(asked) == 4
        longer = torch.ones(3, 4)
        linear(longer, weight)
        assert len(asked) == 6, "libraries choose by the shape"
        longer + 0.0
        assert len(asked) == 6, "nothing else does"
        torch.ones(3, 4, dtype=torch.float64) + 0.0
        assert len(asked) == 8
        with pytest.raises(RuntimeError):
            linear(torch.ones(2, 3), weight)
        assert len(asked) == 10 and asked[-1] == "ends", "nobody waits for what failed"
        monkeypatch.setattr(courtesy, "_LATELY_S", 0.0)
        linear(torch.ones(5, 4), weight)
        assert len(asked) == 10, "without frames nobody is held up"
    linear(torch.ones(6, 4), weight)
    assert len(asked) == 10, "the frames' own thread asks nobody"


@pytest.mark.parametrize("capturing", [False, True])
def test_what_the_thread_beside_has_queued_is_done_before_it_loads(
    hooks, patient, monkeypatch, capturing: bool
) -> None:
    """The driver waits for all that is queued, its lock held. What is captured must not be waited for."""
    done: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: done.append("drained"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(courtesy, "_LOAD_PATIENCE_S", 0.0)
    hooks["start"]()
    assert not done, "the frames' own thread does not wait"
    with queueing_a_frame():  # frames run
        pass
    with GivingWay():
        hooks["start"]()
        hooks["end"]()
    assert done == ([] if capturing else ["drained"])
