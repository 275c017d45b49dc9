"""Further inputs some UNets want beside the text: SDXL's pooled text and sizes, LCM's guidance embedding."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def added_conditions(
    model: Any, pooled: Tensor | None, rows: int, width: int, height: int
) -> dict[str, Tensor]:
    """``text_embeds`` ``[rows, width]`` and ``time_ids`` ``[rows, 6]`` for SDXL, nothing for others.

    The time ids are original size, crop and target size, all of them the size now (SDXL, section 2.2).
    """
    if pooled is None or model.family != "sdxl":
        return {}
    return {"text_embeds": pooled, "time_ids": _time_ids(model.device, model.dtype, rows, width, height)}


@lru_cache(maxsize=32)
def _time_ids(device: torch.device, dtype: torch.dtype, rows: int, width: int, height: int) -> Tensor:
    return torch.tensor([[height, width, 0, 0, height, width]], device=device, dtype=dtype).repeat(rows, 1)


def guidance_embedding(model: Any, scale: float) -> Tensor | None:
    """``[1, d]``: the guidance scale that fully distilled LCM models take as an input (LCM, section 4.2)."""
    width = getattr(model.unet.config, "time_cond_proj_dim", None)
    return None if width is None else _guidance_embedding(model.device, model.dtype, int(width), scale)


@lru_cache(maxsize=64)
def _guidance_embedding(device: torch.device, dtype: torch.dtype, width: int, scale: float) -> Tensor:
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = (scale - 1.0) * 1000.0 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])[None]
    if width % 2:
        embedding = torch.nn.functional.pad(embedding, (0, 1))
    return embedding.to(device=device, dtype=dtype)
