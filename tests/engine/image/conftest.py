"""Small checkpoints, built once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdbridge.engine.image.imports import collector_asleep

# Nearly every test here needs them: imported in one go, they are never searched for garbage again.
with collector_asleep():
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection  # noqa: F401

from sdbridge.models.small import build_small_checkpoint, build_small_single_file
from tests.engine.image import rig


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def engines_closed() -> Iterator[None]:
    yield
    rig.close_all()


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
