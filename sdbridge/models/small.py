"""Tiny checkpoints with random weights, in the real layouts: for tests and for machines without a model.

They run every code path of the big models in milliseconds and mean nothing: the picture is noise
that follows the input. Same family, same seed: the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

Family = Literal["sd15", "sd21", "sdxl", "sd15-inpaint"]
Distilled = Literal["", "lcm", "turbo"]

WIDTH = 24  # of the text encoders, hence of cross-attention (SDXL: twice that)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_TWO_LETTER_MERGES = ("t h", "i n", "a n", "e r", "o n", "r e", "a t", "e n")


def build_small_checkpoint(
    folder: Path, family: Family = "sd15", *, distilled: Distilled = "", seed: int = 0
) -> Path:
    """Write a diffusers-layout checkpoint of under 2 MB and return ``folder``.

    Holds ``unet/ vae/ vae_tiny/ text_encoder/ tokenizer/ scheduler/`` (SDXL also the second text
    encoder). ``sd21`` predicts v, the others noise; ``sd15-inpaint`` has nine input channels.
    ``distilled`` only changes what the scheduler's config says. ``vae_tiny`` is an AutoencoderTiny.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = _build_parts(family, seed)
    for name, module in parts.items():
        module.save_pretrained(folder / name)
    tokenizers = ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",)
    for name in tokenizers:
        write_small_tokenizer(folder / name)
    _write_scheduler(folder / "scheduler", family, distilled)
    _write_index(folder, family, distilled)
    return folder


def build_small_single_file(path: Path, family: Family = "sd15", *, seed: int = 0) -> Path:
    """Write the same weights as one ``.safetensors`` in the original LDM layout, and return ``path``.

    What such a file never holds (configs and tokenizer) goes into the folder ``<stem>.parts`` beside it,
    where the loader looks first.
    """
    from safetensors.torch import save_file

    from sdbridge.models.small_ldm import to_ldm_layout

    path.parent.mkdir(parents=True, exist_ok=True)
    parts = _build_parts(family, seed)
    save_file(to_ldm_layout(parts, family), path)
    beside = path.with_suffix(".parts")
    for name, module in parts.items():
        if name == "vae_tiny":
            module.save_pretrained(beside / name)
        elif name.startswith("text"):
            module.config.save_pretrained(beside / name)
        else:
            module.save_config(beside / name)
    for name in ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",):
        write_small_tokenizer(beside / name)
    _write_scheduler(beside / "scheduler", family, "")
    return path


def write_small_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that knows every byte and a few pairs: any text, emoji too, has tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [pair.replace(" ", "") for pair in _TWO_LETTER_MERGES]
    words += [BOS, EOS]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(_TWO_LETTER_MERGES) + "\n", encoding="utf-8"
    )
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def _build_parts(family: Family, seed: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**_unet_config(family)),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                norm_num_groups=4,
                latent_channels=4,
                sample_size=64,
                scaling_factor=0.13025 if family == "sdxl" else 0.18215,
            ),
            "vae_tiny": AutoencoderTiny(
                encoder_block_out_channels=(8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8),
                num_encoder_blocks=(1, 1, 1, 1),
                num_decoder_blocks=(1, 1, 1, 1),
            ),
            "text_encoder": _text_encoder(family, projected=False),
        }
        if family == "sdxl":
            parts["text_encoder_2"] = _text_encoder(family, projected=True)
    for module in parts.values():
        module.eval().requires_grad_(False)
    return parts


def _unet_config(family: Family) -> dict[str, Any]:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 9 if family == "sd15-inpaint" else 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    }
    if family == "sd21":
        config |= {"use_linear_projection": True, "attention_head_dim": [2, 4]}
    if family == "sdxl":
        config |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "cross_attention_dim": 2 * WIDTH,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        }
    return config


def _text_encoder(family: Family, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    count = 2 * 256 + len(_TWO_LETTER_MERGES)
    config = CLIPTextConfig(
        vocab_size=count + 2,
        bos_token_id=count,
        eos_token_id=count + 1,
        pad_token_id=count + 1,
        hidden_size=WIDTH,
        intermediate_size=48,
        projection_dim=WIDTH,
        num_hidden_layers=2 if projected else 3,
        num_attention_heads=2,
        hidden_act="gelu" if family == "sd21" or projected else "quick_gelu",
        max_position_embeddings=77,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _write_scheduler(folder: Path, family: Family, distilled: Distilled) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "_class_name": {"": "DDIMScheduler", "lcm": "LCMScheduler", "turbo": "EulerDiscreteScheduler"}[
            distilled
        ],
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction" if family == "sd21" else "epsilon",
        "timestep_spacing": "trailing" if distilled == "turbo" else "leading",
        "steps_offset": 1,
    }
    if not distilled:
        config |= {"clip_sample": False, "set_alpha_to_one": False}
    (folder / "scheduler_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _write_index(folder: Path, family: Family, distilled: Distilled) -> None:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": [
            "diffusers",
            {"": "DDIMScheduler", "lcm": "LCMScheduler", "turbo": "EulerDiscreteScheduler"}[distilled],
        ],
    }
    if family == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
