"""Built engines on the disk: a key that changes with everything, whole files, damage found."""

import pytest
import torch

from sdbridge.engine.accelerate.tensorrt.cache import (
    EngineKey,
    ShapeRange,
    engine_file,
    hash_weights,
    load_engine,
    save_engine,
)

RANGES = {"rows": ShapeRange(1, 2, 4), "height": ShapeRange(4, 8, 24)}


def key(**changes) -> EngineKey:
    fields = {
        "graph": "unet",
        "weights": "w",
        "gpu": "H200",
        "capability": "9.0",
        "driver": "580",
        "tensorrt": "10.9",
        "torch": "2.13",
        "dtype": "float16",
        "ranges": RANGES,
    }
    return EngineKey(**{**fields, **changes})


@pytest.mark.parametrize(
    "field", ["graph", "weights", "gpu", "capability", "driver", "tensorrt", "torch", "dtype"]
)
def test_the_key_changes_with_everything_the_engine_depends_on(field):
    assert key(**{field: "other"}).digest != key().digest


def test_the_key_changes_with_the_ranges():
    assert key(ranges={**RANGES, "rows": ShapeRange(1, 1, 1)}).digest != key().digest


def test_a_saved_engine_is_found_and_a_damaged_one_is_removed(tmp_path):
    assert load_engine(tmp_path, key()) is None
    save_engine(tmp_path, key(), b"engine")
    assert load_engine(tmp_path, key()) == b"engine"
    engine_file(tmp_path, key()).write_bytes(b"enginE")
    assert load_engine(tmp_path, key()) is None
    assert not list(tmp_path.iterdir())


def test_the_weights_hash_sees_one_changed_value():
    state = {"a": torch.zeros(4), "b": torch.ones(2, dtype=torch.float16)}
    before = hash_weights(state)
    state["a"][2] = 1e-6
    assert hash_weights(state) != before


def test_the_weights_hash_takes_any_memory_layout():
    plain = torch.randn(4, 3, 1, 1)
    turned = plain.to(memory_format=torch.channels_last)
    assert hash_weights({"a": plain}) == hash_weights({"a": turned})
