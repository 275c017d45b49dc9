"""Random networks beside the UNet, for benchmarks: a ControlNet and a LoRA that fit a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RANK = 16


def random_controlnet(folder: Path) -> Path:
    """A ControlNet that fits the UNet in ``folder``, in fp16 beside it; its residuals are not zero."""
    place = folder / "bench-controlnet"
    if (place / "config.json").is_file():
        return place
    import torch
    from diffusers import ControlNetModel

    unet = _shapes_of(folder)
    torch.manual_seed(7)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.no_grad():
        network = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        ends = [
            *network.controlnet_down_blocks,
            network.controlnet_mid_block,
            network.controlnet_cond_embedding.conv_out,
        ]
        for layer in ends:  # as made these are zero, and nothing would be compared
            torch.nn.init.normal_(layer.weight, std=0.3 / layer.weight[0].numel() ** 0.5)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    network.to(dtype=torch.float16).save_pretrained(part)
    if not place.exists():  # whole or not at all; another benchmark may have been first
        part.rename(place)
    return place


def random_lora(folder: Path) -> Path:
    """A LoRA over every attention and feed-forward layer of the UNet in ``folder``, rank 16, beside it."""
    place = folder / "bench-lora.safetensors"
    if place.is_file():
        return place
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(8)
    tensors: dict[str, Any] = {}
    for name, module in _shapes_of(folder).named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or "transformer_blocks" not in name:
            continue
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, weight.shape[1]) * 0.01
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(weight.shape[0], RANK) * 0.01
    save_file(tensors, place)
    return place


def _shapes_of(folder: Path) -> Any:
    """The UNet of ``folder`` without any weights."""
    import torch
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)
