"""Values as faders see them: 0 to 1 over a parameter's range, for surfaces that know no other numbers."""

from __future__ import annotations

import math

from sdbridge.parameters.parameter import Parameter, Value


def has_range(row: Parameter) -> bool:
    """Whether 0 to 1 means something for this parameter."""
    if row.kind == "enum":
        return len(row.choices) > 1
    return row.kind in ("int", "float") and row.minimum is not None and row.maximum is not None


def from_normalized(row: Parameter, value: object) -> object:
    """The value that a position between 0 and 1 stands for; what has no range is passed through."""
    if not has_range(row) or isinstance(value, str) or not isinstance(value, bool | int | float):
        return value
    share = float(value)
    if not math.isfinite(share):
        return value  # refused by the parameter itself, with its own words
    share = min(max(share, 0.0), 1.0)
    if row.kind == "enum":
        return row.choices[math.floor(share * (len(row.choices) - 1) + 0.5)]
    low, high = float(row.minimum or 0.0), float(row.maximum or 0.0)
    return low + (high - low) * share


def to_normalized(row: Parameter, value: Value) -> Value:
    """Where a value stands between 0 and 1; what has no range is passed through."""
    if not has_range(row):
        return value
    if row.kind == "enum":
        return row.choices.index(str(value)) / (len(row.choices) - 1)
    low, high = float(row.minimum or 0.0), float(row.maximum or 0.0)
    return (float(value) - low) / (high - low) if high > low else 0.0
