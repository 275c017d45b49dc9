"""The cue list: which cue stands, which comes next, and when one follows by itself."""

from __future__ import annotations

from collections.abc import Sequence

from sdbridge.config import CueConfig
from sdbridge.errors import SdbridgeError


class CueList:
    """A position in the cues of the config. It decides; the show does the recalling."""

    def __init__(self, cues: Sequence[CueConfig]) -> None:
        self.cues = tuple(cues)
        self.position = 0  # counted from 1; 0 is before the first
        self.follow_at_ns: int | None = None

    @property
    def current(self) -> CueConfig | None:
        return self.cues[self.position - 1] if self.position else None

    def find(self, name_or_number: str | int | float) -> int:
        """The position of a cue by name, or by its place in the list. Raises SDB-CUE-UNKNOWN."""
        if isinstance(name_or_number, str):
            wanted = name_or_number.strip().casefold()
            for position, cue in enumerate(self.cues, 1):
                if cue.name.strip().casefold() == wanted:
                    return position
        try:
            number = float(name_or_number)
        except ValueError:
            number = 0.0
        if number.is_integer() and 1 <= number <= len(self.cues):
            return int(number)
        known = ", ".join(cue.name for cue in self.cues[:12]) or "the list is empty"
        raise SdbridgeError(
            "SDB-CUE-UNKNOWN", f"there is no cue {str(name_or_number)[:80]!r} (known: {known})"
        )

    def beside(self, step: int) -> int:
        """The position ``step`` away from the present one. Raises SDB-CUE-UNKNOWN at either end."""
        position = self.position + step
        if not 1 <= position <= len(self.cues):
            side = "after the last" if step > 0 else "before the first"
            raise SdbridgeError("SDB-CUE-UNKNOWN", f"there is no cue {side} of {len(self.cues)}")
        return position

    def stand_at(self, position: int, now_ns: int) -> CueConfig:
        """Take a position; a follow time counts from this moment."""
        self.position = position
        cue = self.cues[position - 1]
        self.follow_at_ns = None if cue.follow is None else now_ns + int(cue.follow * 1e9)
        return cue

    def follows(self, now_ns: int) -> bool:
        """Whether it is time for the next cue; says so once."""
        if self.follow_at_ns is None or now_ns < self.follow_at_ns:
            return False
        self.follow_at_ns = None
        return True
