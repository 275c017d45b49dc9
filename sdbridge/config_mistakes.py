"""How the mistakes in a configuration are told: each with where it came from and the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.table import TABLE

Place = tuple[str | int, ...]


def sentences(
    found: Iterable[Any], root: type[BaseModel], lines: Mapping[Place, int], given: Mapping[Place, str]
) -> list[str]:
    """Each of pydantic's ``errors()`` as ``line 7, engine.widht: unknown key, did you mean width?``.

    In the order of the file. ``lines`` has the line of each of its keys; ``given`` what came from
    elsewhere, by the name of the flag or variable that somebody typed.
    """
    told: list[tuple[int, str]] = []
    for item in found:
        for at, message in _parts(item, root):
            inner = [at[:end] for end in range(len(at), 0, -1)]
            source = next((given[place] for place in inner if place in given), None)
            line = 0 if source else next((lines[place] for place in inner if place in lines), 0)
            where = ".".join(str(part) for part in at) or "the file"
            prefix = f"{source}: " if source else f"line {line}, " if line else ""
            told.append((line, f"{prefix}{where}: {message}"))
    return [text for _, text in sorted(told, key=lambda row: row[0])]


def _parts(item: Any, root: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    """Where and what; the parameters, which are judged as a whole, one by one."""
    at: Place = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        yield at, _unknown(at, root)
        return
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("Field required", "is missing")
    if at == ("parameters",) and item["type"] == "value_error":
        for line in message.split("\n"):
            name, _, what = line.partition(": ")
            yield (*at, name), what
        return
    value = item.get("input")
    if isinstance(value, str | int | float | bool):
        message += f" (it is {value!r})"
    yield at, message


def _unknown(at: Place, root: type[BaseModel]) -> str:
    if _is_parameter(at):
        return f"unknown key; it is a parameter: write {'.'.join(str(part) for part in at)} under parameters"
    known = _keys_beside(at, root)
    near = difflib.get_close_matches(str(at[-1]), known, n=1, cutoff=0.5)
    return "unknown key, " + (
        f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
    )


def _is_parameter(at: Place) -> bool:
    try:
        TABLE.find(".".join(str(part) for part in at))
    except SdbridgeError:
        return False
    return True


def _keys_beside(at: Place, root: type[BaseModel]) -> list[str]:
    """The keys that the section holding ``at`` does know."""
    section: Any = root
    for part in at[:-1]:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None:
            return []
        section = next((t for t in _types_in(field.annotation) if hasattr(t, "model_fields")), None)
        if section is None:
            return []
    return list(section.model_fields)


def _types_in(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(t for part in inner for t in _types_in(part))]
