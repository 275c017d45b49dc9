"""Checkpoints of the true sizes with random weights, for measuring speed where nothing can be downloaded.

Speed does not depend on the values. The shapes are those of the published configs (model cards of
stabilityai/sd-turbo, runwayml/stable-diffusion-v1-5, stabilityai/sdxl-turbo, madebyollin/taesd).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbridge.models.small import write_small_tokenizer

log = logging.getLogger(__name__)

_CROSS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_CROSS_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3


@dataclass(frozen=True)
class TrueSize:
    """What makes one architecture: the UNet's config, its text encoders, and its schedule's kind."""

    unet: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]
    turbo: bool
    pipeline: str


_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}

SIZES: Mapping[str, TrueSize] = {
    "sd-turbo": TrueSize(
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": _CROSS,
            "up_block_types": _CROSS_UP,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        (_CLIP_H,),
        True,
        "StableDiffusionPipeline",
    ),
    "sd15": TrueSize(
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": _CROSS,
            "up_block_types": _CROSS_UP,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        (_CLIP_L,),
        False,
        "StableDiffusionPipeline",
    ),
    "sdxl-turbo": TrueSize(
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (_CLIP_L, _CLIP_G),
        True,
        "StableDiffusionXLPipeline",
    ),
}


#: Beside a part's config: its weights are made, not read (``load.read_part``), from the seed written in it.
MARK = "random-weights.json"


def build_random_checkpoint(folder: Path, size: str, seed: int = 0, *, on_disk: bool = False) -> Path:
    """Write ``size`` (a key of ``SIZES``) as a diffusers folder, once, and return ``folder``.

    Without ``on_disk`` UNet and text encoders are configs and a mark, from which every load makes the same
    weights on its own device: no gigabytes are written. With it they are files in fp16, 1.7 to 5.3 GB,
    so that a load is what users have.
    """
    if (folder / "model_index.json").exists():
        return folder
    wanted = SIZES[size]
    log.info("making %s with random weights in %s", size, folder)
    for number, (name, kind, config) in enumerate(_parts(wanted)):
        place = folder / name
        if on_disk or name == "vae":
            _make(kind, config, seed + number).half().save_pretrained(place)
            continue
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (place / MARK).write_text(json.dumps({"seed": seed + number}), encoding="utf-8")
    for name in ("tokenizer", "tokenizer_2")[: len(wanted.text)]:
        write_small_tokenizer(folder / name)
    _write_scheduler(folder / "scheduler", wanted.turbo)
    index = {"_class_name": wanted.pipeline, "_diffusers_version": "0.35.0"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def make_marked_part(kind: Any, folder: Path) -> Any:
    """The part whose mark lies in ``folder``, with the weights that its seed gives."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    seed = int(json.loads((folder / MARK).read_text(encoding="utf-8"))["seed"])
    return _make(kind, config, seed)


def _make(kind: Any, config: Mapping[str, Any], seed: int) -> Any:
    """Made on a CUDA device where there is one: seconds become tenths. Same seed and device, same weights."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        if kind.__name__.startswith("CLIP"):
            from transformers import CLIPTextConfig

            module = kind(CLIPTextConfig(**config))
        else:
            module = kind.from_config(dict(config))
        with torch.no_grad():
            _give_contrast(module)
    return module.eval().requires_grad_(False)


def _give_contrast(module: Any) -> None:
    """Let UNet and tiny VAE answer with numbers of a trained model's size.

    As torch fills them, the UNet's noise has a third of the deviation that trained ones have, and the tiny
    VAE's picture is one grey: a comparison of two such pictures would find every error small.
    """
    import torch

    name = type(module).__name__
    if name == "UNet2DConditionModel":
        module.conv_out.weight *= 2.5
    if name != "AutoencoderTiny":
        return
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                torch.nn.init.normal_(layer.bias, std=0.05)
    for block in (*module.encoder.layers, *module.decoder.layers):
        if hasattr(block, "fuse"):  # what a residual block adds is less than what it is given
            block.conv[-1].weight *= 0.3
    picture = torch.rand(2, 3, 128, 128, device=module.device) * 2 - 1
    module.encoder.layers[-1].weight *= 1.0 / module.encode(picture).latents.std()
    latent = torch.randn(2, module.config.latent_channels, 16, 16, device=module.device)
    made = module.decode(latent).sample
    last = module.decoder.layers[-1]
    last.weight *= 0.5 / made.std()
    if last.bias is not None:
        last.bias.zero_()
        last.bias -= module.decode(latent).sample.mean((0, 2, 3)) / 2


def _parts(wanted: TrueSize) -> Any:
    """Name, class and config of each part."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    yield "unet", UNet2DConditionModel, {"_class_name": "UNet2DConditionModel", **wanted.unet}
    yield "vae", AutoencoderTiny, {"_class_name": "AutoencoderTiny"}
    for index, text in enumerate(wanted.text):
        kind = CLIPTextModelWithProjection if "projection_dim" in text else CLIPTextModel
        config = {"vocab_size": 49408, "max_position_embeddings": 77, **text}
        yield "text_encoder" if index == 0 else "text_encoder_2", kind, config


def _write_scheduler(folder: Path, turbo: bool) -> None:
    """The published schedule; turbo models say so by trailing Euler steps."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "_class_name": "EulerDiscreteScheduler" if turbo else "LCMScheduler",
        "_diffusers_version": "0.35.0",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing" if turbo else "leading",
    }
    (folder / "scheduler_config.json").write_text(json.dumps(config), encoding="utf-8")
