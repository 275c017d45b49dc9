"""When the next output frame is due: at a rate of its own, or as the engine delivers."""

from __future__ import annotations

#: While the engine is late its last frame is repeated at this rate.
REPEAT_FPS = 30.0
#: Slack given to an engine that runs near the repeating rate, so that jitter makes no repeats.
LONGEST_WAIT_S = 0.05


class OutputPace:
    """Decides, from the clock alone, whether to send now and until when to wait."""

    def __init__(self, now_ns: int) -> None:
        self._sent_ns = now_ns
        self._new_ns = now_ns
        self._interval_s = 1 / REPEAT_FPS
        self._repeating = False
        self._beat_ns = now_ns

    def due_ns(self, fps: float) -> int:
        """When a frame must go out at the latest. ``fps`` 0 follows the engine."""
        if fps > 0:
            return self._beat_ns + int(1e9 / fps)
        wait_s = 1 / REPEAT_FPS
        if not self._repeating:
            wait_s = min(max(wait_s, 1.5 * self._interval_s), LONGEST_WAIT_S)
        return self._sent_ns + int(wait_s * 1e9)

    def is_due(self, now_ns: int, new: bool, fps: float) -> bool:
        """Whether to send at ``now_ns``; ``new`` says that an unsent frame waits."""
        if fps > 0:
            return now_ns >= self.due_ns(fps)
        return new or now_ns >= self.due_ns(fps)

    def sent(self, now_ns: int, new: bool, fps: float) -> None:
        """A frame went out, ``new`` or repeated."""
        if new:
            gap_s = (now_ns - self._new_ns) / 1e9
            self._interval_s += 0.2 * (min(gap_s, 1.0) - self._interval_s)
            self._new_ns = now_ns
        self._repeating = not new
        self._sent_ns = now_ns
        if fps > 0:
            due = self.due_ns(fps)
            # Keep the beat while we are less than one frame late, else begin a new one.
            self._beat_ns = due if now_ns - due < 1e9 / fps else now_ns
        else:
            self._beat_ns = now_ns
