"""How a backend reads its own options: a frozen dataclass of defaults, every mistake named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from sdbridge.errors import SdbridgeError

Options = TypeVar("Options")


@dataclass(frozen=True)
class NoOptions:
    """For backends that have none: any option given is a mistake."""


def option(
    default: bool | int | float | str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of an options dataclass, with its bounds (both inclusive) or its choices."""
    return field(default=default, metadata={"low": low, "high": high, "choices": choices})


def read_options(kind: type[Options], given: Mapping[str, object], backend: str) -> Options:
    """``given`` as a ``kind``. Raises SDB-TEXTURE-OPTION naming the option, its value and what is wanted."""
    known = {row.name: row for row in fields(kind)}  # type: ignore[arg-type]  # every caller gives a dataclass
    values: dict[str, object] = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(known)) or 'none'}"
            raise SdbridgeError("SDB-TEXTURE-OPTION", f"{backend} has no option {name}; {hint}")
        values[name] = _coerced(known[name], value, backend)
    return kind(**values)


def _coerced(row: Field[Any], value: object, backend: str) -> object:
    """``value`` in the type of the field's default; 30 for a float and "512" for an int are meant well."""
    default = row.default
    assert default is not MISSING, f"the option {row.name} of {backend} needs a default"
    wrong = SdbridgeError(
        "SDB-TEXTURE-OPTION",
        f"{backend}'s option {row.name} must be {_wanted(row)}, it is {value!r}",
    )
    if isinstance(default, bool):
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise wrong
    if isinstance(default, str):
        text = str(value)
        choices = row.metadata.get("choices") or ()
        if choices and text not in choices:
            raise wrong
        return text
    if isinstance(value, bool):
        raise wrong
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is, float() decides
    except (TypeError, ValueError):
        raise wrong from None
    low, high = row.metadata.get("low"), row.metadata.get("high")
    too_far = (low is not None and not number >= low) or (high is not None and not number <= high)
    if number != number or too_far or (isinstance(default, int) and number != int(number)):
        raise wrong
    return int(number) if isinstance(default, int) else number


def _wanted(row: Field[Any]) -> str:
    if isinstance(row.default, bool):
        return "true or false"
    if isinstance(row.default, str):
        choices = row.metadata.get("choices") or ()
        return f"one of {', '.join(choices)}" if choices else "text"
    kind = "a whole number" if isinstance(row.default, int) else "a number"
    low, high = row.metadata.get("low"), row.metadata.get("high")
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    return kind if low is None else f"{kind} of at least {low:g}"
