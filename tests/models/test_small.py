"""The tiny checkpoints are small, deterministic, and stock diffusers loads and runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdbridge.models.small import build_small_checkpoint, build_small_single_file

FAMILIES = ("sd15", "sd21", "sdxl", "sd15-inpaint")


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_are_under_two_megabytes_and_deterministic(tmp_path: Path, family) -> None:
    first = build_small_checkpoint(tmp_path / "a", family)
    second = build_small_checkpoint(tmp_path / "b", family)
    files = [path for path in first.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_single_file_holds_the_same_weights_under_ldm_names(tmp_path: Path, family) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    folder = build_small_checkpoint(tmp_path / "folder", family)
    path = build_small_single_file(tmp_path / "one.safetensors", family)
    assert path.stat().st_size < 2_000_000
    tensors = load_file(path)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    for part, converted in (
        ("unet", convert_ldm_unet_checkpoint(dict(tensors), unet.config)),
        (
            "vae",
            convert_ldm_vae_checkpoint(
                dict(tensors), {"down_block_types": [0] * 4, "up_block_types": [0] * 4}
            ),
        ),
    ):
        wanted = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        assert set(converted) == set(wanted)
        assert all(torch.equal(converted[name], wanted[name]) for name in wanted)


def test_stock_diffusers_runs_the_small_checkpoint(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        build_small_checkpoint(tmp_path / "m"), local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a fox \N{FOX FACE}", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
