"""Coercion: every kind, from every OSC type, with refusals that name address, value and range."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import LARGEST_TEXT, Parameter
from sdbridge.parameters.table import TABLE

STRENGTH = Parameter("strength", "float", 0.5, 0.0, 1.0)
STEPS = Parameter("steps", "int", 1, 1, 8)
WIDTH = Parameter("width", "int", 512, 64, 2048, multiple_of=8)
SEED = Parameter("seed", "int", 2, 0, 100, out_of_range="refuse")
SWITCH = Parameter("on", "bool", False)
MODE = Parameter("mode", "enum", "a", choices=("a", "b"))
TEXT = Parameter("prompt", "str", "")
GO = Parameter("go", "trigger")


@pytest.mark.parametrize(
    ("row", "given", "wanted"),
    [
        (STRENGTH, 1, 1.0),
        (STRENGTH, True, 1.0),
        (STRENGTH, "0.25", 0.25),
        (STRENGTH, 7.0, 1.0),
        (STRENGTH, -1, 0.0),
        (STEPS, 2.5, 3),
        (STEPS, 0, 1),
        (STEPS, "4", 4),
        (WIDTH, 515, 512),
        (WIDTH, 100000, 2048),
        (SEED, 100.0, 100),
        (SWITCH, 0.49, False),
        (SWITCH, 1, True),
        (SWITCH, "off", False),
        (SWITCH, "True", True),
        (MODE, "B", "b"),
        (MODE, 1, "b"),
        (MODE, 0.0, "a"),
        (TEXT, 12, "12"),
        (TEXT, 0.5, "0.5"),
        (TEXT, "a\x00b", "ab"),
        (GO, 1.0, True),
        (GO, 0, False),
    ],
)
def test_values_become_what_the_row_says(row, given, wanted):
    value = row.coerce(given)
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("row", "given", "code"),
    [
        (STRENGTH, "loud", "SDB-PARAM-TYPE"),
        (STRENGTH, b"x", "SDB-PARAM-TYPE"),
        (STRENGTH, math.nan, "SDB-PARAM-NAN"),
        (STRENGTH, "inf", "SDB-PARAM-NAN"),
        (STEPS, -math.inf, "SDB-PARAM-NAN"),
        (SEED, 101, "SDB-PARAM-RANGE"),
        (SEED, -1, "SDB-PARAM-RANGE"),
        (SWITCH, "maybe", "SDB-PARAM-TYPE"),
        (SWITCH, math.nan, "SDB-PARAM-NAN"),
        (MODE, "c", "SDB-PARAM-RANGE"),
        (MODE, 2, "SDB-PARAM-RANGE"),
        (MODE, True, "SDB-PARAM-RANGE"),
        (TEXT, "x" * (LARGEST_TEXT + 1), "SDB-PARAM-RANGE"),
        (TEXT, None, "SDB-PARAM-TYPE"),
        (TEXT, True, "SDB-PARAM-TYPE"),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(row, given, code):
    with pytest.raises(SdbridgeError) as caught:
        row.coerce(given)
    assert caught.value.code == code
    assert row.address in str(caught.value)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers())
)


@given(st.sampled_from(list(TABLE)), ANYTHING)
def test_whatever_is_sent_ends_in_a_value_in_range_or_a_refusal(row, value):
    try:
        result = row.coerce(value)
    except SdbridgeError:
        return
    if row.kind in ("int", "float"):
        assert row.minimum is None or result >= row.minimum
        assert row.maximum is None or result <= row.maximum
    elif row.kind == "enum":
        assert result in row.choices
    assert row.coerce(result) == result  # a value that was accepted is accepted again, unchanged
