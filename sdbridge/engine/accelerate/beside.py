"""One thread for what gets better beside the running stream: compiling, capturing, tuning."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


class BesideTheStream:
    """Runs jobs one after another on a CUDA stream of its own; ``put_in`` gets each result, in its thread."""

    def __init__(self, device: torch.device, name: str = "accelerate") -> None:
        self._device = device
        # those that are waited for first, otherwise in the order they came
        self._jobs: queue.PriorityQueue[tuple[int, int, tuple[Any, Any, Any] | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._open = 0  # jobs submitted and not done
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        job: Callable[[], Any],
        put_in: Callable[[Any], None],
        failed: Callable[[Exception], None],
        first: bool = False,
    ) -> None:
        """``first``: somebody waits for it, so it goes before what only makes things better."""
        with self._changed:
            self._open += 1
        self._jobs.put((0 if first else 1, next(self._count), (job, put_in, failed)))

    def wait(self, timeout_s: float) -> bool:
        """Until every job is done; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    @property
    def busy(self) -> bool:
        return self._open > 0

    def is_closing(self) -> bool:
        """Asked by jobs that take long, so that they end early."""
        return self._closing

    def close(self) -> None:
        """Drop what has not begun; what has is waited for, since it holds the model's tensors."""
        self._closing = True
        self._jobs.put((2, next(self._count), None))
        self._thread.join(60.0)

    def _work(self) -> None:
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        while (given := self._jobs.get()[2]) is not None:
            job, put_in, failed = given
            try:
                if not self._closing:
                    with torch.cuda.stream(stream):  # None: nothing changes
                        put_in(job())
            except Exception as error:  # edge: what fails here leaves the stream as it was
                log.exception("getting faster beside the stream failed")
                failed(error)
            finally:
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()
