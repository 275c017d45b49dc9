"""Pictures for people who look at the page: at most ten fresh ones a second, none if nobody asks."""

from __future__ import annotations

import threading

from sdbridge.clock import Clock
from sdbridge.frame import Frame

INTERVAL_NS = 100_000_000


class PreviewRelay:
    """Keeps the newest frame by reference, which costs the frame path one assignment.

    Frames on that path are never written after they were handed on, so no copy is needed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest: Frame | None = None
        self._given: Frame | None = None
        self._given_ns = -INTERVAL_NS
        self._lock = threading.Lock()

    def show(self, frame: Frame) -> None:
        self._newest = frame

    def look(self) -> Frame | None:
        """The picture now; the same one again within a tenth of a second."""
        with self._lock:
            now = self._clock.now_ns()
            if now - self._given_ns >= INTERVAL_NS:
                self._given, self._given_ns = self._newest, now
            return self._given
