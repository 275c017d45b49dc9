"""A network beside the UNet (a ControlNet, an adapter) replayed from a CUDA graph once it is warm."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.cuda_graph import CudaGraph
from sdbridge.engine.accelerate.forms import FirstForms
from sdbridge.engine.accelerate.precompile import Compilation
from sdbridge.errors import first_line

log = logging.getLogger(__name__)

#: Runs of one shape before it is captured: they warm up what a capture must not do, and frames go on.
WARM_CALLS = 20
#: Shapes whose graphs are kept.
KEPT_SHAPES = 4

TensorCall = Callable[..., Any]
Key = tuple[object, ...]


class Lying(Protocol):
    """Tensors that lie still while what is in them changes now and then."""

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...


class Reading:
    """``run`` with ``reads`` as its last argument: what a record of it reads where it lies, as no input.

    Who records the call keeps it as long as the record (``CudaGraph`` does).
    """

    def __init__(self, run: TensorCall, reads: Lying) -> None:
        self._run = run
        self.reads = reads

    def __call__(self, *tensors: Tensor) -> Any:
        return self._run(*tensors, self.reads)


class Begin(Protocol):
    """Has the kernels compiled that a call on these tensors takes."""

    def known(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether they are compiled already."""
        ...

    def __call__(self, run: TensorCall, tensors: tuple[Tensor, ...]) -> Compilation: ...


class Captured(Protocol):
    """A recorded call: same shapes in, the same output tensors out, overwritten by every run."""

    def takes(self, *tensors: Tensor) -> bool: ...

    def run(self, tensors: tuple[Tensor, ...]) -> Any: ...


class Uncaptured:
    """A call in a recorded call's place until that is there: runs operation by operation.

    ``asked`` says that the recording is under way, ``failed`` that there will be none, ``runs`` that frames
    did not wait for it.
    """

    def __init__(self, run: TensorCall, begin: Callable[[Uncaptured], None] = lambda place: None) -> None:
        """``begin`` gets this place, so that nobody needs to hold on to it in a circle."""
        self._run = run
        self._begin = begin
        self.asked = self.failed = self.runs = False

    def ask(self) -> None:
        """Have the recording begun, unless it is under way or has failed."""
        if not (self.asked or self.failed):
            self.asked = True
            self._begin(self)

    def takes(self, *tensors: Tensor) -> bool:
        """Whatever is given."""
        return True

    def run(self, tensors: tuple[Tensor, ...]) -> Any:
        self.runs = True
        return self._run(*tensors)


@dataclass
class _Shape:
    """What there is for calls of one shape. ``asked``: a graph is being made beside the stream."""

    calls: int = 0
    asked: bool = False
    graph: Captured | None = None
    reads: Lying | None = None  # held: a shape is known by it too


