"""How far work beside the frames is, and which of several works people are told of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sdbridge.engine.interface import Progress


@dataclass
class Share:
    """``done`` of ``total`` in bytes, layers or whatever the work counts; 0 total: it cannot be told."""

    done: float = 0.0
    total: float = 0.0

    def expect(self, total: float) -> None:
        """From here on ``total`` is to be done; what came before no longer counts."""
        self.done, self.total = 0.0, total

    def did(self, count: float) -> None:
        self.done = self.done + count


_HERE = threading.local()


def share_here() -> Share:
    """Where the calling thread's work counts; a new one that nobody reads where nobody asked."""
    here: Share | None = getattr(_HERE, "share", None)
    return Share() if here is None else here


@contextmanager
def counted_in(share: Share) -> Iterator[None]:
    """In this thread ``share_here`` gives ``share``."""
    before = getattr(_HERE, "share", None)
    _HERE.share = share
    try:
        yield
    finally:
        _HERE.share = before


class UnderWay:
    """Several works at once, of which people see one: the one that spoke last and is not over."""

    def __init__(self, send: Callable[[Progress | None], None]) -> None:
        self._send = send
        self._works: dict[str, Progress] = {}
        self._lock = threading.Lock()  # compiling and loading have threads of their own

    def tell(self, work: str, progress: Progress | None) -> None:
        """``work`` stands at ``progress``; None: it is over, and another one may be left."""
        with self._lock:
            over = self._works.pop(work, None)
            if progress is not None:
                self._works[work] = progress
            elif over is None:
                return
            self._send(next(reversed(self._works.values()), None))
