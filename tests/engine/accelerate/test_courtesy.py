"""Work beside the stream pauses while a frame is being queued, and never for longer than it should."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from sdbridge.engine.accelerate import courtesy
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.courtesy import GivingWay, frame_begins, frame_waits, queueing_a_frame


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


def test_a_kernel_is_loaded_beside_the_stream_when_the_next_frame_begins(monkeypatch) -> None:
    monkeypatch.setattr(courtesy, "_LOAD_PATIENCE_S", 600.0)
    hooks: list = []
    knobs = SimpleNamespace(runtime=SimpleNamespace(kernel_load_start_hook=SimpleNamespace(add=hooks.append)))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=knobs))
    courtesy.watch_kernel_loads()
    (load,) = hooks
    load("module", "function", "name")  # the frames' own thread waits for nothing
    beside = BesideTheStream(torch.device("cpu"), gives_way=True)
    monkeypatch.setattr(courtesy, "_LATELY_S", 600.0)
    frame_begins()
    frame_waits()
    asked, loaded = threading.Event(), []

    def job():
        asked.set()
        load("module", "function", "name")
        loaded.append(True)

    beside.submit(job, loaded.append, loaded.append)
    assert asked.wait(30) and not beside.wait(0.2) and not loaded
    for _ in range(600):  # frames go on beginning
        frame_begins()
        if beside.wait(0.05):
            break
    assert loaded[0] is True
    beside.close()


def test_without_frames_a_kernel_is_loaded_at_once(monkeypatch) -> None:
    monkeypatch.setattr(courtesy, "_LOAD_PATIENCE_S", 600.0)
    monkeypatch.setattr(courtesy, "_LATELY_S", 0.0)
    with GivingWay():
        courtesy.load_with_a_frame()


def test_a_triton_without_that_hook_loads_at_any_time(monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    courtesy.watch_kernel_loads()
    assert "loaded at any time" in caplog.text
