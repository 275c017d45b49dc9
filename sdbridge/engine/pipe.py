"""What crosses between bridge and engine beside the frames: messages, and a wake-up that never blocks."""

from __future__ import annotations

import multiprocessing
import os
import select
import sys
from multiprocessing.connection import Connection
from typing import Any

#: Messages are tuples whose first word is one of these; the rest is noted beside it.
TO_ENGINE = (
    "change",  # values, revision: applied together at the next frame edge
    "reset",  # how
    "ping",  # n
    "slots",  # {"in:main": name, "out:generated": name, ...}: all of them, whenever one is new
    "gpu_output",  # prepare, take, release or drop; name, backend, options: a sender beside the tensors
    "stop",
)
FROM_ENGINE = (
    "state",  # EngineState, {"spec": EngineSpec, "report": WarmUpReport} as far as known
    "applied",  # revision
    "rejected",  # (Rejection, ...)
    "progress",  # Progress or None when done
    "stats",  # EngineStats
    "error",  # SdbridgeError
    "pong",  # n
    "need_slot",  # "out:generated", bytes: an output outgrew its slot
    "gpu_output",  # output name, GpuState, why
    "log",  # level, logger name, text
)

Message = tuple[Any, ...]

SPAWN = multiprocessing.get_context("spawn")


class Wake:
    """Wakes one waiting thread of another process. Setting it twice wakes once; setting never waits.

    A pipe on POSIX, because macOS cannot wait on a semaphore with a limit; a semaphore on Windows,
    whose pipes cannot be polled. Travels to a child as an argument of its Process.
    """

    def __init__(self) -> None:
        self._semaphore: Any = None
        self._reader: Connection | None = None
        self._writer: Connection | None = None
        if sys.platform == "win32":
            self._semaphore = SPAWN.Semaphore(0)
            return
        self._reader, self._writer = SPAWN.Pipe(duplex=False)
        os.set_blocking(self._reader.fileno(), False)  # shared by all who hold the pipe
        os.set_blocking(self._writer.fileno(), False)

    def set(self) -> None:
        """Wake the waiter, now or when it next waits."""
        if self._semaphore is not None:
            if self._semaphore.get_value() == 0:
                self._semaphore.release()
            return
        try:
            assert self._writer is not None
            os.write(self._writer.fileno(), b"\0")
        except OSError:
            pass  # full: a wake-up is under way already; closed: nobody waits any more

    def wait(self, timeout_s: float) -> bool:
        """Wait until set, at most ``timeout_s``; True if it was, and then it is clear again."""
        timeout_s = max(0.0, timeout_s)
        if self._semaphore is not None:
            return bool(self._semaphore.acquire(True, timeout_s))
        try:
            assert self._reader is not None
            descriptor = self._reader.fileno()
            ready, _, _ = select.select([descriptor], [], [], timeout_s)
            return bool(ready and os.read(descriptor, 65536))
        except (OSError, ValueError):
            return False  # closed while we waited, or the byte was taken by another waiter

    def close(self) -> None:
        for end in (self._reader, self._writer):
            if end is not None:
                end.close()
