"""Which graphs there are: captured now or beside the stream, put in at a frame edge, the newest kept."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from sdbridge.engine.accelerate import precompile
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.forms import FirstForms
from sdbridge.engine.accelerate.precompile import Compilation, KernelCompiler
from sdbridge.engine.accelerate.replay import Captured, Key, TensorCall, Uncaptured
from sdbridge.errors import first_line

log = logging.getLogger(__name__)

Capture = Callable[[TensorCall, tuple[Tensor, ...]], Captured]


class Graphs:
    """Recorded calls by key: what kind of call it is, then what else its shape hangs on.

    Read by the frames' thread alone, which also has what is to be there made (``provide``); what is made
    beside the stream is put in its place by another.
    """

    def __init__(self, capture: Capture, on_cuda: bool, is_wanted: Callable[[Key], bool]) -> None:
        """``is_wanted``: whether frames run with what is called so, or are to."""
        self.by_key: OrderedDict[Key, Captured] = OrderedDict()
        #: Where better forms are made while frames run; None: nothing is.
        self.beside: BesideTheStream | None = None
        #: What has kernels compiled elsewhere; None: they are compiled where they are captured.
        self.compiler: KernelCompiler | None = None
        self.said: set[str] = set()
        self._capture = capture
        self._on_cuda = on_cuda
        self._is_wanted = is_wanted
        self._putting_in = threading.Lock()  # what is in ``by_key``, against graphs that arrive for it

    def provide(
        self,
        key: Key,
        run: TensorCall,
        tensors: tuple[Tensor, ...],
        beside: bool,
        faster: TensorCall | None = None,
        spec: precompile.Spec | None = None,
    ) -> None:
        """The call's first form, captured now or beside the stream; ``faster`` follows, or is the first one.

        Until the first form is there, whoever takes the shape up runs operation by operation.
        """
        if not beside:
            self._add(key, run, tensors)
            if faster is not None:
                self._improve(key, faster, tensors, spec)
            return
        given = tuple(tensor.detach().clone() for tensor in tensors)
        place = Uncaptured(run, lambda place: self._make_beside(key, place, run, given, faster, spec))
        self.by_key[key] = place
        place.ask()

    def streams(self, kind: str) -> bool:
        """Whether frames run by now that would see a capture as a stall."""
        return self.beside is not None and any(other[0] == kind for other in self.by_key)

    def is_there(self, key: Key) -> bool:
        """Whether there is a graph, or one is being made; what was given up is begun again."""
        graph = self.by_key.get(key)
        if graph is None:
            return False
        self.by_key.move_to_end(key)
        if isinstance(graph, Uncaptured):
            graph.ask()
        return True

    def ready(self, key: Key) -> bool:
        """Whether nothing is to be waited for: a graph is there, or there will be none."""
        graph = self.by_key.get(key)
        return not isinstance(graph, Uncaptured) or graph.failed

    def drop(self, key: Key) -> None:
        with self._putting_in:
            del self.by_key[key]

    def drop_oldest(self, kind: str, kept: int, though_wanted: bool = False) -> None:
        """Leave ``kept`` of a kind, and those that are wanted all the same."""
        keys = [key for key in self.by_key if key[0] == kind]
        for key in keys[: max(0, len(keys) - kept)]:
            if though_wanted or not self._is_wanted(key):
                self.drop(key)

    def settled(self, timeout_s: float) -> bool:
        """Wait until nothing better is under way; False if it still is."""
        return self.beside is None or self.beside.wait(timeout_s)

    def close(self) -> None:
        if self.beside is not None:
            self.beside.close()
        if self.compiler is not None:
            self.compiler.close()
        self.by_key.clear()
        self._is_wanted = lambda key: False  # no circle is left through whoever owns us

    # --- what people hear, once each ---

    def say(self, line: str, level: int = logging.INFO) -> None:
        if line not in self.said:
            self.said.add(line)
            log.log(level, "%s", line)

    def warn(self, line: str) -> None:
        """Something failed, and a slower form goes on."""
        self.say(line, logging.WARNING)

    # --- making one ---

    def _add(self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...]) -> None:
        """Capture now; where that fails, the call runs operation by operation."""
        try:
            self.by_key[key] = self._capture(run, tensors)
        except RuntimeError as error:
            self._never(key, error)

    def _make_beside(
        self,
        key: Key,
        place: Uncaptured,
        run: TensorCall,
        given: tuple[Tensor, ...],
        faster: TensorCall | None,
        spec: precompile.Spec | None,
    ) -> None:
        """The forms of a call, in the order of ``forms.py``, before anything that only makes faster."""
        assert self.beside is not None

        def make(capture: Capture, form: TensorCall) -> Captured | None:
            there = self.by_key.get(key, place)  # what runs already is made faster, wanted now or later
            return capture(form, given) if there is not place or self._is_wanted(key) else None

        def put_in(graph: Captured) -> None:
            self._put_in(key, graph)

        def given_up() -> None:
            place.asked = False  # other shapes are wanted by now; it may be asked for again

        def failed(error: Exception) -> None:
            place.failed = True
            self._never(key, error)

        forms = FirstForms(
            self.beside, lambda: make(self._capture, run), put_in, given_up, failed, lambda: place.runs
        )
        if faster is None:
            forms.submit_plain()
            return
        fast, known = faster, spec is not None and self._is_compiled(spec)
        forms.submit_both(
            lambda: self._compile(spec, fast, given),
            lambda: make(self._capture_or_again, fast),
            self._rest,
            known,
        )

    def _improve(
        self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...], spec: precompile.Spec | None = None
    ) -> None:
        """Compile and capture a faster form beside the stream; it replaces the first one when it is done.

        With a ``spec`` a process of its own compiles first, so that no frame waits for a compiler.
        """
        assert self.beside is not None
        beside = self.beside
        given = tuple(tensor.detach().clone() for tensor in tensors)

        def make() -> Captured:
            return self._capture_or_again(run, given)

        def put_in(graph: Captured) -> None:
            self._put_in(key, graph)

        if spec is None or self.compiler is None:
            beside.submit(make, put_in, self._rest)
        else:
            precompile.submit_compiled(
                beside, lambda: self._compile(spec, run, given), make, put_in, self._rest
            )

    def _compile(
        self, spec: precompile.Spec | None, run: TensorCall, given: tuple[Tensor, ...]
    ) -> Compilation:
        if spec is None or self.compiler is None:
            return Compilation(here=True)
        return self.compiler.begin(spec, run, given)

    def _capture_or_again(self, run: TensorCall, given: tuple[Tensor, ...]) -> Captured:
        """A form on our own kernels, which another thread's work may forbid just then."""
        try:
            return self._capture(run, given)
        except RuntimeError as error:
            if not self._on_cuda or isinstance(error, torch.OutOfMemoryError):
                raise
            log.info("captured once more: %s", first_line(error))
            time.sleep(0.5)
        try:
            return self._capture(run, given)
        except RuntimeError:
            if self.compiler is not None:
                self.compiler.forget()  # should it be what was compiled: the next start trusts none of it
            raise

    def _rest(self, error: Exception) -> None:
        self.warn(f"our own kernels rest: {first_line(error)}")

    def _never(self, key: Key, error: Exception) -> None:
        self.warn(f"{key[0]} cannot be captured: {first_line(error)}; it runs operation by operation")

    def _put_in(self, key: Key, graph: Captured) -> None:
        with self._putting_in:
            if key in self.by_key:
                self.by_key[key] = graph  # one assignment: the frame loop sees the old or the new one

    def _is_compiled(self, spec: precompile.Spec) -> bool:
        return self.compiler is not None and self.compiler.known(spec)


def shapes_of(tensors: tuple[Tensor, ...]) -> Key:
    """What of the tensors a graph is bound to."""
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
