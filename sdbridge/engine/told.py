"""What an engine is told: at its birth, and by changes that came since its last frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdbridge.engine.interface import EngineConfig
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.table import TABLE

#: Parameters that the loop reads itself; engines never see these.
LOOP_PARAMETERS = frozenset({"output.fps"})


@dataclass(frozen=True)
class EngineStart:
    """All that a new engine is born with. Crosses to the child as one argument."""

    config: EngineConfig
    values: Mapping[str, Value]
    revision: int
    slots: Mapping[str, str]
    keepsakes: Mapping[str, bytes] = field(default_factory=dict)  # of the engine before it


def engine_size(values: Mapping[str, Value], multiple: int) -> tuple[int, int]:
    """Width and height that the engine works at: the parameters, down to what it can divide."""
    multiple = max(1, multiple)
    width, height = int(values.get("width", 512)), int(values.get("height", 512))
    return max(multiple, width // multiple * multiple), max(multiple, height // multiple * multiple)


def merge_changes(changes: list[tuple[Mapping[str, Value], int]]) -> list[tuple[dict[str, Value], int]]:
    """Changes of one frame as few calls as may be: the last value wins, but each trigger fires.

    A trigger that came twice cannot stand twice in one mapping, so it begins another.
    """
    merged: list[tuple[dict[str, Value], int]] = []
    for values, revision in changes:
        fired = {name for name in values if name in TABLE.rows and TABLE.rows[name].kind == "trigger"}
        if not merged or any(name in merged[-1][0] for name in fired):
            merged.append((dict(values), revision))
        else:
            merged[-1] = ({**merged[-1][0], **values}, revision)
    return merged


def for_engine(values: Mapping[str, Value]) -> dict[str, Value]:
    """Without those that the loop reads itself."""
    return {name: value for name, value in values.items() if name not in LOOP_PARAMETERS}
