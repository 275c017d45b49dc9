"""How a block of shared memory is attached and let go of, and how writes to it are seen in their order."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, shared_memory
from typing import Any

_attach_lock = threading.Lock()


def attach_block(name: str) -> shared_memory.SharedMemory:
    """Another program's block, which stays when this process ends. Raises FileNotFoundError."""
    with _untracked(name):
        return shared_memory.SharedMemory(name)


def let_go(block: shared_memory.SharedMemory) -> None:
    """Close ``block``; while frames in it are still lent, the memory stays until the last is let go of."""
    try:
        block.close()
    except BufferError:
        # SharedMemory would try again, and complain, when it is collected. The views keep the mapping.
        held: Any = block
        held._buf = held._mmap = None
        block.close()  # what is left: the file descriptor


@contextmanager
def _untracked(name: str) -> Iterator[None]:
    """Keep an attached block out of this process's resource tracker.

    Before Python 3.13 attaching registers the block as if it were ours, and a foreign process's
    tracker would unlink it under the creator; unregistering afterwards is no better, because a
    spawned child shares its parent's tracker and would take the creator's own entry away.
    """
    with _attach_lock:
        tracker: Any = resource_tracker
        register = tracker.register

        def register_others(registered: str, kind: str) -> None:
            if registered.lstrip("/") != name.lstrip("/"):
                register(registered, kind)

        tracker.register = register_others
        try:
            yield
        finally:
            tracker.register = register


_fence_lock = threading.Lock()
_STRONGLY_ORDERED = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def full_fence() -> None:
    """Have every write so far seen by others before anything is read from here on; on x86 too."""
    for _turn in range(2):
        with _fence_lock:
            pass


def fence() -> None:
    """Keep memory writes and reads in program order on ARM; x86 does so by itself.

    Python has no fence. Release followed by acquire is one on ARM64, so two turns of a lock do it.
    """
    if not _STRONGLY_ORDERED:
        full_fence()
