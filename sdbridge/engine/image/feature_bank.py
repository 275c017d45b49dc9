"""Temporal consistency: earlier frames take part in self-attention (StreamV2V; section 2.6 of the maths).

Written from the paper's equations. In every self-attention layer, row by row of the stream batch:

    extended self-attention   O = softmax(Q [K; K_bank]^T / sqrt d) [V; V_bank]
    feature fusion            h' = (1 - lambda) h + lambda nn(h), nn(h) being the bank's output most like h,
                              or h itself below the threshold; in the middle and the first two up blocks
    bank merging              every ``interval`` frames bank and frame (2N tokens) are halved at random,
                              each token of one half goes to its nearest key in the other, and the mean
                              of what came together is kept: N tokens again

The bank is seeded from the first frame, so the first picture is that of plain attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.image.settings import BankSettings

_SEED = 1234


class FeatureBank:
    """Puts its processors on the UNet's self-attention while enabled, and the old ones back afterwards."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self._layers: dict[str, _BankAttention] = {}
        self._before: dict[str, Any] = {}
        self._settings = BankSettings()
        self._frame = 0
        self._generator: torch.Generator | None = None

    @property
    def enabled(self) -> bool:
        return bool(self._layers)

    def set(self, settings: BankSettings) -> None:
        """Follow the parameters; switching on seeds the bank from the next frame."""
        if settings.frames != self._settings.frames:
            self.forget()
        self._settings = settings
        if settings.enabled and not self._layers:
            self._install()
        elif not settings.enabled and self._layers:
            self._remove()

    def begin_frame(self) -> None:
        """Once before each UNet call: tells the layers whether this frame is taken up."""
        if not self._layers:
            return
        settings = self._settings
        update = self._frame > 0 and self._frame % settings.interval == 0
        slot = (self._frame // settings.interval) % settings.frames
        self._frame += 1
        for layer in self._layers.values():
            layer.settings, layer.update, layer.slot = settings, update, slot

    def forget(self) -> None:
        """The next frame seeds the bank anew."""
        self._frame = 0
        self._generator = None
        for layer in self._layers.values():
            layer.forget()

    def close(self) -> None:
        if self._layers:
            self._remove()

    def shuffle(self, count: int, device: torch.device) -> Tensor:
        """A random order of ``count`` tokens, made on the device; the same in every run."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(_SEED)
        return torch.rand(count, generator=self._generator, device=device).argsort()

    def _install(self) -> None:
        self._frame = 0
        for name, module in self._unet.named_modules():
            if name.endswith("attn1") and hasattr(module, "to_q"):
                fuses = name.startswith(("mid_block.", "up_blocks.0.", "up_blocks.1."))
                self._before[name] = module.processor
                layer = _BankAttention(self, fuses)
                self._layers[name] = layer
                module.processor = layer

    def _remove(self) -> None:
        for name, module in self._unet.named_modules():
            if name in self._before:
                module.processor = self._before[name]
        self._layers.clear()
        self._before.clear()


class _BankAttention:
    """The processor of one layer, with the layer's part of the bank: ``[rows, frames * N, width]``."""

    def __init__(self, bank: FeatureBank, fuses: bool) -> None:
        self._bank = bank
        self._fuses = fuses
        self.settings = BankSettings()
        self.update = False
        self.slot = 0
        self.forget()

    def forget(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._outputs: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *arguments: Any,
        **keywords: Any,
    ) -> Tensor:
        """``hidden_states`` ``[rows, N, width]`` -> the same shape."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        rows, tokens, _ = key.shape
        wanted = (rows, tokens * self.settings.frames, key.shape[2])
        if self._keys is None or self._values is None or self._keys.shape != wanted:
            repeat = (1, self.settings.frames, 1)
            self._keys, self._values, self._outputs = key.repeat(repeat), value.repeat(repeat), None
            output = _attend(attn, query, key, value)  # a bank of copies of itself changes nothing
        else:
            output = _attend(
                attn, query, torch.cat([key, self._keys], 1), torch.cat([value, self._values], 1)
            )
        output = attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor
        fused = output
        if self._fuses:
            if self._outputs is None:
                self._outputs = output.repeat(1, self.settings.frames, 1)
            elif self.settings.strength > 0:
                fused = fuse(output, self._outputs, self.settings.strength, self.settings.threshold)
        if self.update:
            self._take_up(key, value, output)
        return fused

    def _take_up(self, key: Tensor, value: Tensor, output: Tensor) -> None:
        assert self._keys is not None and self._values is not None
        kept = [self._keys, self._values, *([self._outputs] if self._outputs is not None else [])]
        new = [key, value, output][: len(kept)]
        if self.settings.frames == 1:
            both = [torch.cat(pair, 1) for pair in zip(kept, new, strict=True)]
            merged = merge(both, self._bank.shuffle(both[0].shape[1], key.device))
        else:
            tokens = key.shape[1]
            here = slice(self.slot * tokens, (self.slot + 1) * tokens)
            merged = []
            for old, fresh in zip(kept, new, strict=True):
                copy = old.clone()
                copy[:, here] = fresh
                merged.append(copy)
        self._keys, self._values = merged[0], merged[1]
        if self._outputs is not None:
            self._outputs = merged[2]


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows, tokens, width = query.shape
    heads = attn.heads

    def split(tensor: Tensor) -> Tensor:
        return tensor.view(rows, -1, heads, width // heads).transpose(1, 2)

    output = functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return output.transpose(1, 2).reshape(rows, tokens, width)


def fuse(output: Tensor, bank: Tensor, strength: float, threshold: float) -> Tensor:
    """h' = (1 - strength) h + strength nn(h); nn(h) is the bank's most similar vector, or h below threshold.

    output ``[rows, N, width]``, bank ``[rows, M, width]``. Similarity is the cosine.
    """
    similarity = functional.normalize(output, dim=-1) @ functional.normalize(bank, dim=-1).transpose(1, 2)
    best, index = similarity.max(dim=-1, keepdim=True)
    nearest = bank.gather(1, index.expand(-1, -1, bank.shape[-1]))
    nearest = torch.where(best >= threshold, nearest, output)
    return torch.lerp(output, nearest, strength)


def merge(tensors: list[Tensor], order: Tensor) -> list[Tensor]:
    """Halve the tokens of each ``[rows, 2N, width]`` by one assignment, found on the first (the keys).

    ``order`` is a random permutation of the 2N tokens: its first half is merged into its second half.
    """
    half = order.shape[0] // 2
    source, target = order[:half], order[half:]
    keys = functional.normalize(tensors[0], dim=-1)
    index = (keys[:, source] @ keys[:, target].transpose(1, 2)).argmax(dim=-1, keepdim=True)
    merged = []
    for tensor in tensors:
        kept = tensor[:, target].clone()
        where = index.expand(-1, -1, tensor.shape[-1])
        merged.append(kept.scatter_reduce_(1, where, tensor[:, source], "mean", include_self=True))
    return merged
