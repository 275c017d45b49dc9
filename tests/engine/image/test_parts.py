"""Parts of a checkpoint folder, read by us: what the libraries make of them, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from sdbridge.engine.image import parts
from sdbridge.engine.image.parts import read_part
from sdbridge.engine.image.upload import Upload
from sdbridge.errors import SdbridgeError

CPU = torch.device("cpu")
PARTS = [
    ("sd15", UNet2DConditionModel, "unet"),
    ("sdxl", UNet2DConditionModel, "unet"),
    ("sd15", AutoencoderKL, "vae"),
    ("sd15", AutoencoderTiny, "vae_tiny"),
    ("sd15", CLIPTextModel, "text_encoder"),
    ("sdxl", CLIPTextModelWithProjection, "text_encoder_2"),
]


def by_library(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True).eval()


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_same(ours: Any, theirs: Any) -> None:
    a, b = tensors_of(ours), tensors_of(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name
        assert not a[name].requires_grad and not a[name].is_meta
    assert not any(part.training for part in ours.modules()) and type(ours) is type(theirs)
    differ = {
        key
        for key in dict(theirs.config.items() if hasattr(theirs.config, "items") else {})
        if not key.startswith("_") and ours.config.get(key) != theirs.config.get(key)
    }
    assert not differ


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever these tests read, we read: the library is asked only where a test says so."""

    def forbidden(*given: Any) -> Any:
        raise AssertionError(f"the library was asked for {given[1]}")

    monkeypatch.setattr(parts, "_read_by_library", forbidden)


@pytest.mark.parametrize(("family", "kind", "name"), PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("staged", [False, True])
def test_a_part_is_what_the_library_reads(checkpoint, family, kind, name, dtype, staged) -> None:
    upload = Upload(CPU, 5000, 2, staged=staged)
    ours = read_part(kind, checkpoint(family) / name, dtype, False, upload=upload, channels_last=staged)
    assert_same(ours, by_library(kind, checkpoint(family) / name, dtype))


def test_a_text_encoder_read_by_us_gives_the_same_embedding(checkpoint) -> None:
    for family, kind, name in PARTS[-2:]:
        folder = checkpoint(family) / name
        ours, theirs = read_part(kind, folder, torch.float32, False), by_library(kind, folder, torch.float32)
        ids = torch.arange(1, 78).reshape(1, 77) % ours.config.vocab_size
        with torch.no_grad():
            a, b = (model(ids, output_hidden_states=True) for model in (ours, theirs))
        assert torch.equal(a.last_hidden_state, b.last_hidden_state)
        assert all(torch.equal(x, y) for x, y in zip(a.hidden_states, b.hidden_states, strict=True))


def spread(folder: Path, name: str, index: str, half: bool = False) -> None:
    """The part's one file as two and an index."""
    whole = load_file(folder / name)
    keys = sorted(whole)
    stem = name.removesuffix(".safetensors") + (".fp16" if half else "")
    places: dict[str, str] = {}
    for number, half_of in enumerate((keys[::2], keys[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        save_file({key: whole[key].half() if half else whole[key] for key in half_of}, folder / file)
        places |= dict.fromkeys(half_of, file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / name).unlink()


def test_weights_spread_over_several_files_are_read_together(checkpoint, tmp_path) -> None:
    for half, index in (
        (False, "diffusion_pytorch_model.safetensors.index.json"),
        (True, "diffusion_pytorch_model.safetensors.index.fp16.json"),
    ):
        folder = tmp_path / f"unet{half}"
        shutil.copytree(checkpoint("sd15") / "unet", folder)
        wanted = by_library(UNet2DConditionModel, folder, torch.float16)
        spread(folder, "diffusion_pytorch_model.safetensors", index, half)
        assert_same(read_part(UNet2DConditionModel, folder, torch.float16, False), wanted)
        next(folder.glob("*-00002-of-*")).unlink()
        with pytest.raises(SdbridgeError, match=r"SDB-MODEL-CORRUPT.*00002-of-00002"):
            read_part(UNet2DConditionModel, folder, torch.float16, False)


def test_the_whole_precision_is_taken_where_both_are_there(checkpoint, tmp_path) -> None:
    folder = tmp_path / "unet"
    shutil.copytree(checkpoint("sd15") / "unet", folder)
    whole = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({k: v.half() for k, v in whole.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    ours = read_part(UNet2DConditionModel, folder, torch.float32, False)
    assert_same(ours, by_library(UNet2DConditionModel, folder, torch.float32))


def test_older_names_of_attention_and_text_layers_are_known(checkpoint, tmp_path) -> None:
    vae = tmp_path / "vae"
    shutil.copytree(checkpoint("sd15") / "vae", vae)
    file = vae / "diffusion_pytorch_model.safetensors"
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(file)
    renamed = {}
    for key, value in tensors.items():
        for new, old in older.items():
            key = key.replace(new, old)
        renamed[key] = value
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    ours = read_part(AutoencoderKL, vae, torch.float32, False)
    assert_same(ours, by_library(AutoencoderKL, checkpoint("sd15") / "vae", torch.float32))

    text = tmp_path / "text_encoder"
    shutil.copytree(checkpoint("sd15") / "text_encoder", text)
    tensors = load_file(text / "model.safetensors")
    wrapped = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
    bare = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    for spelling in (wrapped | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, bare):
        save_file(spelling, text / "model.safetensors")
        ours = read_part(CLIPTextModel, text, torch.float32, False)
        assert_same(ours, by_library(CLIPTextModel, checkpoint("sd15") / "text_encoder", torch.float32))


def test_what_does_not_fit_is_left_to_the_library_to_refuse(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    folder = tmp_path / "unet"
    shutil.copytree(checkpoint("sd15") / "unet", folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "conv_in.weight": torch.zeros(3, 3, 3, 3)}, file)
    with pytest.raises(SdbridgeError, match=r"SDB-MODEL-(KEYS|CORRUPT).*conv_in"):
        read_part(UNet2DConditionModel, folder, torch.float32, False)
    save_file({key: value for key, value in tensors.items() if key != "conv_in.weight"}, file)
    with pytest.raises(SdbridgeError, match=r"SDB-MODEL-KEYS.*conv_in"):
        read_part(UNet2DConditionModel, folder, torch.float32, False)
