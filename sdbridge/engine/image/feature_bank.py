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

import numpy as np
import torch
from torch import Tensor

from sdbridge.engine.accelerate.attention import Attend, pytorch_attention
from sdbridge.engine.accelerate.beside import works_beside
from sdbridge.engine.accelerate.replay import foresee
from sdbridge.engine.image.bank_memory import SHARES, BankForm, LayerMemory, LayerSize, Memory
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.image.settings import BankSettings

_SEED = 1234
_ORDERS = 32  # random orders drawn for each number of tokens, taken one after another


#: A memory's two forms, by whether they seed it.
Forms = dict[bool, BankForm]


class FeatureBank:
    """Puts its processors on the UNet's self-attention while enabled, and the old ones back afterwards.

    Before each UNet call ``begin_frame`` gives the memory that belongs into the call; ``end_frame`` takes
    up what is due, at the latest when the next frame begins: its picture need not wait for that.
    ``wrap`` accelerates the merging, which is a call on tensors. ``forms_for`` gives the same memory to
    calls that are captured before the bank is on, or before its shape changes.
    """

    def __init__(
        self,
        unet: Any,
        wrap: Callable[[Callable[..., Any], str], Callable[..., Any]] = lambda run, name: run,
        attend: Attend = pytorch_attention,
    ) -> None:
        self._unet = unet
        self.attend = attend
        self._layers = {
            module: name
            for name, module in unet.named_modules()
            if name.endswith("attn1") and hasattr(module, "to_q")
        }
        self._wrap = wrap
        self._before: dict[Any, Any] = {}  # the modules' own processors, while ours are in their place
        self._settings = BankSettings()
        self._frame = 0  # since the seeding one
        self._open = False  # a frame has begun and not ended
        self._memory: Memory | None = None
        self._forms: Forms = {}
        self._form: BankForm | None = None  # of the running frame
        self._shape: tuple[object, ...] = ()
        self._ahead: tuple[tuple[object, ...], Forms] | None = None  # for a shape to come
        self._made = 0
        self._dials: tuple[float, float] | None = None
        self._orders: dict[tuple[int, int], Tensor] = {}

    @property
    def enabled(self) -> bool:
        return bool(self._before)

    @property
    def memory(self) -> Memory:
        """That of the running frame."""
        assert self._memory is not None
        return self._memory

    @property
    def form(self) -> BankForm:
        """How the running frame uses it."""
        assert self._form is not None
        return self._form

    def set(self, settings: BankSettings) -> None:
        """Follow the parameters; switching on seeds the bank from the next frame."""
        self._settings = settings
        if settings.enabled and not self._before:
            self.forget()
            for module in self._layers:
                self._before[module] = module.processor
                module.processor = _BankAttention(self, module.processor)
        elif not settings.enabled and self._before:
            self._remove()

    def forms_for(self, sample: Tensor, frames: int) -> tuple[BankForm, BankForm]:
        """The seeding and the running form for calls like ``sample``, of a bank of so many frames."""
        forms = self._forms_of(_shape_of(sample, frames), sample, frames)
        return forms[True], forms[False]

    def is_ready(self, sample: Tensor, frames: int) -> bool:
        """Whether the merging of such calls is captured; else that is begun beside the stream."""
        memory = self._forms_of(_shape_of(sample, frames), sample, frames)[False].memory
        found = [
            foresee(merge, *(self._order(0, count, sample.device) for count in counts))
            for merge, counts in memory.merges()
        ]
        return all(found)

    def begin_frame(self, call: UnetCall) -> BankForm:
        """Before each UNet call; the memory stays the same, in place, until a shape changes."""
        self.end_frame()
        settings, sample = self._settings, call.sample
        shape = _shape_of(sample, settings.frames)
        if self._memory is None or shape != self._shape:
            self._forms = self._forms_of(shape, sample, settings.frames)
            self._memory = self._forms[False].memory
            self._shape, self._frame, self._dials, self._ahead = shape, 0, None, None
        self._form = self._forms[self._frame == 0]
        dials = (settings.strength, settings.threshold)
        if dials != self._dials:
            self._dials = dials
            self._memory.strength.fill_(settings.strength)
            self._memory.threshold.fill_(settings.threshold)
        self._open = True
        return self._form

    def end_frame(self) -> None:
        """After a UNet call: the frame seeds the bank, or those layers take it up whose turn it is."""
        if not self._open:
            return
        self._open = False
        memory, interval = self.memory, self._settings.interval
        for share in range(SHARES):
            since = self._frame - share % interval
            if since > 0 and since % interval == 0:
                turn = since // interval
                order = partial(self._order, turn, device=memory.strength.device)
                memory.take_up(share, turn % memory.frames, order)
        self._frame += 1

    def forget(self) -> None:
        """The next frame seeds the bank anew."""
        self._frame, self._open = 0, False

    def close(self) -> None:
        if self._before:
            self._remove()
        self._open = False
        self._memory = self._form = self._ahead = None
        self._forms = {}
        self._orders.clear()

    def _forms_of(self, shape: tuple[object, ...], sample: Tensor, frames: int) -> Forms:
        """Of the memory in use, of the one made for a shape to come, or of a new one for that."""
        if self._memory is not None and shape == self._shape:
            return self._forms
        if self._ahead is None or self._ahead[0] != shape:
            self._made += 1
            sizes = {
                module: layer_size(self._unet, name, module, *sample.shape[-2:])
                for module, name in self._layers.items()
            }
            made = Memory(sizes, sample.shape[0], frames, self._made, sample, self._wrap)
            self._ahead = shape, {seeding: made.form(seeding) for seeding in (True, False)}
        return self._ahead[1]

    def _order(self, turn: int, count: int, device: torch.device) -> Tensor:
        """A random order of ``count`` tokens; the same in every run and on every device.

        Drawn on the host, where it takes a tenth of a millisecond: sorting on the device for the first time
        stopped a frame for 150.
        """
        key = count, turn % _ORDERS
        drawn = self._orders.get(key)
        if drawn is None:
            host = torch.from_numpy(np.random.default_rng((_SEED, *key)).permutation(count))
            drawn = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
            self._orders[key] = drawn = drawn.to(device)
        return drawn

    def _remove(self) -> None:
        for module, processor in self._before.items():
            module.processor = processor
        self._before.clear()


