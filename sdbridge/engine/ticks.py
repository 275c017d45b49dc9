"""One engine's ticks: queued and brought out in order, timed, and when the next one is best queued."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sdbridge.clock import Clock
from sdbridge.engine.interface import MOST_PENDING, Engine, OverlappingEngine, overlapping
from sdbridge.frame import Chunk

#: The host is given this much more time than it needed lately to queue a tick before the device idles.
SLACK_NS = 500_000
#: How fast the expected time of a tick follows ticks that take longer; to shorter ones it goes at once.
SLOWER = 1 / 16


@dataclass(frozen=True)
class Finished:
    """A tick that is done: what it made (None while the pipe fills) and what it was queued with."""

    chunk: Chunk | None
    revision: int
    spacing_s: float


@dataclass(frozen=True)
class _Ticket:
    revision: int
    spacing_s: float
    began_ns: int


def shown_revision(engine: Engine, revision: int) -> int:
    """``revision``, or the earlier one that ``engine`` has got to in its newest tick."""
    shown = getattr(engine, "shows_up_to", None)
    return revision if shown is None else min(revision, shown)


class Ticks:
    """Makes every engine look as if it overlapped: a plain one ticks in ``submit`` and is done.

    With one tick pending the next frame is best taken just before the device will be free: earlier
    it would only lie in the device's queue and grow old there, later the device would idle. When
    that moment is, ``best_ns`` says, from what ticks took lately.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._overlapping = overlapping(engine)
        self._clock = clock
        self._tickets: deque[_Ticket] = deque()
        self._made: Chunk | None = None  # by a plain engine, not collected
        self._last_ns = 0
        self._free_ns = 0  # when the device finished the tick that was collected last
        self._expected_ns: float | None = None
        self._host_ns = 0.0
        self.done = 0
        self.tick_ms = 0.0

    @property
    def overlap(self) -> bool:
        return self._overlapping is not None

    @property
    def pending(self) -> int:
        return len(self._tickets)

    @property
    def full(self) -> bool:
        """Whether a tick is to be collected before the next is submitted."""
        most = getattr(self._engine, "most_pending", MOST_PENDING) if self.overlap else 1
        return len(self._tickets) >= most

    @property
    def last_ns(self) -> int:
        """When the newest tick began; 0 before the first."""
        return self._last_ns

    @property
    def finish_ns(self) -> int:
        """When the oldest tick should be finished; in the past if none is pending or nothing is known yet."""
        if not self._tickets or self._expected_ns is None:
            return 0
        return int(max(self._tickets[0].began_ns, self._free_ns) + self._expected_ns)

    @property
    def best_ns(self) -> int:
        """When the next frame is best taken: so long before the device is free as the host needs."""
        return int(self.finish_ns - 2 * self._host_ns - SLACK_NS)

    def submit(self, chunk: Chunk | None, revision: int, taken_ns: int) -> None:
        """Queue a tick whose frame began to be taken at ``taken_ns``. What the engine raises passes.

        The tick bears ``revision``, or less where the engine holds something back.
        """
        began_ns = self._clock.now_ns()
        spacing_s = (began_ns - self._last_ns) / 1e9 if self._last_ns else 0.0
        if self._overlapping is None:
            self._made = self._engine.tick(chunk)
        else:
            self._overlapping.submit(chunk)
            host_ns = self._clock.now_ns() - taken_ns
            self._host_ns += 0.2 * (host_ns - self._host_ns) if self._host_ns else host_ns
        self._last_ns = began_ns
        revision = shown_revision(self._engine, revision)
        self._tickets.append(_Ticket(revision, min(spacing_s, 1.0), began_ns))

    def collect(self, wait: bool) -> Finished | None:
        """The oldest tick if it is finished, or once it is. What the engine raises passes."""
        if not self._tickets:
            return None
        made, self._made = self._made, None
        if self._overlapping is not None:
            made = self._ask(self._overlapping, wait)
            if made is None and not wait and self._overlapping.pending >= len(self._tickets):
                return None
        ticket = self._tickets.popleft()
        self._time(ticket)
        return Finished(made, ticket.revision, ticket.spacing_s)

    def _ask(self, engine: OverlappingEngine, wait: bool) -> Chunk | None:
        answered = False
        try:
            made = engine.collect(wait)
            answered = True
        finally:
            if not answered:  # the tick that raised is out; so is whatever else the engine gave up
                while len(self._tickets) > engine.pending:
                    self._tickets.popleft()
                self._free_ns = self._clock.now_ns()
        return made

    def discard(self) -> None:
        """Bring out all that is pending for nobody. What the engine raises passes."""
        while self._tickets:
            self.collect(wait=True)

    def keep_beat(self, began_ns: int) -> None:
        """Have the newest tick count as begun at ``began_ns``, for one that kept to a beat."""
        self._last_ns = began_ns

    def _time(self, ticket: _Ticket) -> None:
        """What the tick took of the device's time: no more than since the one before it was done."""
        now = self._clock.now_ns()
        took_ns = now - max(ticket.began_ns, self._free_ns)
        self._free_ns = now
        self.done += 1
        took_ms = took_ns / 1e6
        self.tick_ms = took_ms if self.done <= 2 else self.tick_ms + 0.1 * (took_ms - self.tick_ms)
        if self._expected_ns is None or took_ns < self._expected_ns:
            self._expected_ns = took_ns
        else:
            self._expected_ns += SLOWER * (took_ns - self._expected_ns)
