"""Parameter <-> OSC address <-> TouchDesigner parameter: the one place that knows all three names.

The daemon counts slots from 1 (``prompt.2.text`` at ``/sdbridge/prompt/2/text``), a TouchDesigner
sequence counts its blocks from 0 (``Prompt1text``). Nothing else in the component knows of either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Value = bool | int | float | str

PREFIX = "/sdbridge/"
STATUS_PREFIX = "/sdbridge/status/"

#: Which page shows a group of the daemon's table. A group that is not named here goes to OTHER_PAGE.
PAGE_OF_GROUP: Mapping[str, str] = {
    "prompt": "Prompt",
    "controlnet": "Control",
    "style": "Control",
    "mask": "Control",
    "lora": "Lora",
    "output": "Safety",
}
OTHER_PAGE = "Generate"
#: Filled from the table, in the order in which they stand on the component.
SCHEMA_PAGES = ("Prompt", "Generate", "Control", "Lora", "Safety")

_BLOCK_NAME = re.compile(r"([A-Z][a-z]*)(\d+)([A-Za-z][A-Za-z0-9]*)")


@dataclass(frozen=True)
class Row:
    """One row of the daemon's table as ``schema/parameters.json`` brings it; ``#`` is a slot's number."""

    name: str
    kind: str
    default: Value
    later_default: Value
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    unit: str
    group: str
    slots: int
    effect: str
    help: str
    title: str
    multiple_of: int
    suggestions: tuple[str, ...]
    range: str

    @property
    def page(self) -> str:
        return PAGE_OF_GROUP.get(self.group, OTHER_PAGE)

    @property
    def sequence(self) -> str:
        """The sequence that holds this row's slots; empty for a row without slots."""
        return par_word(self.name.split(".#.")[0]) if self.slots else ""

    @property
    def par(self) -> str:
        """The parameter's name, or within a sequence the name that a block's parameter is made from."""
        return par_word(self.name.split(".#.")[1] if self.slots else self.name)


@dataclass(frozen=True)
class Topic:
    """A value of the daemon that only goes out, under ``/sdbridge/status/``."""

    name: str
    type: str
    help: str
    unit: str


