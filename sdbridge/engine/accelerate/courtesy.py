"""How work beside the stream keeps out of the frames' way: it goes on while they wait for the device.

Python runs one thread at a time, and a network gone through operation by operation asks for its turn a
thousand times: frames that share their turns with it took twice as long for as long as that lasted. So such
work looks before each of its operations, and pauses while a frame is being queued. There is one interpreter
in a process, so there is one such rule.

The driver has a lock of its own. It loads code, and makes a captured graph ready, holding that lock, and code
only when the GPU has done all that is queued: with a second frame queued, the first could be fetched only
when both were done. So while anything is loaded or captured (``at_work``) one frame is in flight, not two;
a kernel is loaded between two frames, when nothing is queued; and a graph is made ready just after one is
queued, in the time that the GPU takes for it.

All that is for a source as fast as the engine. Between the frames of a slower one the frames' thread rests,
and whoever works beside it has interpreter and driver to itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from sdbridge.engine.accelerate.first_use import is_first

log = logging.getLogger(__name__)

#: Whether frames are fetched one by one while something is loaded or captured; off to compare.
ONE_AT_A_TIME = True

#: No work pauses longer than this for one stretch of the frames' thread: some never wait for a device. On
#: an H200 a stretch takes 1.3 to 3 ms; with 4 ms of patience, one that was disturbed was so to its end.
PATIENCE_S = 0.012

#: Work on the device waits no longer than this for the frame after which one is in flight.
EDGE_PATIENCE_S = 0.02

_LOAD_PATIENCE_S = 0.03  # a frame of a large model takes 17 ms
_QUEUED_PATIENCE_S = 0.05
_LOAD_S = 0.002  # a frame waits no longer for a kernel that is loaded before it: most take 0.2 to 2.3 ms
_LATELY_S = 0.1  # without a frame for so long, nobody is held up
_free = threading.Event()
_free.set()
_begun = threading.Event()
_queued = threading.Event()  # a frame, just now
_fetched = threading.Event()
_nothing_queued = threading.Event()
_loaded = threading.Event()
_asks_to_load = False
_resting = False
_busy_since = 0.0
_counting = threading.Lock()
_at_work = 0
_of_thread = threading.local()  # ``gives_way``


# --- the frames' thread ---


def frame_begins() -> None:
    """It goes to work."""
    global _busy_since, _resting
    _resting = False
    _busy_since = time.perf_counter()
    _free.clear()
    _tell(_begun)


def frame_waits() -> None:
    """It has queued its work, and waits."""
    _free.set()
    _tell(_queued)


def frames_rest() -> None:
    """None is queued, and none is there to be queued."""
    global _resting
    _resting = True
    for event in (_free, _queued, _fetched, _nothing_queued):
        _tell(event)


def _tell(event: threading.Event) -> None:
    """Mostly nobody waits, and setting what is set costs a frame more than to look."""
    if not event.is_set():
        event.set()


@contextmanager
def queueing_a_frame() -> Iterator[None]:
    """Between the two."""
    frame_begins()
    try:
        yield
    finally:
        frame_waits()


def frame_is_out(in_flight: int) -> None:
    """It has fetched a frame, with ``in_flight`` more queued, and goes to work again."""
    frame_begins()
    _tell(_fetched)
    if not in_flight:
        _tell(_nothing_queued)


def before_the_next(in_flight: int) -> None:
    """It is about to queue a frame: with none queued, one kernel may be loaded first."""
    global _asks_to_load
    if _asks_to_load and not in_flight:
        _nothing_queued.set()
        _loaded.wait(_LOAD_S)
        _asks_to_load = False  # one for each frame, and none that failed to load is waited for again


def one_at_a_time() -> bool:
    """Whether a frame is to be fetched before the next one is queued."""
    return ONE_AT_A_TIME and _at_work > 0


# --- whoever works beside it ---


def streams() -> bool:
    """Whether frames run that could be held up."""
    return time.perf_counter() - _busy_since < _LATELY_S


@contextmanager
def at_work() -> Iterator[None]:
    """Something is loaded or captured on the device; begins when one frame is in flight."""
    global _at_work
    with _counting:
        _at_work += 1
    try:
        if ONE_AT_A_TIME and streams():
            # From here on whoever drives the frames knows; those that it knew nothing of are one less.
            _fetched.clear()
            if not _resting:
                _fetched.wait(EDGE_PATIENCE_S)
        yield
    finally:
        with _counting:
            _at_work -= 1


@contextmanager
def beside_the_frames() -> Iterator[None]:
    """At work, and every operation gives way."""
    with at_work(), GivingWay():
        yield


def give_way() -> None:
    """Pause while a frame is being queued."""
    if not _free.is_set():
        left_s = _busy_since + PATIENCE_S - time.perf_counter()
        if left_s > 0:
            _free.wait(left_s)


def gives_way() -> bool:
    """Whether this thread works beside frames that run now."""
    return getattr(_of_thread, "gives_way", False) and streams()


def once_a_frame_is_queued() -> None:
    """Beside the stream, before the driver's lock is held for long: the GPU has a whole frame to do."""
    if ONE_AT_A_TIME and gives_way():
        _queued.clear()
        _queued.wait(_QUEUED_PATIENCE_S)


def load_begins(*about: Any) -> None:
    """Called before a kernel is loaded: beside the stream that waits until nothing is queued."""
    global _asks_to_load
    if not gives_way():
        return
    _drain()
    if not one_at_a_time():  # two frames are held up when it begins behind a second, one when with the next
        _begun.clear()
        _begun.wait(_LOAD_PATIENCE_S)
        return
    _loaded.clear()
    _nothing_queued.clear()
    _asks_to_load = True  # a frame that comes meanwhile waits for it, also one that ends a rest
    if not _resting:
        _nothing_queued.wait(_LOAD_PATIENCE_S)


def _drain() -> None:
    """Wait for what this thread has queued: a load would wait for it too, with the driver's lock held."""
    if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        torch.cuda.current_stream().synchronize()


def load_ends(*about: Any) -> None:
    """Called after it: the frame that waited is queued before this thread asks for the interpreter again.

    What follows a kernel's load is mostly the next kernel, whose reading is two milliseconds of Python.
    """
    global _asks_to_load
    if not getattr(_of_thread, "gives_way", False):
        return
    _asks_to_load = False
    _queued.clear()
    _loaded.set()
    if one_at_a_time() and streams() and not _resting:
        _queued.wait(_QUEUED_PATIENCE_S)


def watch_kernel_loads() -> None:
    """Have Triton call these two."""
    try:
        import triton

        starts = triton.knobs.runtime.kernel_load_start_hook
        ends = triton.knobs.runtime.kernel_load_end_hook
    except (ImportError, AttributeError) as error:
        log.info("kernels are loaded at any time: %s", error)
        return
    starts.add(load_begins)
    ends.add(load_ends)


class GivingWay(TorchFunctionMode):
    """As a context: every operation of PyTorch that this thread asks for gives way first.

    One that is new, for which a library may load code, has a moment between two frames of its own.
    """

    def __enter__(self) -> Any:
        _of_thread.gives_way = True
        return super().__enter__()

    def __exit__(self, *about: Any) -> None:
        _of_thread.gives_way = False
        super().__exit__(*about)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        give_way()
        if not streams() or not is_first(func, args):
            return func(*args, **(kwargs or {}))
        load_begins()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            load_ends()
