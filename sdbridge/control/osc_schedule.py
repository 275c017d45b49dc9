"""When a dated bundle is due: timetags turned into monotonic time, kept until then, never slept on."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdbridge.clock import Clock
from sdbridge.control.osc_decode import OscBundle

FARTHEST_S = 10.0
MOST_WAITING = 2_000  # messages
MOST_TEXT = 4_000_000  # characters and bytes in them
_NTP_TO_UNIX_S = 2_208_988_800
_STILL_NOW_S = 0.001


class OscTooFarError(ValueError):
    """A bundle dated beyond what is kept, or one more than fits; the text says which."""


@dataclass(order=True)
class _Waiting:
    due_ns: int
    order: int
    bundle: OscBundle = field(compare=False)
    sender: tuple[str, int] = field(compare=False)


class OscSchedule:
    """Bundles that wait for their time. Not thread-safe: it belongs to the thread that receives.

    The wall clock is asked once, when a bundle comes in; after that only the monotonic clock counts,
    so that setting the time of day during a show neither fires nor delays anything.
    """

    def __init__(self, clock: Clock, wall_s: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall_s = wall_s
        self._heap: list[_Waiting] = []
        self._order = itertools.count()
        self._messages = 0
        self._text = 0
        self.late = 0  # bundles that were dated in the past and applied at once

    def __len__(self) -> int:
        return len(self._heap)

    def put_off(self, bundle: OscBundle, sender: tuple[str, int]) -> bool:
        """Keep ``bundle`` if it is dated ahead; False means: apply it now. Raises OscTooFarError."""
        if bundle.timetag <= 1:  # 1 is "immediately"; 0 is what some senders write for it
            return False
        ahead_s = bundle.timetag / 2**32 - _NTP_TO_UNIX_S - self._wall_s()
        if ahead_s <= _STILL_NOW_S:
            self.late += ahead_s < -_STILL_NOW_S
            return False
        if ahead_s > FARTHEST_S:
            raise OscTooFarError(f"it is dated {ahead_s:.1f} s ahead; {FARTHEST_S:g} s are the most")
        if self._messages + len(bundle.messages) > MOST_WAITING:
            raise OscTooFarError(f"{self._messages} messages wait already; {MOST_WAITING} are the most")
        if self._text + _text_in(bundle) > MOST_TEXT:
            raise OscTooFarError(f"{self._text} characters wait already; {MOST_TEXT} are the most")
        due_ns = self._clock.now_ns() + int(ahead_s * 1e9)
        heapq.heappush(self._heap, _Waiting(due_ns, next(self._order), bundle, sender))
        self._messages += len(bundle.messages)
        self._text += _text_in(bundle)
        return True

    def take_due(self) -> list[tuple[OscBundle, tuple[str, int]]]:
        """The bundles whose time has come, earliest first."""
        now = self._clock.now_ns()
        due: list[tuple[OscBundle, tuple[str, int]]] = []
        while self._heap and self._heap[0].due_ns <= now:
            waiting = heapq.heappop(self._heap)
            self._messages -= len(waiting.bundle.messages)
            self._text -= _text_in(waiting.bundle)
            due.append((waiting.bundle, waiting.sender))
        return due

    def next_in_s(self) -> float | None:
        """Seconds until something is due, None if nothing waits."""
        if not self._heap:
            return None
        return max(self._heap[0].due_ns - self._clock.now_ns(), 0) / 1e9


def _text_in(bundle: OscBundle) -> int:
    return sum(len(a) for message in bundle.messages for a in message.args if isinstance(a, str | bytes))