class Replayed:
    """``run(*tensors)`` as it is at first, from a graph later; the plain call again where capturing fails.

    What it gives is overwritten by the next call: use it, or copy it, before. Graphs of the KEPT_SHAPES
    shapes used last are kept. The capture of a shape comes after WARM_CALLS plain runs, so that adding a
    network never delays a frame by more than about one run of it; with ``beside`` it is begun at once and
    delays none, and ``foresee`` begins it before the first call.
    """

    def __init__(
        self,
        run: TensorCall,
        name: str,
        capture: Callable[[TensorCall, tuple[Tensor, ...]], Captured] | None = None,
        beside: BesideTheStream | None = None,
        faster: TensorCall | None = None,
        compiling: Begin | None = None,
    ) -> None:
        """``faster`` gives what ``run`` gives, and ``compiling`` sees to its kernels; captured beside."""
        self._run = run
        self._faster = faster if beside is not None else None
        self._compiling = compiling
        self._name = name
        self._capture = capture or CudaGraph
        self._beside = beside
        self._shapes: OrderedDict[Key, _Shape] = OrderedDict()
        self._key: Key = ()  # the shape last called with
        self._foreseen: Key = ()  # the shape last asked for
        self._failed = False

    @property
    def _graph(self) -> Captured | None:
        """That of the shape last called with."""
        shape = self._shapes.get(self._key)
        return None if shape is None else shape.graph

    @property
    def captured(self) -> bool:
        """Whether calls of the last one's shape come from a graph."""
        return self._graph is not None

    def __call__(self, *tensors: Tensor, reads: Lying | None = None) -> Any:
        """``reads``, where given, is the call's last argument, and no input of its graph: see ``Reading``."""
        key = _key(tensors, reads)
        if key != self._key:
            before = self._shapes.get(self._key)
            if before is not None and before.graph is None:
                before.calls = 0
            self._key = key
        shape = self._shape(key, reads)
        if shape.graph is not None:
            return shape.graph.run(tensors)
        shape.calls += 1
        if self._beside is not None:
            self._ask(self._beside, key, shape, tensors)
        elif shape.calls > WARM_CALLS and not self._failed:
            try:
                shape.graph = self._capture(_reading(self._run, reads), tensors)
            except RuntimeError as error:
                self._fail(error)
            else:
                return shape.graph.run(tensors)
        return _reading(self._run, reads)(*tensors)

    def foresee(self, *tensors: Tensor, reads: Lying | None = None) -> bool:
        """Whether a call with tensors like these would not be held up; else the graph for it is begun.

        True too where there will be none, and where nothing is made beside the stream.
        """
        if self._beside is None or self._failed:
            return True
        self._foreseen = key = _key(tensors, reads)
        shape = self._shape(key, reads)
        if shape.graph is None:
            self._ask(self._beside, key, shape, tensors)
        return shape.graph is not None

    def _shape(self, key: Key, reads: Lying | None) -> _Shape:
        shape = self._shapes.setdefault(key, _Shape(reads=reads))
        self._shapes.move_to_end(key)
        for other in list(self._shapes)[: max(0, len(self._shapes) - KEPT_SHAPES)]:
            if other not in (self._key, self._foreseen):
                del self._shapes[other]
        return shape

    def _ask(self, beside: BesideTheStream, key: Key, shape: _Shape, tensors: tuple[Tensor, ...]) -> None:
        """Have this shape captured beside the stream, once."""
        if shape.asked or self._failed:
            return
        shape.asked = True
        given = tuple(tensor.detach().clone() for tensor in tensors)
        copied = torch.cuda.Event() if given[0].is_cuda else None
        if copied is not None:
            copied.record()
        compiling, faster, reads = self._compiling, self._faster, shape.reads

        def capture(run: TensorCall) -> Captured | None:
            if copied is not None:
                copied.synchronize()  # indices that are not there yet would lead anywhere
            wanted = shape.graph is not None or key in (self._key, self._foreseen)
            if self._shapes.get(key) is not shape or not wanted:
                return None  # others are wanted by now
            return self._capture(_reading(run, reads), given)

        def put_in(graph: Captured) -> None:
            shape.graph = graph

        def given_up() -> None:
            shape.asked = False

        forms = FirstForms(
            beside, lambda: capture(self._run), put_in, given_up, self._fail, lambda: shape.calls > 0
        )
        if faster is None:
            forms.submit_plain()
            return
        fast, seen = faster, _seen(given, reads)
        known = compiling is not None and compiling.known(seen)

        def compile_for(*seen: Tensor) -> Any:
            return _reading(fast, reads)(*seen[: len(given)])  # the rest is what it reads of its own accord

        def begin() -> Compilation:
            return Compilation(here=True) if compiling is None else compiling(compile_for, seen)

        forms.submit_both(begin, lambda: capture(fast), self._rest_faster, known)

    def _rest_faster(self, error: Exception) -> None:
        if self._faster is not None:
            log.warning("%s runs without our own kernels: %s", self._name, first_line(error))
            self._faster = None

    def _fail(self, error: Exception) -> None:
        self._failed = True
        line = first_line(error)
        log.warning("%s cannot be captured (%s); it runs operation by operation", self._name, line)


def foresee(run: TensorCall, *tensors: Tensor) -> bool:
    """Whether ``run`` is ready for a call with tensors like these (``Replayed.foresee``); plain calls are."""
    ask = getattr(run, "foresee", None)
    return ask is None or bool(ask(*tensors))


def _reading(run: TensorCall, reads: Lying | None) -> TensorCall:
    return run if reads is None else Reading(run, reads)


def _seen(tensors: tuple[Tensor, ...], reads: Lying | None) -> tuple[Tensor, ...]:
    """All that the call reads, which is what its kernels are chosen by."""
    return tensors if reads is None else (*tensors, *reads.tensors)


def _key(tensors: tuple[Tensor, ...], reads: Lying | None) -> Key:
    return (id(reads), *((tensor.shape, tensor.dtype) for tensor in tensors))
