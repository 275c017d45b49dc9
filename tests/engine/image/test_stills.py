"""Picture files of every depth come in as their own brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdbridge.engine.image.stills import load_still

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)  # [4, 64]


def made_of(kind: str, folder: Path) -> Path:
    byte = (RAMP >> 8).astype(np.uint8)
    picture, name = {
        "16 bits": (lambda: Image.fromarray(RAMP), "a.png"),
        "16 bits, big end first": (lambda: Image.fromarray(RAMP.astype(">u2")), "a.tiff"),
        "32 bits": (lambda: Image.fromarray(RAMP.astype(np.int32)), "b.tiff"),
        "floats": (lambda: Image.fromarray((RAMP / 65535).astype(np.float32)), "c.tiff"),
        "8 bits": (lambda: Image.fromarray(byte), "d.png"),
        "colour": (lambda: Image.fromarray(np.dstack([byte] * 3)), "e.png"),
        "a palette": (lambda: Image.fromarray(byte).convert("P"), "f.gif"),
    }[kind]
    picture().save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "kind", ["16 bits", "16 bits, big end first", "32 bits", "floats", "8 bits", "colour", "a palette"]
)
def test_a_ramp_is_a_ramp(tmp_path: Path, kind: str) -> None:
    """A depth map or mask of 16 bits was white wherever it was not black."""
    image = load_still(made_of(kind, tmp_path), torch.device("cpu"))
    assert image.shape == (1, 4, 4, 64) and image.dtype == torch.float32
    wanted = torch.linspace(0, 1, 64).expand(3, 4, 64)
    assert float((image[0, :3] - wanted).abs().max()) < 1.5 / 255
    assert bool((image[0, 3] == 1).all())


def test_floats_beyond_white_and_no_numbers_stay_in_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 2.0, np.nan, 0.5]], np.float32)).save(tmp_path / "a.tiff")
    image = load_still(tmp_path / "a.tiff", torch.device("cpu"))
    assert image[0, 0, 0].tolist() == [0.0, 1.0, 0.0, 0.5]
