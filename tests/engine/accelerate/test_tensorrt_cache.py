"""Built engines on the disk: a key that changes with everything, whole files, damage found."""

import json

import pytest
import torch

from sdbridge.engine.accelerate.tensorrt import cache
from sdbridge.engine.accelerate.tensorrt.cache import (
    EngineKey,
    ShapeRange,
    engine_file,
    hash_weights,
    load_about,
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


HARM = {
    "engine cut": lambda file, seal: file.write_bytes(file.read_bytes()[:-1]),
    "engine empty": lambda file, seal: file.write_bytes(b""),
    "engine gone": lambda file, seal: file.unlink(),
    "seal cut": lambda file, seal: seal.write_bytes(seal.read_bytes()[:-9]),
    "seal empty": lambda file, seal: seal.write_bytes(b""),
    "seal of bytes": lambda file, seal: seal.write_bytes(b"\xff\xfe\x00{"),
    "seal a list": lambda file, seal: seal.write_text("[]"),
    "seal nothing": lambda file, seal: seal.write_text("null"),
    "seal without end": lambda file, seal: seal.write_text("[" * 100_000),
    "seal of another": lambda file, seal: seal.write_text(
        json.dumps({**json.loads(seal.read_text()), "key": "other"})
    ),
    "seal gone": lambda file, seal: seal.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_happened_to_its_files_an_engine_is_built_anew(tmp_path, harm: str) -> None:
    save_engine(tmp_path, key(), b"engine", {"names": [1]})
    file = engine_file(tmp_path, key())
    HARM[harm](file, file.with_suffix(".json"))
    assert load_engine(tmp_path, key()) is None
    save_engine(tmp_path, key(), b"again", {"names": [2]})
    assert load_engine(tmp_path, key()) == b"again" and load_about(tmp_path, key()) == {"names": [2]}


def test_an_engine_whose_seal_cannot_be_written_does_not_stay(tmp_path, monkeypatch) -> None:
    write = cache._write_whole

    def full(file, content):
        if file.suffix == ".json":
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(cache, "_write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        save_engine(tmp_path, key(), b"engine")
    assert not list(tmp_path.iterdir())
