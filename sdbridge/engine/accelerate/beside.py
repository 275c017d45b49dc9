"""One thread for what gets better beside the running stream: compiling, capturing, tuning."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate.courtesy import beside_the_frames
from sdbridge.engine.accelerate.streams import own_stream

log = logging.getLogger(__name__)

_LOOK_S = 0.02  # how often jobs that are not ready are asked
_of_thread = threading.local()  # ``works``: it is one that works beside a stream


def works_beside() -> bool:
    """Whether the calling thread works beside the stream: nothing may be written there that frames read."""
    return getattr(_of_thread, "works", False)


@contextmanager
def capturing_for(marks: tuple[str, ...]) -> Iterator[None]:
    """The calling thread runs a call marked so, whatever frames run by now (``marks_here``)."""
    before, _of_thread.marks = marks_here(), marks
    try:
        yield
    finally:
        _of_thread.marks = before


def marks_here() -> tuple[str, ...] | None:
    """How the call is marked that is captured beside the stream; None in the frames' own thread."""
    return getattr(_of_thread, "marks", None) if works_beside() else None


def only_noted(tensor: Tensor) -> bool:
    """Whether a capture notes down what is done to ``tensor`` now, and does not do it."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(order=True)
class _Job:
    """``place``: those that are waited for first, otherwise in the order they came."""

    place: tuple[int, int]
    work: Callable[[], Any] = field(compare=False)
    put_in: Callable[[Any], None] = field(compare=False)
    failed: Callable[[Exception], None] = field(compare=False)
    ready: Callable[[], bool] = field(compare=False)


class BesideTheStream:
    """Runs jobs one after another on a CUDA stream of its own; ``put_in`` gets each result, in its thread.

    A job that is not ``ready`` yet lets others go before it.
    """

    def __init__(self, device: torch.device, gives_way: bool = False) -> None:
        """``gives_way``: the jobs keep out of the frames' way (``courtesy.py``)."""
        self._device = device
        self._gives_way = gives_way
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: list[_Job] = []  # taken from the queue; the thread's own
        self._count = itertools.count()
        self._open = 0  # jobs submitted and not done
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="accelerate", daemon=True)
        self._thread.start()

    def submit(
        self,
        job: Callable[[], Any],
        put_in: Callable[[Any], None],
        failed: Callable[[Exception], None],
        first: bool = False,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """``first``: somebody waits for it, so it goes before what only makes things better."""
        with self._changed:
            self._open += 1
        self._jobs.put(_Job((0 if first else 1, next(self._count)), job, put_in, failed, ready))

    def wait(self, timeout_s: float) -> bool:
        """Until every job is done; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    @property
    def count(self) -> int:
        """Jobs submitted and not done."""
        return self._open

    def close(self) -> None:
        """Drop what has not begun; what has is waited for, since it holds the model's tensors."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join(60.0)

    def _work(self) -> None:
        _of_thread.works = True
        stream = own_stream(self._device) if self._device.type == "cuda" else None
        while (given := self._next()) is not None:
            try:
                if not self._closing:
                    way = beside_the_frames() if self._gives_way else nullcontext()
                    with torch.cuda.stream(stream), way:  # None: nothing changes
                        given.put_in(given.work())
            except (RuntimeError, OSError, ImportError, MemoryError) as error:
                # no memory, no compiler, a refused capture: whoever asked says it in a line
                given.failed(error)
            except Exception as error:  # edge: what fails here leaves the stream as it was
                log.exception("getting faster beside the stream failed")
                given.failed(error)
            finally:
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The first job that can begin, waited for; None once closed."""
        waiting = self._waiting
        while True:
            try:
                while (came := self._jobs.get_nowait()) is not None:
                    waiting.append(came)
            except queue.Empty:
                pass
            else:
                break  # closed
            ready = min((job for job in waiting if job.ready()), default=None)
            if ready is not None:
                waiting.remove(ready)
                return ready
            with suppress(queue.Empty):
                came = self._jobs.get(timeout=_LOOK_S if waiting else None)
                if came is None:
                    break
                waiting.append(came)
        with self._changed:  # nobody runs what is left
            self._open = 0
            self._changed.notify_all()
        return None
