"""A network beside the UNet (a ControlNet, an adapter) replayed from a CUDA graph once it is warm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from sdbridge.engine.accelerate.beside import BesideTheStream

log = logging.getLogger(__name__)

#: Runs of one shape before it is captured: they warm up what a capture must not do, and frames go on.
WARM_CALLS = 20

TensorCall = Callable[..., Any]


class Captured(Protocol):
    """A recorded call: same shapes in, the same output tensors out, overwritten by every run."""

    def takes(self, *tensors: Tensor) -> bool: ...

    def run(self, tensors: tuple[Tensor, ...]) -> Any: ...


class Uncaptured:
    """A call in a recorded call's place until that is there: runs operation by operation."""

    def __init__(self, run: TensorCall) -> None:
        self._run = run

    def takes(self, *tensors: Tensor) -> bool:
        """Whatever is given."""
        return True

    def run(self, tensors: tuple[Tensor, ...]) -> Any:
        return self._run(*tensors)


class Replayed:
    """``run(*tensors)`` as it is at first, from a graph later; the plain call again where capturing fails.

    What it gives is overwritten by the next call: use it, or copy it, before. A new shape starts
    over. The capture comes after WARM_CALLS plain runs, so that adding a network never delays a
    frame by more than about one run of it; with ``beside`` it is begun at once and delays none.
    """

    def __init__(
        self,
        run: TensorCall,
        name: str,
        capture: Callable[[TensorCall, tuple[Tensor, ...]], Captured] | None = None,
        beside: BesideTheStream | None = None,
        faster: TensorCall | None = None,
    ) -> None:
        """``faster`` gives what ``run`` gives and may need compiling: beside the stream it is captured."""
        self._run = run
        self._faster = faster if beside is not None else None
        self._name = name
        self._capture = capture or CudaGraph
        self._beside = beside
        self._key: tuple[object, ...] = ()
        self._calls = 0
        self._made: tuple[tuple[object, ...], Captured] | None = None  # of which shapes, and the graph
        self._failed = False

    @property
    def _graph(self) -> Captured | None:
        """That of the shapes last called with. Made beside, it may come when others are wanted already."""
        made = self._made
        return made[1] if made is not None and made[0] == self._key else None

    def __call__(self, *tensors: Tensor) -> Any:
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key != self._key:
            self._key, self._calls, self._made = key, 0, None
        graph = self._graph
        if graph is not None:
            return graph.run(tensors)
        self._calls += 1
        if self._beside is not None:
            if self._calls == 1 and not self._failed:
                self._capture_beside(self._beside, key, tensors)
        elif self._calls > WARM_CALLS and not self._failed:
            try:
                graph = self._capture(self._run, tensors)
            except RuntimeError as error:
                self._fail(error)
            else:
                self._made = key, graph
                return graph.run(tensors)
        return self._run(*tensors)

    def _capture_beside(
        self, beside: BesideTheStream, key: tuple[object, ...], tensors: tuple[Tensor, ...]
    ) -> None:
        given = tuple(tensor.detach().clone() for tensor in tensors)
        copied = torch.cuda.Event() if given[0].is_cuda else None
        if copied is not None:
            copied.record()

        def job() -> Captured | None:
            if copied is not None:
                copied.synchronize()  # indices that are not there yet would lead anywhere
            if key != self._key:
                return None  # another shape is wanted by now
            return self._capture(self._faster or self._run, given)

        def put_in(graph: Captured | None) -> None:
            if graph is not None and key == self._key:
                self._made = key, graph

        def failed(error: Exception) -> None:
            if self._faster is None:
                self._fail(error)
                return
            log.warning("%s runs without our own kernels: %s", self._name, first_line(error))
            self._faster = None
            beside.submit(job, put_in, failed)

        beside.submit(job, put_in, failed)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        line = first_line(error)
        log.warning("%s cannot be captured (%s); it runs operation by operation", self._name, line)


def first_line(error: Exception) -> str:
    """What a person needs of an error, which PyTorch likes to follow with pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class CudaGraph:
    """One captured call with tensors of its own for input and output. A replay overwrites the output.

    Made in the calling thread, on a stream and in a memory pool of its own, so that it may be made
    beside a stream that runs. Raises RuntimeError where the call cannot be captured.
    """

    def __init__(self, run: TensorCall, tensors: tuple[Tensor, ...], warm_runs: int = 2) -> None:
        device = tensors[0].device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode(), torch.cuda.stream(aside):
            self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
            for _ in range(warm_runs):  # libraries choose algorithms and workspaces outside the capture
                run(*self._inputs)
            aside.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Not torch.cuda.graph(): that collects garbage and empties caches, which would show in the
            # frames. Other threads may allocate meanwhile; that is no fault of this capture.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._output = run(*self._inputs)
            finally:
                self._graph.capture_end()
            aside.synchronize()

    def takes(self, *tensors: Tensor) -> bool:
        """Whether a call with these tensors has the captured shapes."""
        return len(tensors) == len(self._inputs) and all(
            mine.shape == given.shape for mine, given in zip(self._inputs, tensors, strict=True)
        )

    def run(self, tensors: tuple[Tensor, ...]) -> Any:
        for mine, given in zip(self._inputs, tensors, strict=True):
            if mine is not given:
                mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output
