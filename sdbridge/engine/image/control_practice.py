"""What a ControlNet asks of the libraries and no other network does, to be run once before there is one.

Its shapes are the UNet's, but for a few. cuDNN and cuBLAS plan for each shape and in each thread anew, in 2
to 7 ms on an H200, so those were what made frames late when a ControlNet was added.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_TOKENS = 77


class ControlPractice:
    """A call on a control image ``[F, 3, H, W]`` that does those, on weights of no meaning."""

    def __init__(self, unet: Any, rows: int) -> None:
        """``rows`` of the stream batch."""
        from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

        self._unet = unet
        self._rows = rows
        with torch.device("meta"):  # no number is drawn for it
            embed: Any = ControlNetConditioningEmbedding(int(unet.config["block_out_channels"][0]))
        self._embed = embed.to(unet.dtype).to_empty(device=unet.device)
        if unet.device.type != "mps":
            self._embed = self._embed.to(memory_format=torch.channels_last)

    def __call__(self, image: Tensor) -> Tensor:
        """Gives the embedded image."""
        image = image.to(self._unet.dtype)
        if image.device.type != "mps":
            image = image.contiguous(memory_format=torch.channels_last)
        embedded: Tensor = self._embed(image)
        self._ways_out(embedded)
        self._times()
        self._text()
        return embedded

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._unet.device, dtype=self._unet.dtype)

    def _ways_out(self, embedded: Tensor) -> None:
        """The residual of each skip is a product of its own."""
        height, width = embedded.shape[-2:]
        channels = embedded.shape[1]
        sizes = {(height * width, channels)}
        for block in self._unet.down_blocks:
            channels = int(block.resnets[-1].out_channels)
            sizes.add((height * width, channels))
            if block.downsamplers:
                height, width = -(-height // 2), -(-width // 2)
                sizes.add((height * width, channels))
        for cells, channels in sorted(sizes, reverse=True):
            weight, bias = self._zeros(channels, channels), self._zeros(channels)
            functional.linear(self._zeros(self._rows * cells, channels), weight, bias)

    def _times(self) -> None:
        """The time projections of the way down and the middle."""
        parts = (*self._unet.down_blocks, self._unet.mid_block)
        layers = [resnet.time_emb_proj for part in parts for resnet in part.resnets]
        out, given = sum(layer.out_features for layer in layers), layers[0].in_features
        functional.linear(self._zeros(self._rows, given), self._zeros(out, given), self._zeros(out))

    def _text(self) -> None:
        """The text's keys and values there, those of one width together (``packed_weights.py``)."""
        parts = (*self._unet.down_blocks, self._unet.mid_block)
        blocks = [
            block
            for part in parts
            for model in getattr(part, "attentions", ())
            for block in model.transformer_blocks
        ]
        layers = sorted((block.attn2.to_k.out_features, block.attn2.to_k.in_features) for block in blocks)
        for (width, depth), alike in groupby(layers):
            count = len(list(alike))
            weights = self._zeros(count, 2 * width, depth)
            rows = self._zeros(self._rows * _TOKENS, depth)
            torch.bmm(rows.expand(count, -1, -1), weights.transpose(1, 2))
