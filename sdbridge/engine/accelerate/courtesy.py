"""How work beside the stream keeps out of the frames' way: it goes on while they wait for the device.

Python runs one thread at a time, and a network gone through operation by operation asks for its turn a
thousand times: frames that share their turns with it took twice as long for as long as that lasted. So such
work looks before each of its operations, and pauses while a frame is being queued. There is one interpreter
in a process, so there is one such rule.

Loading a kernel is the exception. The driver does it when the GPU has done what is queued, and lets nobody
else in meanwhile: two frames when it begins behind a second one, one when it begins with the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)

#: No work pauses longer than this for one stretch of the frames' thread: some never wait for a device. On
#: an H200 a stretch takes 1.3 to 3 ms; with 4 ms of patience, one that was disturbed was so to its end.
PATIENCE_S = 0.012

_LOAD_PATIENCE_S = 0.01
_LATELY_S = 0.1  # without a frame for so long, nobody is held up
_free = threading.Event()
_free.set()
_begun = threading.Event()
_busy_since = 0.0
_of_thread = threading.local()  # ``gives_way``


def frame_begins() -> None:
    """The frames' thread goes to work."""
    global _busy_since
    _busy_since = time.perf_counter()
    _free.clear()
    _begun.set()


def frame_waits() -> None:
    """The frames' thread has queued its work, and waits."""
    _free.set()


@contextmanager
def queueing_a_frame() -> Iterator[None]:
    """Between the two."""
    frame_begins()
    try:
        yield
    finally:
        frame_waits()


def give_way() -> None:
    """Pause while a frame is being queued."""
    if not _free.is_set():
        left_s = _busy_since + PATIENCE_S - time.perf_counter()
        if left_s > 0:
            _free.wait(left_s)


def load_with_a_frame(*about: Any) -> None:
    """Called before a kernel is loaded: beside the stream that waits for the next frame to begin."""
    streams = time.perf_counter() - _busy_since < _LATELY_S
    if streams and getattr(_of_thread, "gives_way", False):
        _begun.clear()
        _begun.wait(_LOAD_PATIENCE_S)


def watch_kernel_loads() -> None:
    """Have Triton call that."""
    try:
        import triton

        triton.knobs.runtime.kernel_load_start_hook.add(load_with_a_frame)
    except (ImportError, AttributeError) as error:
        log.info("kernels are loaded at any time: %s", error)


class GivingWay(TorchFunctionMode):
    """As a context: every operation of PyTorch that this thread asks for gives way first."""

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
        return func(*args, **(kwargs or {}))