class Schema:
    """``schema/parameters.json``, read. Raises ValueError with the reason if it is no such thing."""

    def __init__(self, document: Mapping[str, object]) -> None:
        try:
            self.hash = str(document["hash"])
            self.version = str(document["version"])
            self.rows = tuple(_row(item) for item in _list(document["parameters"]))
            self.topics = tuple(
                Topic(str(t["name"]), str(t["type"]), str(t["help"]), str(t["unit"]))
                for t in _list(document["status"])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no parameter schema: {error!r}") from None

    def page(self, name: str) -> list[Row]:
        """The rows of one page, in the table's order."""
        return [row for row in self.rows if row.page == name]


class Names:
    """All names of all parameters, both ways."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rows: dict[str, Row] = {}  # concrete name -> its row
        self._par_of: dict[str, str] = {}
        self._name_of: dict[str, str] = {}  # parameter's name in lower case -> concrete name
        self.sequences: dict[str, list[Row]] = {}
        for row in schema.rows:
            if row.slots:
                self.sequences.setdefault(row.sequence, []).append(row)
            for slot in range(1, row.slots + 1) or (0,):
                name = row.name.replace("#", str(slot))
                par = block_par(row.sequence, slot_to_block(slot), row.par) if row.slots else row.par
                if par.lower() in self._name_of:
                    raise ValueError(f"{name} and {self._name_of[par.lower()]} would both be {par}")
                self.rows[name] = row
                self._par_of[name] = par
                self._name_of[par.lower()] = name

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def par(self, name: str) -> str:
        """``prompt.2.text`` -> ``Prompt1text``."""
        return self._par_of[name]

    def name(self, par: str) -> str | None:
        """``Prompt1text`` -> ``prompt.2.text``; None for a parameter that is not the daemon's.

        Upper and lower case are taken for each other: the documentation does not say which of them
        TouchDesigner gives the name within a block.
        """
        return self._name_of.get(par.lower())

    def address(self, name: str) -> str:
        return PREFIX + name.replace(".", "/")

    def name_at(self, address: str) -> str | None:
        name = address.removeprefix(PREFIX).replace("/", ".")
        return name if name in self.rows else None

    def default(self, name: str) -> Value:
        row = self.rows[name]
        return row.default if slot_of(name) in (0, 1) else row.later_default

    def in_block(self, sequence: str, block: int) -> list[str]:
        """The concrete names of one block of a sequence; none past the daemon's last slot."""
        slot = block_to_slot(block)
        return [row.name.replace("#", str(slot)) for row in self.sequences[sequence] if slot <= row.slots]

    def slots(self, sequence: str) -> int:
        return max(row.slots for row in self.sequences[sequence])

    def block_of(self, name: str) -> tuple[str, int] | None:
        """``prompt.2.text`` -> ``("Prompt", 1)``; None for a parameter without slots."""
        row = self.rows[name]
        return (row.sequence, slot_to_block(slot_of(name))) if row.slots else None


def slot_to_block(slot: int) -> int:
    """The daemon's slots begin at 1, TouchDesigner's blocks at 0."""
    return slot - 1


def block_to_slot(block: int) -> int:
    return block + 1


def slot_of(name: str) -> int:
    """The slot in a concrete name, 0 if it has none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def block_par(sequence: str, block: int, par: str) -> str:
    """A block's parameter as TouchDesigner names it: sequence, index, name in lower case."""
    return f"{sequence}{block}{par.lower()}"


def split_block_par(par: str) -> tuple[str, int, str] | None:
    """``Prompt1text`` -> ``("Prompt", 1, "text")``; None for any other name."""
    found = _BLOCK_NAME.fullmatch(par)
    return (found[1], int(found[2]), found[3].lower()) if found else None


def par_word(name: str) -> str:
    """A custom parameter's name: a capital, then small letters and digits only."""
    return re.sub("[^a-z0-9]", "", name.lower()).capitalize()


def to_daemon(row: Row, value: object) -> Value:
    """What a parameter shows, as the value that goes to the daemon, in the row's range and steps.

    The daemon does not echo to whom a change came from, so what it would round we round as well.
    """
    if row.kind in ("bool", "trigger"):
        return bool(_finite(value))
    if row.kind in ("str", "enum"):
        return "" if value is None else str(value)
    number = _finite(value)
    if row.minimum is not None:
        number = max(number, row.minimum)
    if row.maximum is not None:
        number = min(number, row.maximum)
    if row.kind == "float":
        return clean(number)
    whole = math.floor(number + 0.5)
    if row.multiple_of:
        whole = max(row.multiple_of, round(whole / row.multiple_of) * row.multiple_of)
    return whole


def from_daemon(row: Row, value: object) -> Value | None:
    """What an echo brings, as the parameter's value; None where it does not fit the row."""
    try:
        if row.kind == "str":
            return value if isinstance(value, str) else None
        if row.kind == "enum":
            return value if isinstance(value, str) and value in row.choices else None
        if row.kind == "trigger" or not isinstance(value, bool | int | float):
            return None
        return to_daemon(row, value)
    except ValueError:
        return None


def clean(number: float) -> float:
    """A single-precision number as a person wrote it: 0.1, not 0.10000000149."""
    return float(f"{number:.7g}")


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # whatever TouchDesigner gives: refused if no number
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number to send")
    return number


def _list(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _row(item: Mapping[str, object]) -> Row:
    default = _value(item["default"])
    later = item.get("later_default")
    low, high = item["minimum"], item["maximum"]
    return Row(
        name=str(item["name"]),
        kind=str(item["kind"]),
        default=default,
        later_default=default if later is None else _value(later),
        minimum=float(low) if isinstance(low, int | float) else None,
        maximum=float(high) if isinstance(high, int | float) else None,
        choices=_words(item["choices"]),
        unit=str(item["unit"]),
        group=str(item["group"]),
        slots=int(str(item["slots"])),
        effect=str(item["effect"]),
        help=str(item["help"]),
        title=str(item["title"]),
        multiple_of=int(str(item["multiple_of"])),
        suggestions=_words(item["suggestions"]),
        range=str(item["range"]),
    )


def _words(value: object) -> tuple[str, ...]:
    return tuple(str(word) for word in value) if isinstance(value, list | tuple) else ()


def _value(value: object) -> Value:
    if not isinstance(value, bool | int | float | str):
        raise TypeError(f"{value!r} is no value")
    return value
