"""Pictures for people who look at the page: at most ten fresh ones a second, none if nobody asks."""

from __future__ import annotations

import threading

from sdbridge.clock import Clock
from sdbridge.frame import Frame

INTERVAL_NS = 100_000_000
#: A lent frame may be gone by the time it is looked at, but then there is a newer one.
ATTEMPTS = 8


class PreviewRelay:
    """Keeps the newest frame by reference, which costs the frame path one assignment.

    A frame may be lent; the copy is made when somebody looks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest: Frame | None = None
        self._given: Frame | None = None
        self._given_ns = -INTERVAL_NS
        self._lock = threading.Lock()

    def show(self, frame: Frame) -> None:
        self._newest = frame

    def forget(self) -> None:
        """There is no picture any more."""
        with self._lock:
            self._newest = self._given = None
            self._given_ns = -INTERVAL_NS

    def look(self) -> Frame | None:
        """The picture now; the same one again within a tenth of a second."""
        with self._lock:
            now = self._clock.now_ns()
            if now - self._given_ns >= INTERVAL_NS:
                for _attempt in range(ATTEMPTS):
                    newest = self._newest
                    owned = newest.own() if newest is not None else None
                    if owned is not None:
                        self._given, self._given_ns = owned, now
                        break
                    if newest is self._newest:
                        break  # lent, gone, and nothing newer: the picture before it stays
            return self._given
