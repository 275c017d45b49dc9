"""When the next frame of a steady rate is due, without catching up on what was missed."""

from __future__ import annotations

from sdbridge.clock import Clock


class Pace:
    """Counts the beats of ``fps`` from the first call on."""

    def __init__(self, fps: float, clock: Clock) -> None:
        self.fps = fps
        self._clock = clock
        self._period_ns = int(1e9 / fps)
        self._start_ns: int | None = None
        self._given = -1

    def wait(self, timeout_s: float) -> int | None:
        """Sleep until the next beat and give its number; None if that is later than ``timeout_s``.

        A caller that comes late gets the present beat, and the ones between are gone.
        """
        now = self._clock.now_ns()
        if self._start_ns is None:
            self._start_ns = now
        present = (now - self._start_ns) // self._period_ns
        if present <= self._given:
            present = self._given + 1
            left_s = (self._start_ns + present * self._period_ns - now) / 1e9
            if left_s > timeout_s:
                self._clock.sleep(timeout_s)
                return None
            self._clock.sleep(left_s)
        self._given = present
        return int(present)
