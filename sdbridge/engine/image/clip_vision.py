"""CLIP's image encoder, as IP-Adapters come with it: a picture in, its embedding and its patches out.

Names of weights and answers are those of transformers 5's CLIPVisionModelWithProjection (a test compares
them): ViT-H for Stable Diffusion's adapters, bigG for SDXL's. Why it stands here: see ``clip_text.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdbridge.engine.image.clip_layers import ClipLayers, settings_of, taken_over

#: What a config may leave out, as the format has it.
_USUAL: Mapping[str, object] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class ClipVisionStates:
    """What a picture became. ``hidden_states``: what the first layer is given and every layer's output."""

    image_embeds: Tensor  # [n, projected]
    last_hidden_state: Tensor  # [n, 1 + patches, width]
    hidden_states: tuple[Tensor, ...]


class ClipVision(nn.Module):
    """The encoder with its projection. ``config.image_size`` is the side of the pictures that it takes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _Tower(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """With weights still to be given. Raises SDB-MODEL-PARTS for what no CLIP of ours computes."""
        return cls(settings_of(image_config(config), _USUAL, "image"))

    @classmethod
    def from_pretrained(cls, folder: str, **how: Any) -> tuple[Self, Mapping[str, Any]]:
        """Through transformers, which knows files that we do not read: pickles, and keys of other names."""
        from transformers import CLIPVisionModelWithProjection

        return taken_over(cls, CLIPVisionModelWithProjection, folder, how, "vision_model.")

    def forward(self, pixels: Tensor) -> ClipVisionStates:
        """``pixels`` is ``[n, 3, side, side]`` with CLIP's mean and deviation taken out."""
        states = self.vision_model(pixels)
        pooled = self.vision_model.post_layernorm(states[-1][:, 0])
        return ClipVisionStates(self.visual_projection(pooled), states[-1], states)


def image_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``config.json`` says of the image encoder: that of a whole CLIP has the text's beside it."""
    found: Mapping[str, Any] = config.get("vision_config") or config
    return found


class _Tower(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # as files spell it
        self.encoder = ClipLayers(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return found


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [n, patches, width]
        whole = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat((whole, patches), dim=1) + self.position_embedding.weight
