"""How style tokens reach cross-attention: a second attention beside the text's, layer by layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.accelerate.beside import marks_here

_PLACE = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.(\d+)")
_SERIALS = itertools.count(1)
_ORDER = {"down": 0, "mid": 1, "up": 2}


class StyleRows:
    """Which rows of the UNet call are conditioned and which carry the negative prompt, for all layers."""

    def __init__(self, layers: int, device: torch.device, dtype: torch.dtype) -> None:
        self.active = False
        self.guidance_rows = 0
        self.tokens = 0
        self.scales = torch.zeros(layers, device=device, dtype=dtype)
        self.serial = next(_SERIALS)  # a captured graph reads these very layers and no others

    @property
    def mark(self) -> str:
        """What tells calls apart that read these layers: which layers, which rows."""
        return f"style_{self.serial}_{self.guidance_rows}_{self.tokens}"

    def state(self) -> tuple[bool, int]:
        """Whether the style is in the call that runs in this thread, and that call's guidance rows.

        What is captured beside the stream is a call of some frames ago.
        """
        marks = marks_here()
        if marks is None:
            return self.active, self.guidance_rows
        own = [mark.split("_") for mark in marks if mark.startswith(f"style_{self.serial}_")]
        return (True, int(own[0][2])) if own else (False, 0)

    def set_scales(self, scales: Sequence[float]) -> None:
        """Write in place: captured graphs read this very tensor."""
        host = torch.tensor(list(scales), dtype=self.scales.dtype)
        pinned = host.pin_memory() if self.scales.is_cuda else host
        self.scales.copy_(pinned, non_blocking=True)


class StyleAttention:
    """Cross-attention to the text as before, plus ``scale`` times attention to the style tokens.

    H. Ye et al., "IP-Adapter" (2023), equation 5. Keys and values of the style are made when the
    style changes, not per frame. While no style is active the former processor runs.
    """

    #: A CUDA graph may hold this: everything that changes is written in place (see ``StyleImages``).
    graph_safe = True

    def __init__(self, former: Any, rows: StyleRows, layer: int, to_key: Tensor, to_value: Tensor) -> None:
        self.former = former
        self._rows = rows
        self._layer = layer
        self._to_key, self._to_value = to_key, to_value  # [width, token width]
        self._keys: Tensor | None = None  # [2, tokens, width]: conditioned, negative
        self._values: Tensor | None = None

    def take(self, tokens: Tensor) -> None:
        """tokens ``[2, T, D]``: the style's and those of no style. Written in place if the shape stays."""
        keys, values = nn.linear(tokens, self._to_key), nn.linear(tokens, self._to_value)
        if self._keys is None or self._values is None or self._keys.shape != keys.shape:
            self._keys, self._values = keys.clone(), values.clone()
        else:
            self._keys.copy_(keys)
            self._values.copy_(values)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        active, extra = self._rows.state()
        if not active or self._keys is None or self._values is None:
            return self.former(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **options
            )
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        batch, heads = hidden_states.shape[0], attn.heads
        query = _heads(attn.to_q(hidden_states), heads)
        key, value = _heads(attn.to_k(text), heads), _heads(attn.to_v(text), heads)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, text.shape[1], batch)
            attention_mask = attention_mask.view(batch, heads, -1, attention_mask.shape[-1])
        out = _joined(nn.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask))
        style_key = _per_row(self._keys, batch, extra)
        style_value = _per_row(self._values, batch, extra)
        style = nn.scaled_dot_product_attention(query, _heads(style_key, heads), _heads(style_value, heads))
        out = out + self._rows.scales[self._layer] * _joined(style)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def _per_row(both: Tensor, batch: int, extra: int) -> Tensor:
    """``[2, T, width]`` -> ``[B, T, width]``: conditioned rows first, then the ``extra`` guidance rows."""
    conditioned = both[:1].expand(batch - extra, -1, -1)
    if not extra:
        return conditioned
    return torch.cat((conditioned, both[1:].expand(extra, -1, -1)))


def _heads(states: Tensor, heads: int) -> Tensor:
    """``[B, T, heads * d]`` -> ``[B, heads, T, d]``."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(states: Tensor) -> Tensor:
    return states.transpose(1, 2).flatten(-2)


def layer_factors(names: Sequence[str], family: str, kind: str) -> list[float]:
    """The share of each cross-attention layer (by its name in the UNet) for a ``style_type``.

    ``ease_*`` follow the layer's place from input to output; ``weak_*`` turn one half of the UNet
    down to a fifth; ``style`` and ``composition`` reach the layers that InstantStyle (H. Wang et
    al., 2024) found to carry them.
    """
    order = sorted(range(len(names)), key=lambda index: _place(names[index]))
    last = max(1, len(names) - 1)
    depth = {index: rank / last for rank, index in enumerate(order)}
    eased = {
        "ease_in": lambda d: 0.05 + 0.95 * (1 - d),
        "ease_out": lambda d: 0.05 + 0.95 * d,
        "ease_in_out": lambda d: 0.05 + 0.95 * (1 - abs(2 * d - 1)),
    }
    if kind in eased:
        return [eased[kind](depth[index]) for index in range(len(names))]
    if kind in ("weak_input", "weak_output"):
        weak = "down" if kind == "weak_input" else "up"
        return [0.2 if name.startswith(weak) else 1.0 for name in names]
    if kind in ("style", "composition", "style_and_composition"):
        style, composition = _style_layers(names, family), _composition_layers(names, family)
        factors = {"style": style, "composition": composition}.get(kind)
        if factors is None:
            factors = {name: max(style.get(name, 0), composition.get(name, 0)) for name in names}
        return [factors.get(name, 0.0) for name in names]
    return [1.0] * len(names)


def _place(name: str) -> tuple[int, int, int, str]:
    """Sort key: the order in which the UNet runs its layers (they are listed down, up, mid)."""
    found = _PLACE.search(name)
    if found is None:
        return (3, 0, 0, name)
    return (_ORDER[found[1]], int(found[2] or 0), int(found[3]), name)


def _composition_layers(names: Sequence[str], family: str) -> dict[str, float]:
    """The deepest down block: its last attention, in SD 1.5 also a little of those before it."""
    blocks = [_place(name)[1] for name in names if name.startswith("down")]
    deepest = [
        name for name in names if name.startswith("down") and _place(name)[1] == max(blocks, default=0)
    ]
    last = max((_place(name)[2] for name in deepest), default=0)
    before = 0.0 if family == "sdxl" else 0.25
    return {name: 1.0 if _place(name)[2] == last else before for name in deepest}


def _style_layers(names: Sequence[str], family: str) -> dict[str, float]:
    """SDXL: the second attention of the first up block. Others: all but it and composition's."""
    blocks = [_place(name)[1] for name in names if name.startswith("up")]
    first = [name for name in names if name.startswith("up") and _place(name)[1] == min(blocks, default=0)]
    if family == "sdxl":
        chosen = min(1, max((_place(name)[2] for name in first), default=0))
        return {name: 1.0 for name in first if _place(name)[2] == chosen}
    composition = _composition_layers(names, family)
    return {name: 1.0 for name in names if name not in composition and name not in first}
