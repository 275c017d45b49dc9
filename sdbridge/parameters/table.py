"""The one list of parameters. OSC, OSCQuery, page, presets, docs and TouchDesigner pages are made from it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.groups import conditioning, engine, generate, output, prompt, stream
from sdbridge.parameters.parameter import Parameter, Value

#: Rows as written: a slot row stands once, with ``#`` for its number.
TEMPLATES: tuple[Parameter, ...] = (
    *prompt.ROWS,
    *generate.ROWS,
    *generate.SEED_ROWS,
    *stream.ROWS,
    *conditioning.ROWS,
    *output.ROWS,
    *engine.ROWS,
)

#: Slots beyond the first start without weight, so that a text or seed alone changes nothing.
_LATER_SLOT_DEFAULTS: Mapping[str, Value] = {"prompt.#.weight": 0.0, "seed.#.weight": 0.0}


def _expand(templates: tuple[Parameter, ...]) -> Iterator[Parameter]:
    for row in templates:
        if not row.slots:
            yield row
            continue
        for slot in range(1, row.slots + 1):
            concrete = row.in_slot(slot)
            if slot > 1 and row.name in _LATER_SLOT_DEFAULTS:
                concrete = replace(concrete, default=_LATER_SLOT_DEFAULTS[row.name])
            yield concrete


class ParameterTable:
    """All concrete parameters by name, address and alias. Immutable."""

    def __init__(self, templates: tuple[Parameter, ...] = TEMPLATES) -> None:
        self.templates = templates
        self.rows: Mapping[str, Parameter] = MappingProxyType({row.name: row for row in _expand(templates)})
        by_address: dict[str, Parameter] = {}
        for row in self.rows.values():
            by_address[row.address] = row
            for alias in row.aliases:
                by_address["/sdbridge/" + alias.replace(".", "/")] = row
        self.by_address: Mapping[str, Parameter] = MappingProxyType(by_address)
        self._aliases = {alias: row.name for row in self.rows.values() for alias in row.aliases}

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.rows.values())

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, name_or_address: str) -> Parameter:
        """The parameter of a name (``prompt.2.text``), alias (``prompt``) or address.

        Raises SdbridgeError SDB-PARAM-UNKNOWN with the nearest name.
        """
        row = self.by_address.get(name_or_address) or self.rows.get(
            self._aliases.get(name_or_address, name_or_address)
        )
        if row is None and "/" in name_or_address:
            row = self.by_address.get("/sdbridge/" + name_or_address.strip("/"))
        if row is None:
            near = self.nearest(name_or_address)
            hint = f"; the nearest is {near}" if near else ""
            raise SdbridgeError("SDB-PARAM-UNKNOWN", f"there is no parameter {name_or_address[:80]!r}{hint}")
        return row

    def nearest(self, name_or_address: str) -> str | None:
        """The most similar address or name, for error messages; None if nothing is like it."""
        known = self.by_address if name_or_address.startswith("/") else {**self.rows, **self._aliases}
        found = difflib.get_close_matches(name_or_address[:80], list(known), n=1, cutoff=0.6)
        return found[0] if found else None

    def defaults(self) -> dict[str, Value]:
        """The default of every parameter but triggers, by name."""
        return {row.name: row.default for row in self if row.kind != "trigger"}

    def schema(self) -> list[dict[str, object]]:
        """The rows as plain JSON values, templates first-hand: for pages, docs and TouchDesigner."""
        return [
            {**asdict(row), "address": row.address, "title": row.title, "range": row.range_text()}
            for row in self.templates
        ]

    def schema_hash(self) -> str:
        """Twelve hex digits that change when any row changes; components compare it with theirs."""
        text = json.dumps(self.schema(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


TABLE = ParameterTable()
