"""A network's weights, side by side where they are read together, and the products that no frame need make.

The weights of query, key and value lie in one tensor, those of all layers that read the text in another,
those of all time projections in a third, so each is one product. The modules' parameters become views of the
packed tensors: whoever writes them in place (a LoRA fader) has written the packed ones, which are never made
anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.image.seams import UnetCall

#: SDXL's further conditions.
ADDED = ("text_embeds", "time_ids")


@dataclass
class _Heads:
    """A transformer block's packed weights. Of the text's it has ``width`` from ``at``: keys, then values."""

    qkv: Tensor
    at: int
    width: int


@dataclass(frozen=True)
class Known:
    """What a pass needs that depends on timesteps or text alone: see ``write_times`` and ``write_text``."""

    times: Tensor  # [B, sum of widths]
    text: Tensor  # [B * tokens * sum of widths]: one block after the other


class Packed:
    """A network's weights, those that are read together side by side. Packs the parameters in place."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.heads: dict[Any, _Heads] = {}
        self.time_of: dict[Any, slice] = {}
        self._added = ADDED if network.config.addition_embed_type == "text_time" else ()
        self._pack()

    @torch.no_grad()
    def _pack(self) -> None:
        unet = self.network
        for module in unet.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        blocks, resnets = _by_width(_attentive_blocks(unet)), _timed_resnets(unet)
        at = 0
        for block in blocks:
            width = 2 * _width(block)
            self.heads[block] = _Heads(_pack(_looking(block)), at, width)
            at += width
        self.text_weight = _pack(_reading(blocks))
        self._alike = [(2 * width, len(list(those))) for width, those in groupby(blocks, _width)]
        at = 0
        for resnet in resnets:
            width = resnet.time_emb_proj.weight.shape[0]
            self.time_of[resnet] = slice(at, at + width)
            at += width
        self.time_weight = _pack([resnet.time_emb_proj for resnet in resnets])
        self.time_bias = _pack([resnet.time_emb_proj for resnet in resnets], "bias")

    def times_from(self, call: UnetCall) -> tuple[Tensor, ...]:
        """What ``write_times`` reads: the timesteps, the guidance's embedding, SDXL's two conditions."""
        guided = () if call.timestep_cond is None else (call.timestep_cond,)
        return (call.timesteps, *guided, *(call.added_cond[name] for name in self._added))

    def write_times(self, into: Tensor, timesteps: Tensor, *more: Tensor) -> None:
        """Every ResNet's time projection, side by side: ``[B, sum of widths]``. Reads no text."""
        unet, rest = self.network, list(more)
        guidance = rest.pop(0) if len(rest) > len(self._added) else None
        frequencies = unet.time_proj(timesteps.expand(into.shape[0])).to(into.dtype)
        embedding = unet.time_embedding(frequencies, guidance)
        if rest:
            pooled, time_ids = rest
            sizes = unet.add_time_proj(time_ids.flatten()).reshape(pooled.shape[0], -1)
            embedding = embedding + unet.add_embedding(torch.cat([pooled, sizes], -1).to(embedding.dtype))
        torch.addmm(self.time_bias, functional.silu(embedding), self.time_weight.t(), out=into)

    def write_text(self, into: Tensor, text: Tensor) -> None:
        """Keys and values of the text in all blocks, each block's together: ``[B * tokens, 2 * width]``.

        So their strides hang on the block alone. In one product's rows they hung on the whole network, and
        for the same attention in a ControlNet cuDNN planned anew, 30 to 60 ms for each shape.
        """
        rows = text.flatten(0, 1)
        count, depth = rows.shape
        at = 0
        for width, blocks in self._alike:
            weight = self.text_weight[at : at + blocks * width].view(blocks, width, depth)
            out = into[at * count : (at + blocks * width) * count].view(blocks, count, width)
            torch.bmm(rows.expand(blocks, -1, -1), weight.transpose(1, 2), out=out)
            at += blocks * width

    def read_text(self, known: Known, block: Any) -> tuple[Tensor, Tensor]:
        """A transformer block's keys and values ``[B * tokens, width]``."""
        heads = self.heads[block]
        count = known.text.shape[0] // self.text_weight.shape[0]
        both = known.text[heads.at * count : (heads.at + heads.width) * count].view(count, heads.width)
        key, value = both.chunk(2, dim=-1)
        return key, value

    def room(self, call: UnetCall) -> Known:
        """Where these two go for calls of this shape, not filled yet. Writable in every mode of PyTorch."""
        rows, tokens, _ = call.encoder_hidden_states.shape
        sizes = ((rows, self.time_weight.shape[0]), (rows * tokens * self.text_weight.shape[0],))
        with torch.inference_mode(False):
            return Known(*(torch.zeros(n, device=call.sample.device, dtype=call.sample.dtype) for n in sizes))

    def known(self, call: UnetCall) -> Known:
        """Both, in tensors of their own."""
        made = self.room(call)
        self.write_times(made.times, *self.times_from(call))
        self.write_text(made.text, call.encoder_hidden_states)
        return made


