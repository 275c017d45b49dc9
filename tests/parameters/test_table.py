"""The table: well formed, complete in its words, and its addresses pinned where others rely on them."""

import re

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.table import TABLE


@pytest.mark.parametrize("row", TABLE.templates, ids=lambda row: row.name)
def test_each_row_is_well_formed(row):
    assert re.fullmatch(r"[a-z#][a-z0-9_#]*(\.[a-z0-9_#]+)*", row.name)
    assert row.help.endswith((".", '"')) and row.group
    assert ("#" in row.name) == bool(row.slots)
    if row.kind != "trigger":
        assert row.coerce(row.default) == row.default
    if row.fade:
        assert row.kind == "float" and row.minimum is not None and row.maximum is not None
    if row.kind == "enum":
        assert row.default in row.choices


def test_names_and_addresses_are_unique():
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert len({row.address for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/sdbridge/prompt", "prompt.1.text"),
        ("/sdbridge/prompt/2/text", "prompt.2.text"),
        ("/sdbridge/prompt/8/weight", "prompt.8.weight"),
        ("/sdbridge/seed", "seed.1.value"),
        ("/sdbridge/controlnet/1/scale", "controlnet.1.scale"),
        ("/sdbridge/lora/1/weight", "lora.1.weight"),
        ("/sdbridge/step_indices", "step_indices"),
        ("/sdbridge/guidance_scale", "guidance_scale"),
    ],
)
def test_pinned_addresses(address, name):
    assert TABLE.find(address).name == name


@pytest.mark.parametrize(
    ("stem", "slots"), [("prompt", 8), ("seed", 4), ("controlnet", 8), ("lora", 8), ("style", 4)]
)
def test_slots_count_from_one(stem, slots):
    numbers = {int(row.name.split(".")[1]) for row in TABLE if re.match(rf"{stem}\.\d", row.name)}
    assert numbers == set(range(1, slots + 1))


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(SdbridgeError, match="the nearest is /sdbridge/guidance_scale"):
        TABLE.find("/sdbridge/guidence_scale")


def test_only_the_first_prompt_and_seed_weigh_at_the_start():
    defaults = TABLE.defaults()
    assert [defaults[f"prompt.{i}.weight"] for i in (1, 2, 8)] == [1.0, 0.0, 0.0]
    assert [defaults[f"seed.{i}.weight"] for i in (1, 2, 4)] == [1.0, 0.0, 0.0]


def test_the_schema_hash_follows_the_rows():
    from sdbridge.parameters.parameter import Parameter
    from sdbridge.parameters.table import ParameterTable

    one = ParameterTable((Parameter("a", "float", 0.0, 0.0, 1.0),))
    other = ParameterTable((Parameter("a", "float", 0.0, 0.0, 2.0),))
    assert one.schema_hash() != other.schema_hash() == ParameterTable(other.templates).schema_hash()
