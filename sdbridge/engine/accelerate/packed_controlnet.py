"""A ControlNet's forward pass on the packed UNet's pieces: its way down and middle, and what leaves there.

Same arithmetic as diffusers' ``ControlNetModel`` at scale 1, handed a control image that is embedded
already. The modules' parameters become views of the packed tensors, as the UNet's do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate.packed_unet import Pass, matrix, unusual_parts
from sdbridge.engine.accelerate.packed_weights import Known, Packed
from sdbridge.engine.accelerate.unet_ops import Picture, PlainOps, UnetOps
from sdbridge.engine.image.seams import UnetCall

Residuals = tuple[list[Tensor], Tensor]


def obstacle(network: Any) -> str:
    """Why this ControlNet cannot run packed, or ''. Looks at structure, never at names of models."""
    if not isinstance(network.controlnet_cond_embedding, torch.nn.Identity):
        return "a control image that is not embedded beforehand"
    if network.config["global_pool_conditions"]:
        return "pooled residuals"
    for conv in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        if not isinstance(conv, torch.nn.Conv2d) or conv.kernel_size != (1, 1) or conv.stride != (1, 1):
            return "an unusual way out"
    return unusual_parts(network, (*network.down_blocks, network.mid_block))


class PackedControlNet:
    """``run`` gives what ``network(...)`` gives. Packs the modules' parameters in place when made."""

    def __init__(self, network: Any, ops: UnetOps | None = None) -> None:
        why = obstacle(network)
        if why:
            raise ValueError(f"this ControlNet has {why}")
        self._network = network
        self._ops = ops or PlainOps()
        self.packed = Packed(network)
        self._flips = network.config["controlnet_conditioning_channel_order"] == "bgr"

    def run(
        self, call: UnetCall, hint: Tensor, ops: UnetOps | None = None, known: Known | None = None
    ) -> Residuals:
        """Residuals of the skips, first to last, and of the middle: channels-last views, not scaled.

        ``hint`` ``[B, c, h, w]`` is the embedded control image; by other operations if some are given.
        ``known`` is what depends on timesteps and text alone, where somebody keeps it: of the call only the
        sample is read then.
        """
        ops, network = ops or self._ops, self._network
        if self._flips:
            hint = hint.flip(1)
        walking = Pass(self.packed, ops, call, known or self.packed.known(call))
        walk = walking.begin()
        walk.pending = walk.pending.plus(Picture.of(hint))
        walking.descend(walk)
        middle, _ = walk.settle()
        found = [
            _left(ops, picture, conv)
            for (picture, _), conv in zip(walk.skips, network.controlnet_down_blocks, strict=True)
        ]
        return found, _left(ops, middle, network.controlnet_mid_block)


def _left(ops: UnetOps, picture: Picture, conv: Any) -> Tensor:
    return picture.like(ops.linear(picture.rows, matrix(conv.weight), conv.bias)).tensor()
