"""Temporal consistency: earlier frames take part in self-attention (StreamV2V; section 2.6 of the maths).

Written from the paper's equations. In every self-attention layer, row by row of the stream batch:

    extended self-attention   O = softmax(Q [K; K_bank]^T / sqrt d) [V; V_bank]
    feature fusion            h' = (1 - lambda) h + lambda nn(h), nn(h) being the bank's output most like h,
                              or h itself below the threshold; in the middle and the first two up blocks
    bank merging              every ``interval`` frames bank and frame (2N tokens) are halved at random,
                              each token of one half goes to its nearest key in the other, and the mean
                              of what came together is kept: N tokens again

The bank is seeded from the first frame, so the first picture is that of plain attention. The layers
do not all merge at the same frame: a quarter of the work is done at the frame that is due, the other
quarters at the frames after it (closer together for a small interval), each with its own frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.image.bank_memory import SHARES, LayerMemory, Memory
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.image.settings import BankSettings

_SEED = 1234
_ORDERS = 32  # random orders drawn for each number of tokens, taken one after another


class FeatureBank:
    """Puts its processors on the UNet's self-attention while enabled, and the old ones back afterwards.

    Before each UNet call ``begin_frame`` gives the memory that belongs into the call; ``end_frame`` takes
    up what is due, at the latest when the next frame begins: its picture need not wait for that.
    ``wrap`` accelerates the merging, which is a call on tensors.
    """

    def __init__(
        self,
        unet: Any,
        wrap: Callable[[Callable[..., Any], str], Callable[..., Any]] = lambda run, name: run,
    ) -> None:
        self._layers = {
            module: name.startswith(("mid_block.", "up_blocks.0.", "up_blocks.1."))
            for name, module in unet.named_modules()
            if name.endswith("attn1") and hasattr(module, "to_q")
        }
        self._wrap = wrap
        self._before: dict[Any, Any] = {}  # the modules' own processors, while ours are in their place
        self._settings = BankSettings()
        self._frame = 0  # since the seeding one
        self._open = False  # a frame has begun and not ended
        self._memory: Memory | None = None
        self._shape: tuple[object, ...] = ()
        self._made = 0
        self._dials: tuple[float, float] | None = None
        self._orders: dict[int, Tensor] = {}

    @property
    def enabled(self) -> bool:
        return bool(self._before)

    @property
    def memory(self) -> Memory:
        """That of the running frame."""
        assert self._memory is not None
        return self._memory

    def set(self, settings: BankSettings) -> None:
        """Follow the parameters; switching on seeds the bank from the next frame."""
        self._settings = settings
        if settings.enabled and not self._before:
            self.forget()
            for module in self._layers:
                self._before[module] = module.processor
                module.processor = _BankAttention(self)
        elif not settings.enabled and self._before:
            self._remove()

    def begin_frame(self, call: UnetCall) -> Memory:
        """Before each UNet call; the memory stays the same, in place, until a shape changes."""
        self.end_frame()
        settings, sample = self._settings, call.sample
        shape = (sample.shape, sample.dtype, settings.frames)
        if self._memory is None or shape != self._shape:
            self._made += 1
            self._memory = Memory(self._layers, settings.frames, self._made, sample, self._wrap)
            self._shape, self._frame, self._dials = shape, 0, None
        self._memory.seeding = self._frame == 0
        dials = (settings.strength, settings.threshold)
        if dials != self._dials:
            self._dials = dials
            self._memory.strength.fill_(settings.strength)
            self._memory.threshold.fill_(settings.threshold)
        self._open = True
        return self._memory

    def end_frame(self) -> None:
        """After a UNet call: the frame seeds the bank, or those layers take it up whose turn it is."""
        if not self._open:
            return
        self._open = False
        memory, interval = self.memory, self._settings.interval
        if memory.seeding:
            memory.settle()
        for share in range(SHARES):
            since = self._frame - share % interval
            if since > 0 and since % interval == 0:
                turn = since // interval
                memory.take_up(share, turn % memory.frames, partial(self._order, turn))
        self._frame += 1

    def forget(self) -> None:
        """The next frame seeds the bank anew."""
        self._frame, self._open = 0, False

    def close(self) -> None:
        if self._before:
            self._remove()
        self._open = False
        self._memory = None
        self._orders.clear()

    def _order(self, turn: int, count: int) -> Tensor:
        """A random order of ``count`` tokens, drawn on the device; the same in every run."""
        drawn = self._orders.get(count)
        if drawn is None:
            device = self.memory.strength.device
            generator = torch.Generator(device).manual_seed(_SEED + count)
            drawn = torch.rand(_ORDERS, count, generator=generator, device=device).argsort(dim=1)
            self._orders[count] = drawn
        return drawn[turn % _ORDERS]

    def _remove(self) -> None:
        for module, processor in self._before.items():
            module.processor = processor
        self._before.clear()


class _BankAttention:
    """Self-attention with the bank, for a UNet that runs module by module."""

    graph_safe = True  # past the seeding frame nothing is allocated, and what is written lies still

    def __init__(self, bank: FeatureBank) -> None:
        self._bank = bank

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
        layer: LayerMemory = self._bank.memory.layers[attn]
        keys, values = layer.extend(torch.cat([attn.to_k(hidden_states), attn.to_v(hidden_states)], -1))
        output = _attend(attn.heads, attn.to_q(hidden_states), keys, values)
        output = attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor
        return layer.blend(output)


def _attend(heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    def split(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    output = functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return output.transpose(1, 2).flatten(2)
