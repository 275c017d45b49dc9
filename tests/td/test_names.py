"""The mapping between the daemon's table, OSC addresses and TouchDesigner parameters."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.table import TABLE
from sdbridge_td.mapping import (
    SCHEMA_PAGES,
    Names,
    Schema,
    block_to_slot,
    from_daemon,
    slot_to_block,
    split_block_par,
    to_daemon,
)
from tests.td.conftest import COMPONENTS

DOCUMENT = json.loads((COMPONENTS / "schema" / "parameters.json").read_text(encoding="utf-8"))
NAMES = Names(Schema(DOCUMENT))
ALL = list(TABLE.rows)


def test_every_parameter_of_the_table_has_one_name_and_address_and_back() -> None:
    assert list(NAMES) and set(NAMES) == set(TABLE.rows)
    seen = set()
    for name, row in TABLE.rows.items():
        par = NAMES.par(name)
        assert re.fullmatch(r"[A-Z][a-z0-9]*", par), par
        assert par not in seen
        seen.add(par)
        assert NAMES.name(par) == name
        assert NAMES.address(name) == row.address
        assert NAMES.name_at(row.address) == name
        assert NAMES.rows[name].page in SCHEMA_PAGES
        if row.kind != "trigger":
            assert NAMES.default(name) == row.default, name


def test_slots_count_from_one_and_blocks_from_zero() -> None:
    assert NAMES.par("prompt.1.text") == "Prompt0text"
    assert NAMES.par("controlnet.8.scale") == "Controlnet7scale"
    assert NAMES.name("Lora1weight") == "lora.2.weight"
    assert NAMES.name("Lora1Weight") == "lora.2.weight"  # whichever way TouchDesigner writes it
    assert NAMES.name("Lora8weight") is None  # a ninth slot
    assert NAMES.block_of("prompt.3.text") == ("Prompt", 2)
    assert split_block_par("Prompt12text") == ("Prompt", 12, "text")
    assert all(block_to_slot(slot_to_block(n)) == n for n in range(1, 9))


def test_only_the_mapping_counts_slots() -> None:
    """Nowhere else in the component is a slot's or block's number shifted by one."""
    for path in sorted((COMPONENTS / "src" / "sdbridge_td").glob("*.py")):
        if path.stem not in ("mapping",):
            assert not re.search(r"slot\s*[-+]\s*1", path.read_text(encoding="utf-8")), path


@given(st.sampled_from(ALL), st.floats(-1e4, 1e4, allow_nan=False, width=32))
def test_numbers_are_rounded_as_the_daemon_rounds_them(name: str, number: float) -> None:
    """The daemon does not echo to the sender, so both must come to the same value."""
    row = TABLE.rows[name]
    if row.kind not in ("int", "float"):
        return
    try:
        theirs = row.coerce(number)
    except SdbridgeError:  # refused rather than clamped: TouchDesigner's own range keeps it away
        return
    ours = to_daemon(NAMES.rows[name], number)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert from_daemon(NAMES.rows[name], theirs) == ours


@settings(max_examples=50)
@given(st.sampled_from(ALL), st.one_of(st.none(), st.text(max_size=5), st.floats(), st.binary(max_size=3)))
def test_nothing_the_daemon_says_raises(name: str, value: object) -> None:
    found = from_daemon(NAMES.rows[name], value)
    assert found is None or isinstance(found, bool | int | float | str)


@pytest.mark.parametrize(
    "broken", [{}, {"hash": "x"}, {**DOCUMENT, "parameters": 3}, {**DOCUMENT, "status": [{}]}]
)
def test_a_file_that_is_no_schema_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no parameter schema"):
        Schema(broken)


def test_two_parameters_of_one_name_are_refused() -> None:
    rows = [*DOCUMENT["parameters"], {**DOCUMENT["parameters"][-1], "name": "guidance.scale", "slots": 0}]
    with pytest.raises(ValueError, match="both be Guidancescale"):
        Names(Schema({**DOCUMENT, "parameters": rows}))
