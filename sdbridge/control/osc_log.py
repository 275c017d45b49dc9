"""What came in over OSC and what became of it: the last messages, each with a verdict."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sdbridge.control.osc_decode import Argument

log = logging.getLogger(__name__)

Verdict = Literal["ok", "unknown", "invalid", "ignored"]
KEPT = 200
_LONGEST = 120  # characters kept of an address or a text
_MOST_ARGS = 16
_LINES_A_SECOND = 5
_REMARK_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class OscLogEntry:
    """One message. ``at`` is Unix time; ``reason`` says why it was not simply applied."""

    at: float
    address: str
    args: tuple[Argument, ...]
    sender: str
    verdict: Verdict
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain values for the page."""
        args = [f"{len(a)} bytes" if isinstance(a, bytes) else a for a in self.args]
        # JSON knows no NaN; the page shows the word instead.
        args = [str(a) if isinstance(a, float) and (a != a or abs(a) == float("inf")) else a for a in args]
        return {
            "at": self.at,
            "address": self.address,
            "args": args,
            "sender": self.sender,
            "verdict": self.verdict,
            "reason": self.reason,
        }


class OscLog:
    """A ring of verdicts and counters of them. Writing belongs to one thread, reading to any."""

    def __init__(self) -> None:
        self._entries: deque[OscLogEntry] = deque(maxlen=KEPT)
        self.counts: Counter[str] = Counter()
        self._second = 0
        self._lines = 0
        self._held_back = 0
        self._remarked: dict[str, float] = {}  # one entry an address of the table

    def add(
        self, address: str, args: tuple[Argument, ...], sender: str, verdict: Verdict, reason: str = ""
    ) -> None:
        now = time.time()
        self.counts[verdict] += 1
        if len(address) > _LONGEST:
            address = address[:_LONGEST] + "..."
        self._entries.append(OscLogEntry(now, address, _short(args), sender, verdict, reason))
        if verdict in ("unknown", "invalid"):
            self._say(address, sender, reason)

    def entries(self) -> Sequence[OscLogEntry]:
        """The newest messages, oldest first."""
        while True:
            try:
                return tuple(self._entries)
            except RuntimeError:  # one came in while copying
                continue

    @property
    def held_back(self) -> int:
        """Refusals whose lines were not written yet, for there were too many in their second."""
        return self._held_back

    def flush(self) -> None:
        """Say how many refusals of a second that is over got no line of their own."""
        second = int(time.time())
        if second != self._second:
            if self._held_back:
                log.warning("OSC: %d more messages were refused; the page shows them", self._held_back)
            self._second, self._lines, self._held_back = second, 0, 0

    def remark(self, address: str, sender: str, text: str) -> None:
        """A line about a value that was taken otherwise than sent; a fader sends it with every touch."""
        now = time.monotonic()
        if now - self._remarked.get(address, -math.inf) >= _REMARK_AGAIN_S:
            self._remarked[address] = now
            log.warning("OSC from %s: %s", sender, text)

    def _say(self, address: str, sender: str, reason: str) -> None:
        """One line a refusal in the log, but a flood of them must not fill the disk."""
        self.flush()
        if self._lines >= _LINES_A_SECOND:
            self._held_back += 1
            return
        self._lines += 1
        log.warning("OSC from %s: %r: %s", sender, address, reason)


def _short(args: tuple[Argument, ...]) -> tuple[Argument, ...]:
    for one in args:
        if isinstance(one, str | bytes) and len(one) > _LONGEST:
            break
    else:
        if len(args) <= _MOST_ARGS:
            return args
    short: list[Argument] = []
    for one in args[:_MOST_ARGS]:
        if isinstance(one, str) and len(one) > _LONGEST:
            short.append(one[:_LONGEST] + "...")
        elif isinstance(one, bytes) and len(one) > _LONGEST:
            short.append(one[:_LONGEST])
        else:
            short.append(one)
    return tuple(short)
