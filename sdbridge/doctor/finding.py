"""One thing that doctor found: good, worth knowing, or wrong - and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["good", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """``name`` what was looked at, ``text`` what was seen in numbers, ``step`` what to do, if anything."""

    name: str
    grade: Grade
    text: str
    step: str = ""
