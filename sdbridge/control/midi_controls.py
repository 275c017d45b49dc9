"""What one MIDI control is: which messages belong to it, what they mean, and how to move it back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sdbridge.errors import SdbridgeError

#: cc: 7-bit; cc14: controller n with its fine half at n + 32; bend: pitch wheel, the faders of Mackie
#: surfaces; note: a key or pad; the others are endless encoders, by how they write a turn.
Kind = Literal["cc", "cc14", "bend", "note", "turn2", "turn64", "turn-sign"]
KINDS: tuple[Kind, ...] = ("cc", "cc14", "bend", "note", "turn2", "turn64", "turn-sign")
RELATIVE: tuple[Kind, ...] = ("turn2", "turn64", "turn-sign")
FINE = 32  # the fine half of controller n is controller n + 32
_NAME = re.compile(r"(?P<kind>[a-z0-9-]+) (?P<channel>\d{1,2})(/(?P<number>\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class MidiMessage:
    """One message as far as it matters here. ``value`` is 0 to 127, of a bend 0 to 16383."""

    kind: Literal["cc", "note", "bend"]
    channel: int  # 1 to 16, as on the device
    number: int
    value: int


@dataclass(frozen=True, slots=True)
class Control:
    """A fader, knob or button, the same on every device that sends these numbers."""

    kind: Kind
    channel: int
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.channel}" + ("" if self.kind == "bend" else f"/{self.number}")

    @staticmethod
    def parse(text: str) -> Control:
        """The control of a name such as ``cc 1/7``. Raises SDB-MIDI-CONTROL."""
        found = _NAME.fullmatch(text.strip().lower())
        if found is not None and found["kind"] in KINDS:
            kind: Kind = found["kind"]  # type: ignore[assignment]  # it is one of KINDS
            channel, number = int(found["channel"]), int(found["number"] or 0)
            top = FINE - 1 if kind == "cc14" else 127
            if 1 <= channel <= 16 and number <= top and (kind == "bend" or found["number"]):
                return Control(kind, channel, number)
        raise SdbridgeError("SDB-MIDI-CONTROL", f"{text[:40]!r} names no MIDI control")

    def takes(self, message: MidiMessage) -> bool:
        """Whether this message is a movement of this control."""
        if message.channel != self.channel:
            return False
        if self.kind in ("note", "bend"):
            return message.kind == self.kind and (self.kind == "bend" or message.number == self.number)
        if message.kind != "cc":
            return False
        return message.number == self.number or (self.kind == "cc14" and message.number == self.number + FINE)

    def turn(self, message: MidiMessage) -> int:
        """How many steps an encoder was turned, to the left below zero."""
        value = message.value
        if self.kind == "turn64":
            return value - 64
        if self.kind == "turn-sign":
            return -(value - 64) if value > 64 else value
        return value - 128 if value >= 64 else value

    def position_messages(self, share: float) -> list[MidiMessage]:
        """What moves a motor fader, or lights a button, at 0 to 1. Encoders have no position."""
        share = min(max(share, 0.0), 1.0)
        if self.kind in RELATIVE:
            return []
        if self.kind == "bend":
            return [MidiMessage("bend", self.channel, 0, round(share * 16383))]
        if self.kind == "cc14":
            whole = round(share * 16383)
            return [
                MidiMessage("cc", self.channel, self.number, whole >> 7),
                MidiMessage("cc", self.channel, self.number + FINE, whole & 127),
            ]
        kind: Literal["cc", "note"] = "note" if self.kind == "note" else "cc"
        return [MidiMessage(kind, self.channel, self.number, round(share * 127))]


class Position:
    """Puts the halves of a fader together and says where it stands, 0 to 1."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._coarse = 0
        self._fine = 0

    def after(self, message: MidiMessage) -> float:
        """The position once this message has been heard."""
        if self._control.kind == "bend":
            return message.value / 16383
        if self._control.kind != "cc14":
            return message.value / 127
        if message.number == self._control.number:
            self._coarse = message.value
            # A coarse step alone must still reach both ends.
            self._fine = 127 if message.value == 127 else 0
        else:
            self._fine = message.value
        return (self._coarse << 7 | self._fine) / 16383


def recognise(messages: Sequence[MidiMessage]) -> Control | None:
    """Which control was moved, from the messages of one movement; None while it cannot be said.

    A knob never sends the same value twice in a row, an endless encoder hardly anything else; a
    14-bit fader sends two controllers 32 apart.
    """
    if not messages:
        return None
    first = messages[0]
    mine = [m for m in messages if m.kind == first.kind and m.channel == first.channel]
    if first.kind == "bend":
        return Control("bend", first.channel)
    if first.kind == "note":
        return Control("note", first.channel, first.number)
    numbers = {message.number for message in mine}
    for number in sorted(numbers):
        if number < FINE and number + FINE in numbers:
            return Control("cc14", first.channel, number)
    values = [message.value for message in mine if message.number == first.number]
    return Control(_kind_of(values), first.channel, first.number)


def _kind_of(values: Sequence[int]) -> Kind:
    same = sum(a == b for a, b in itertools.pairwise(values))
    if len(values) < 3 or same * 2 < len(values) - 1 or 0 in values:
        return "cc"
    seen = set(values)
    if all(1 <= value <= 15 or 113 <= value <= 127 for value in seen):
        return "turn2"
    if all(1 <= value <= 15 or 65 <= value <= 79 for value in seen) and min(seen) <= 15:
        return "turn-sign"
    if all(49 <= value <= 79 for value in seen):
        return "turn64"
    return "cc"
