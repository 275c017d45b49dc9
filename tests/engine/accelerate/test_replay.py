"""Replaying a network beside the UNet: when it is captured, what a new shape or a failure does."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest
import torch
from torch import Tensor

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.cuda_graph import CudaGraph
from sdbridge.engine.accelerate.precompile import Compilation
from sdbridge.engine.accelerate.replay import KEPT_SHAPES, WARM_CALLS, Replayed, foresee


class FakeGraph:
    """As a CUDA graph: inputs and outputs of its own, overwritten at every run."""

    captures = 0

    def __init__(self, run, tensors: tuple[Tensor, ...]) -> None:
        type(self).captures += 1
        self._plain, self._output = run, [torch.empty_like(out) for out in run(*tensors)]

    def run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        for mine, new in zip(self._output, self._plain(*tensors), strict=True):
            mine.copy_(new)
        return self._output


def double(x: Tensor) -> list[Tensor]:
    return [x * 2]


def test_plain_first_then_captured_once_and_anew_for_a_new_shape() -> None:
    FakeGraph.captures = 0
    replayed = Replayed(double, "net", FakeGraph)
    for shape in ((2, 3), (4, 3)):
        before = FakeGraph.captures
        for call in range(WARM_CALLS + 5):
            x = torch.full(shape, float(call))
            assert torch.equal(replayed(x)[0], x * 2)
            assert FakeGraph.captures - before == (1 if call >= WARM_CALLS else 0)


def test_a_capture_that_fails_is_said_once_and_the_call_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail(run, tensors):
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = Replayed(double, "ControlNet canny", fail)
    for _ in range(WARM_CALLS + 5):
        assert torch.equal(replayed(torch.ones(2))[0], torch.full((2,), 2.0))
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and "ControlNet canny" in said[0].getMessage()


class Still:
    """What lies still, and can be told from another of its kind."""

    def __init__(self, value: float) -> None:
        self.tensors = (torch.full((2,), value),)


def test_a_graph_is_bound_to_what_it_reads_and_holds_it() -> None:
    def plus(x: Tensor, still: Still) -> list[Tensor]:
        return [x + still.tensors[0]]

    FakeGraph.captures = 0
    replayed, one, other = Replayed(plus, "net", FakeGraph), Still(1.0), Still(2.0)
    for _ in range(WARM_CALLS + 1):
        assert replayed(torch.zeros(2), reads=one)[0].tolist() == [1.0, 1.0]
    assert FakeGraph.captures == 1 and replayed.captured
    assert replayed(torch.zeros(2), reads=other)[0].tolist() == [2.0, 2.0] and not replayed.captured
    one.tensors[0].fill_(5.0)  # what is in it is read at each replay
    assert replayed(torch.zeros(2), reads=one)[0].tolist() == [5.0, 5.0] and replayed.captured
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is not None, "the graph looks for it there"
    for size in range(3, 3 + KEPT_SHAPES):
        replayed(torch.zeros(size, 2), reads=other)
    gc.collect()
    assert gone() is None, "its graph is gone too"


@pytest.mark.gpu
def test_a_captured_controlnet_gives_what_the_plain_one_gives() -> None:
    linear = torch.nn.Linear(64, 64, device="cuda")

    def run(x: Tensor) -> list[Tensor]:
        return [torch.relu(linear(x))]

    replayed = Replayed(run, "net")
    with torch.inference_mode():
        for _ in range(WARM_CALLS + 10):
            x = torch.randn(8, 64, device="cuda")
            assert torch.allclose(replayed(x)[0], run(x)[0], atol=1e-5)
    assert isinstance(replayed._graph, CudaGraph)


def test_beside_the_stream_a_graph_that_comes_too_late_is_not_used() -> None:
    begin = threading.Event()

    def capture(run, tensors):
        assert begin.wait(30)
        return FakeGraph(run, tensors)

    beside = BesideTheStream(torch.device("cpu"))
    replayed = Replayed(double, "net", capture, beside)
    replayed(torch.ones(2, 3))
    replayed(torch.ones(4, 3))  # wanted by now
    begin.set()
    assert beside.wait(30)
    assert torch.equal(replayed(torch.ones(4, 3))[0], torch.full((4, 3), 2.0))
    assert replayed._graph is not None and replayed._graph._output[0].shape == (4, 3)
    beside.close()


class Kernels:
    """What has kernels compiled, by the shapes it is told are ready."""

    def __init__(self, known: bool) -> None:
        self._known = known
        self.asked = 0

    def known(self, tensors) -> bool:
        return self._known

    def __call__(self, run, tensors) -> Compilation:
        self.asked += 1
        return Compilation()


def trebled(x: Tensor) -> list[Tensor]:
    return [x * 3]


@pytest.mark.parametrize("known", [False, True])
def test_the_only_graph_is_of_the_fast_form_where_its_kernels_come_soon(known: bool) -> None:
    made, beside = [], BesideTheStream(torch.device("cpu"))

    def capture(run, tensors):
        made.append(run)
        return FakeGraph(run, tensors)

    kernels = Kernels(known)
    replayed = Replayed(double, "net", capture, beside, trebled, kernels)
    x = torch.ones(2, 3)
    replayed.foresee(x)
    replayed.foresee(x)
    assert beside.wait(30)
    assert replayed.foresee(x)
    assert made == [trebled], "and nothing twice"
    assert kernels.asked == 1
    assert torch.equal(replayed(x)[0], x * 3)
    beside.close()


def test_a_fast_form_that_fails_leaves_the_plain_one_to_every_shape(caplog) -> None:
    beside, made = BesideTheStream(torch.device("cpu")), []

    def capture(run, tensors):
        made.append(run)
        if run is trebled:
            raise RuntimeError("no kernel image")
        return FakeGraph(run, tensors)

    replayed = Replayed(double, "net", capture, beside, trebled, Kernels(True))
    for shape in ((2, 3), (4, 3)):
        replayed.foresee(torch.ones(shape))
        assert beside.wait(30)
        assert replayed.foresee(torch.ones(shape))
        assert torch.equal(replayed(torch.ones(shape))[0], torch.full(shape, 2.0))
    assert made == [trebled, double, double]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "net runs without our own kernels: no kernel image"
    ]
    beside.close()


def test_the_shapes_used_last_are_kept_and_the_running_one_always() -> None:
    beside = BesideTheStream(torch.device("cpu"))
    FakeGraph.captures = 0
    replayed = Replayed(double, "net", FakeGraph, beside)
    for length in range(1, KEPT_SHAPES + 3):
        replayed(torch.ones(1))  # runs all the time
        assert beside.wait(30)
        replayed.foresee(torch.ones(length))
        assert beside.wait(30)
    assert FakeGraph.captures == KEPT_SHAPES + 2
    assert len(replayed._shapes) == KEPT_SHAPES
    assert replayed.foresee(torch.ones(1)) and replayed.foresee(torch.ones(KEPT_SHAPES + 2))
    assert not replayed.foresee(torch.ones(2)), "the one that nobody asked for the longest"
    beside.close()


def test_a_plain_call_is_always_ready() -> None:
    assert foresee(double, torch.ones(1))
    assert Replayed(double, "net", FakeGraph).foresee(torch.ones(1)), "nothing is made beside the stream"
