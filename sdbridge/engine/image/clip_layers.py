"""The transformer that CLIP's two encoders share, under transformers' names for its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdbridge.errors import SdbridgeError


def _quick_gelu(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(1.702 * hidden)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": functional.gelu}


def settings_of(config: Mapping[str, Any], usual: Mapping[str, object], whose: str) -> SimpleNamespace:
    """``config`` with what it leaves out. Raises SDB-MODEL-PARTS for what no CLIP of ours computes."""
    settings = SimpleNamespace(**{**usual, **config})
    if settings.hidden_act not in _ACTIVATIONS:
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"the {whose} encoder's activation {settings.hidden_act!r} is none of {', '.join(_ACTIVATIONS)}",
        )
    if settings.hidden_size % settings.num_attention_heads:
        raise SdbridgeError(
            "SDB-MODEL-PARTS",
            f"the {whose} encoder's width {settings.hidden_size} is no multiple of its "
            f"{settings.num_attention_heads} heads",
        )
    return settings


def taken_over(
    kind: Any, library_kind: Any, folder: str, how: Mapping[str, Any], prefix: str
) -> tuple[Any, Mapping[str, Any]]:
    """Our encoder with the weights that the library read, and what it says of them.

    ``prefix`` is the one that transformers' versions give or leave out.
    """
    read, about = library_kind.from_pretrained(folder, **how)
    ours = kind.from_config(read.config.to_dict()).to(read.dtype)
    given = {name.removeprefix(prefix): tensor for name, tensor in read.state_dict().items()}
    ours.load_state_dict({name: given[name.removeprefix(prefix)] for name in ours.state_dict()})
    return ours, about


class ClipLayers(nn.Module):
    """Its layers. ``causal``: each token looks at those before it only, as in a text."""

    def __init__(self, config: Any, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, causal) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """``hidden`` and what each layer makes of it, ``[n, tokens, width]`` each."""
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class _Layer(nn.Module):
    def __init__(self, config: Any, causal: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(config, causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        hidden = hidden + self.mlp(self.layer_norm2(hidden))
        return hidden


class _Attention(nn.Module):
    def __init__(self, config: Any, causal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.causal = causal
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        shape = hidden.shape
        query, key, value = (
            project(hidden).view(*shape[:2], self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        attended: Tensor = self.out_proj(found.transpose(1, 2).reshape(shape))
        return attended


class _FeedForward(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return out
