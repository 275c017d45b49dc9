"""How values get from here to there: easings, and the plan of one transition between two sets of values.

A transition never makes up a look of its own: numbers that may fade move, prompts and seeds are
blended by the engine over its weighted slots, everything else switches, and the last step is
exactly the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.parameters.table import ParameterTable

LONGEST_FADE_S = 3600.0

#: Strictly rising from 0 to 1, so that a fader never stands still or turns back on its way.
EASINGS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease_in": lambda t: t * t,
    "ease_out": lambda t: t * (2.0 - t),
    "ease_in_out": lambda t: t * t * (3.0 - 2.0 * t),
}


def ease(easing: str, share: float) -> float:
    """The eased share, 0 to 1. Raises SDB-FADE-EASING for a name that is not in EASINGS."""
    return check_easing(easing)(min(max(share, 0.0), 1.0))


def check_easing(easing: str) -> Callable[[float], float]:
    """The curve of that name, or SDB-FADE-EASING."""
    curve = EASINGS.get(easing.strip().lower().replace("-", "_") or "linear")
    if curve is None:
        raise SdbridgeError("SDB-FADE-EASING", f"there is no easing {easing[:40]!r}")
    return curve


def check_seconds(seconds: object) -> float:
    """A fade time from outside as seconds, or SDB-FADE-SECONDS."""
    try:
        number = float(seconds)  # type: ignore[arg-type]  # anything may come in over OSC or HTTP
    except (TypeError, ValueError):
        raise SdbridgeError("SDB-FADE-SECONDS", f"a fade takes seconds, not {str(seconds)[:40]!r}") from None
    if not math.isfinite(number) or not 0.0 <= number <= LONGEST_FADE_S:
        raise SdbridgeError("SDB-FADE-SECONDS", f"a fade of {number:g} s cannot be")
    return number


@dataclass(frozen=True)
class SlotBlend:
    """Slots whose weighted contents the engine blends: what is in them, and how much of it counts."""

    content: str
    weight: str
    slots: int
    pause: str = ""  # the engine's own transition, which rests while this one runs

    def names(self) -> tuple[str, ...]:
        """Every parameter that a morph over these slots may touch."""
        every = [row.replace("#", str(n)) for n in self.numbers() for row in (self.content, self.weight)]
        return (*every, self.pause) if self.pause else tuple(every)

    def numbers(self) -> range:
        return range(1, self.slots + 1)

    def content_of(self, values: Mapping[str, Value], slot: int) -> Value:
        return values[self.content.replace("#", str(slot))]

    def weight_of(self, values: Mapping[str, Value], slot: int) -> float:
        return float(values[self.weight.replace("#", str(slot))])

    def counts(self, values: Mapping[str, Value], slot: int) -> bool:
        """Whether the slot takes part in the picture: it has weight, and a text that is not blank."""
        content = self.content_of(values, slot)
        return self.weight_of(values, slot) > 0 and not (isinstance(content, str) and not content.strip())


BLENDS: tuple[SlotBlend, ...] = (
    SlotBlend("prompt.#.text", "prompt.#.weight", 8, pause="prompt_transition"),
    SlotBlend("seed.#.value", "seed.#.weight", 4),
)

#: What lets something in -> how much of it. Letting in starts from none, letting out ends at none.
GATES: Mapping[str, str] = {
    "lora.#.file": "lora.#.weight",
    "controlnet.#.model": "controlnet.#.scale",
    "controlnet.#.enabled": "controlnet.#.scale",
    "style.#.source": "style.#.weight",
}
_SHUT: tuple[Value, ...] = ("", False, "off")


@dataclass
class Transition:
    """From the values of now to ``end``: what switches at once, what moves, what it ends at.

    ``begin`` is how things stand, ``opening`` is set at the start, ``moving`` holds (from, to) of
    every number under way, and ``end`` is set at last. ``release`` takes a name out: whoever
    touches a fader holds it.
    """

    begin: dict[str, Value] = field(default_factory=dict)
    opening: dict[str, Value] = field(default_factory=dict)
    moving: dict[str, tuple[float, float]] = field(default_factory=dict)
    end: dict[str, Value] = field(default_factory=dict)

    def at(self, share: float) -> dict[str, Value]:
        """The values in motion at an eased share between 0 and 1, without the opening."""
        return {name: a + (b - a) * share for name, (a, b) in self.moving.items()}

    def whole_at(self, share: float) -> dict[str, Value]:
        """Everything as it stands at ``share``, for a morph fader that may jump anywhere."""
        if share <= 0.0 or share >= 1.0:
            return dict(self.begin if share <= 0.0 else self.end)
        return {**self.begin, **self.opening, **self.at(share)}

    def release(self, name: str) -> None:
        """Leave ``name`` alone from now on."""
        for place in (self.begin, self.opening, self.moving, self.end):
            place.pop(name, None)


def plan(start: Mapping[str, Value], target: Mapping[str, Value], table: ParameterTable) -> Transition:
    """The transition from ``start`` (every value) to ``target`` (some or all, already coerced)."""
    result = Transition(end=dict(target))
    after = {**start, **target}
    for name, value in target.items():
        before = start[name]
        if value == before:
            continue
        row = table.rows[name]
        if row.fade and _is_number(before) and _is_number(value):
            result.moving[name] = (float(before), float(value))
        elif not _stays_until_the_end(row, before, value):
            result.opening[name] = value
    for gate, amount in GATES.items():
        _plan_gates(result, start, after, gate, amount, table)
    for blend in BLENDS:
        if any(name in target for name in blend.names() if name != blend.pause):
            _plan_blend(result, start, after, blend)
    result.begin = {name: start[name] for name in result.end}
    return result


def claimed(target: Mapping[str, Value]) -> set[str]:
    """The names that a transition to ``target`` governs: its own, and whole sets of blended slots."""
    names = set(target)
    for blend in BLENDS:
        of_blend = set(blend.names())
        if names & (of_blend - {blend.pause}):
            names |= of_blend
    return names


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stays_until_the_end(row: Parameter, before: Value, value: Value) -> bool:
    """What is let out goes last, when its amount has faded to none; the rest switches at the start."""
    return any(_fits(row.name, gate) for gate in GATES) and value in _SHUT and before not in _SHUT


def _fits(name: str, template: str) -> bool:
    head, _, tail = template.partition("#")
    return name.startswith(head) and name.endswith(tail) and name[len(head) : -len(tail)].isdigit()


def _plan_gates(
    result: Transition,
    start: Mapping[str, Value],
    after: Mapping[str, Value],
    gate: str,
    amount: str,
    table: ParameterTable,
) -> None:
    for slot in range(1, 9):
        at_gate, at_amount = gate.replace("#", str(slot)), amount.replace("#", str(slot))
        if at_gate not in table.rows or start[at_gate] == after[at_gate]:
            continue
        was_shut, is_shut = start[at_gate] in _SHUT, after[at_gate] in _SHUT
        if was_shut and not is_shut:
            result.opening[at_amount] = 0.0
            result.moving[at_amount] = (0.0, float(after[at_amount]))
        elif is_shut and not was_shut:
            result.moving[at_amount] = (float(start[at_amount]), 0.0)
        if at_amount in result.moving:
            result.end.setdefault(at_amount, after[at_amount])


def _plan_blend(
    result: Transition, start: Mapping[str, Value], after: Mapping[str, Value], blend: SlotBlend
) -> None:
    """Lay the old contents beside the new ones, each new one in its final slot, and cross their weights.

    Where the slots do not suffice, the old contents with the least weight leave at once.
    """
    leaving: dict[Value, float] = {}  # content -> weight, equal contents taken together
    home: dict[Value, int] = {}
    for slot in blend.numbers():
        if blend.counts(start, slot):
            content = blend.content_of(start, slot)
            leaving[content] = leaving.get(content, 0.0) + blend.weight_of(start, slot)
            home.setdefault(content, slot)
    placed: dict[int, tuple[Value, float, float]] = {}
    for slot in blend.numbers():
        if blend.counts(after, slot):
            content = blend.content_of(after, slot)
            placed[slot] = (content, leaving.pop(content, 0.0), blend.weight_of(after, slot))
    for content in sorted(leaving, key=lambda one: -leaving[one]):
        free = [slot for slot in blend.numbers() if slot not in placed]
        if not free:
            break
        slot = home[content] if home[content] in free else free[-1]
        placed[slot] = (content, leaving[content], 0.0)
    for name in blend.names():
        result.opening.pop(name, None)
        result.moving.pop(name, None)
        result.end[name] = after[name]
    moved = False
    for slot in blend.numbers():
        content_name = blend.content.replace("#", str(slot))
        weight_name = blend.weight.replace("#", str(slot))
        if slot in placed:
            content, weight_from, weight_to = placed[slot]
            moved = moved or content != start[content_name]
            result.opening[content_name] = content
            result.opening[weight_name] = weight_from
            if weight_from != weight_to:
                result.moving[weight_name] = (weight_from, weight_to)
        elif blend.counts(start, slot):
            result.opening[weight_name] = 0.0
    if blend.pause and moved:
        result.opening[blend.pause] = 0.0
