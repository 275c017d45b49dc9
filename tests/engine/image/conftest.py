"""Small checkpoints, built once per run, and frames to feed them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sdbridge.frame import Chunk, Frame
from sdbridge.models.small import build_small_checkpoint, build_small_single_file

SIZE = 64


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint("sd15")``: a folder, made once. ``distilled`` as in ``build_small_checkpoint``."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(family: str = "sd15", distilled: str = "") -> Path:
        folder = root / f"{family}-{distilled}"
        return folder if folder.exists() else build_small_checkpoint(folder, family, distilled=distilled)

    return get


@pytest.fixture(scope="session")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("files")

    def get(family: str = "sd15") -> Path:
        path = root / f"{family}.safetensors"
        return path if path.exists() else build_small_single_file(path, family)

    return get


def frame(number: int, size: int = SIZE, seed: int | None = None) -> Chunk:
    """A picture of noise; the same number (or seed) gives the same picture."""
    rng = np.random.default_rng(number if seed is None else seed)
    return Chunk.of(Frame(rng.integers(0, 256, (size, size, 4), dtype=np.uint8), number, number * 1000))


@pytest.fixture
def frames() -> Callable[..., Chunk]:
    return frame
