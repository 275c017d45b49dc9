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


def build_random_checkpoint(folder: Path, size: str, seed: int = 0) -> Path:
    """Write ``size`` (a key of ``SIZES``) as a diffusers folder in fp16, once; 1.7 to 5.3 GB.

    Made on a CUDA device where there is one, for speed. Returns ``folder``.
    """
    if (folder / "model_index.json").exists():
        return folder
    import torch

    wanted = SIZES[size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    log.info("making %s with random weights in %s", size, folder)
    for name, module in _parts(wanted, device):
        module.half().save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2")[: len(wanted.text)]:
        write_small_tokenizer(folder / name)
    _write_scheduler(folder / "scheduler", wanted.turbo)
    index = {"_class_name": wanted.pipeline, "_diffusers_version": "0.35.0"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _parts(wanted: TrueSize, device: str) -> Any:
    """Name and module of each part, one at a time so that only one is in memory."""
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device(device):
        yield "unet", UNet2DConditionModel(**wanted.unet)
        yield "vae", AutoencoderTiny()
        for index, text in enumerate(wanted.text):
            kind = CLIPTextModelWithProjection if "projection_dim" in text else CLIPTextModel
            name = "text_encoder" if index == 0 else "text_encoder_2"
            yield name, kind(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **text))


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