def together(network: Any) -> tuple[tuple[str, ...], ...]:
    """Names of the weights that ``Packed`` makes one tensor of, side by side.

    Where they were laid so when they were loaded, packing copies nothing and leaves nothing behind.
    """
    blocks, resnets = _attentive_blocks(network), _timed_resnets(network)
    if any(block.attn2 is None for block in blocks):
        return ()
    blocks = _by_width(blocks)
    name_of = {module: name for name, module in network.named_modules()}
    projections = [resnet.time_emb_proj for resnet in resnets]
    groups = [
        *([f"{name_of[layer]}.weight" for layer in _looking(block)] for block in blocks),
        [f"{name_of[layer]}.weight" for layer in _reading(blocks)],
        [f"{name_of[layer]}.weight" for layer in projections],
        [f"{name_of[layer]}.bias" for layer in projections],
    ]
    return tuple(tuple(group) for group in groups if group)


def _attentive_blocks(network: Any) -> list[Any]:
    return [module for module in network.modules() if type(module).__name__ == "BasicTransformerBlock"]


def _width(block: Any) -> int:
    return int(block.attn2.to_k.weight.shape[0])


def _by_width(blocks: Sequence[Any]) -> list[Any]:
    """Those whose products of the text are alike one after the other: they are one product."""
    return sorted(blocks, key=_width)


def _timed_resnets(network: Any) -> list[Any]:
    """An autoencoder's have no time."""
    found = [module for module in network.modules() if type(module).__name__ == "ResnetBlock2D"]
    return [module for module in found if module.time_emb_proj is not None]


def _looking(block: Any) -> list[Any]:
    """What makes query, key and value of the picture."""
    return [block.attn1.to_q, block.attn1.to_k, block.attn1.to_v]


def _reading(blocks: Sequence[Any]) -> list[Any]:
    """What makes keys and values of the text, in all blocks."""
    return [layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v)]


def _pack(layers: Sequence[Any], name: str = "weight") -> Tensor:
    """One tensor of all the layers' rows of this parameter; theirs become views of it."""
    parameters = [getattr(layer, name) for layer in layers]
    packed = _side_by_side([parameter.data for parameter in parameters])
    if packed is None:
        packed = torch.cat([parameter.data for parameter in parameters])
        at = 0
        for parameter in parameters:
            rows = parameter.shape[0]
            parameter.data = packed[at : at + rows]
            at += rows
    return packed


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """All of them as one tensor, if they lie in memory as it would."""
    first, ahead = tensors[0], tensors[0].storage_offset()
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        here = tensor.storage_offset(), tensor.untyped_storage().data_ptr()
        fits = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:] and tensor.is_contiguous()
        if here != (ahead, storage) or not fits:
            return None
        ahead += tensor.numel()
    rows = sum(tensor.shape[0] for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
