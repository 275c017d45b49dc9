"""Pickles: weights alone are taken, by their bytes; damage and what else they hold is told, never run."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbridge.engine.image.pickled import PickleRefusedError, unpickle
from sdbridge.engine.image.weight_file import read_weight_file
from sdbridge.errors import SdbridgeError


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["weights.pt", "weights.ckpt", "weights.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_whatever_the_file_is_called(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(
        {"state_dict": {"a": torch.arange(3.0)}}, tmp_path / name, _use_new_zipfile_serialization=zipped
    )
    read = read_weight_file(tmp_path / name, allow_pickle=True)
    assert torch.equal(read.tensors["a"], torch.arange(3.0))
    with pytest.raises(SdbridgeError, match=f"SDB-FILE-PICKLE.*{name}"):
        read_weight_file(tmp_path / name)


def test_what_is_no_weight_is_named_and_not_run_and_nobody_is_told_to_load_it_all_the_same(
    tmp_path: Path,
) -> None:
    file = tmp_path / "bomb.pt"
    torch.save({"a": torch.ones(1), "b": Bomb(tmp_path / "ran")}, file)
    with pytest.raises(
        SdbridgeError, match=r"SDB-FILE-BROKEN.*bomb\.pt holds more than weights: \w+\.system"
    ) as told:
        read_weight_file(file, allow_pickle=True)
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(SdbridgeError, match=r"SDB-FILE-BROKEN.*bomb\.pt"):
        read_weight_file(file, allow_pickle=True)
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(told.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_of_any_kind_is_told_as_damage(tmp_path: Path, zipped: bool) -> None:
    file, draw = tmp_path / "weights.pt", random.Random(1)
    torch.save(
        {"a": torch.randn(4, 8), "b": {"c": torch.ones(3)}}, file, _use_new_zipfile_serialization=zipped
    )
    whole, refused = file.read_bytes(), 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: draw.randrange(len(whole))]
        else:
            for _ in range(4):
                damaged[draw.randrange(400)] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            unpickle(file)
        except PickleRefusedError:
            refused += 1
    assert refused > 200
