"""A file that has its full length before it is whole, as Explorer's copies have."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sdbridge.engine.image import at_rest
from sdbridge.engine.image.weight_file import read_weight_file
from sdbridge.errors import SdbridgeError

NUMBERS = torch.arange(1, 200_001, dtype=torch.float32)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting takes no time here; what happens meanwhile a test may hang in."""
    found: list[float] = []
    monkeypatch.setattr(at_rest.time, "sleep", found.append)
    return found


def reserved(path: Path, written: float) -> bytes:
    """Write a share of a whole file, at its full length; gives the whole."""
    whole = save({"weight": NUMBERS})
    part = whole[: int(len(whole) * written)]
    path.write_bytes(part + bytes(len(whole) - len(part)))
    return whole


def test_it_is_read_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lora.safetensors"
    whole = reserved(path, 0.5)
    steps = iter((0.7, 0.9, 1.0))

    def a_copy_goes_on(seconds: float) -> None:
        part = whole[: int(len(whole) * next(steps))]
        path.write_bytes(part + bytes(len(whole) - len(part)))
        os.utime(path, ns=(time.time_ns(), time.time_ns()))

    monkeypatch.setattr(at_rest.time, "sleep", a_copy_goes_on)
    assert torch.equal(read_weight_file(path).tensors["weight"], NUMBERS)


def test_honest_zeros_are_read_after_a_while_and_old_ones_at_once(
    tmp_path: Path, sleeps: list[float]
) -> None:
    path = tmp_path / "zeros.safetensors"
    path.write_bytes(save({"weight": torch.zeros(200_000)}))
    assert not read_weight_file(path).tensors["weight"].any() and sleeps == [at_rest.REST_S]
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    assert read_weight_file(path).tensors and len(sleeps) == 1
    path.write_bytes(save({"weight": torch.cat((NUMBERS, torch.zeros(500)))}))  # few, as many files have
    assert read_weight_file(path).tensors and len(sleeps) == 1


def test_one_that_is_written_for_long_is_named_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lora.safetensors"
    reserved(path, 0.5)
    now = [0.0]
    monkeypatch.setattr(at_rest.time, "monotonic", lambda: now[0])

    def slowly(seconds: float) -> None:
        now[0] += seconds
        reserved(path, 0.5 + now[0] / 1000)
        os.utime(path, ns=(time.time_ns(), time.time_ns()))

    monkeypatch.setattr(at_rest.time, "sleep", slowly)
    with pytest.raises(
        SdbridgeError, match=r"lora\.safetensors is still being written: its last \d+ KB"
    ) as told:
        read_weight_file(path)
    assert (
        told.value.code == "SDB-FILE-BROKEN"
        and "comes in by itself" in str(told.value)
        and now[0] == pytest.approx(at_rest.PATIENCE_S, abs=at_rest.REST_S)
    )


def test_a_file_that_is_gone_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lora.safetensors"
    reserved(path, 0.5)
    monkeypatch.setattr(at_rest.time, "sleep", lambda seconds: path.unlink())
    with pytest.raises(SdbridgeError, match="cannot be read") as told:
        read_weight_file(path)
    assert told.value.code == "SDB-FILE-MISSING"
