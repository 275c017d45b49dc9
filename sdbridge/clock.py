"""Time, passed in: the real clock here, a fake one in ``sdbridge.testing``."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time and waiting. Everything that waits takes one, so that tests never sleep."""

    def now_ns(self) -> int:
        """Nanoseconds that never go back, not even when someone sets the wall clock."""

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)