class _BankAttention:
    """Self-attention with the bank, for a UNet that runs module by module."""

    graph_safe = True  # what is written lies still

    def __init__(self, bank: FeatureBank, former: Any) -> None:
        self._bank = bank
        self._former = former

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
        if (
            works_beside()
        ):  # modules are captured there for calls without a bank only, which this one is not in
            made: Tensor = self._former(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *arguments, **keywords
            )
            return made
        layer: LayerMemory = self._bank.form.layers[attn]
        keys, values = layer.extend(torch.cat([attn.to_k(hidden_states), attn.to_v(hidden_states)], -1))
        query, keys, values = (
            tensor.unflatten(-1, (attn.heads, -1)) for tensor in (attn.to_q(hidden_states), keys, values)
        )
        output = self._bank.attend(query, keys, values).flatten(2)
        output = attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor
        return layer.blend(output)


def _shape_of(sample: Tensor, frames: int) -> tuple[object, ...]:
    return sample.shape, sample.dtype, frames


def layer_size(unet: Any, name: str, module: Any, height: int, width: int) -> LayerSize:
    """What the self-attention layer ``name`` sees of latents of this size.

    A block on the way down halves what it is given, an odd length up; the way up goes back through the same.
    """
    fuses = name.startswith(("mid_block.", "up_blocks.0.", "up_blocks.1."))
    down = list(unet.down_blocks)
    sizes = [(height, width)]
    for block in down[:-1]:
        high, wide = sizes[-1]
        sizes.append((-(-high // 2), -(-wide // 2)) if block.downsamplers else (high, wide))
    way, _, rest = name.partition(".")
    if way == "mid_block":
        high, wide = sizes[-1]
    else:
        index = int(rest.partition(".")[0])
        high, wide = sizes[index] if way == "down_blocks" else sizes[len(down) - 1 - index]
    return LayerSize(high * wide, int(module.to_k.out_features), fuses)
