"""CLIP's text encoder, as Stable Diffusion's checkpoints hold it: token ids in, hidden states out.

The names of its weights are those that transformers 5 gives them, and so are its answers, to the last bit
(a test compares them). It stands here because importing transformers takes longer than all else of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdbridge.errors import SdbridgeError


def _quick_gelu(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(1.702 * hidden)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": functional.gelu}
#: What a config may leave out, as the format has it.
_USUAL: Mapping[str, object] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
#: Configs from before 2023 say this number and mean "the highest id in the text".
_OLD_EOS = 2


@dataclass(frozen=True)
class ClipTextStates:
    """What a text became. ``hidden_states``: embedding and every layer's output, before the last norm."""

    last_hidden_state: Tensor  # [chunks, tokens, width]
    hidden_states: tuple[Tensor, ...]
    pooler_output: Tensor  # [chunks, width]
    text_embeds: Tensor | None = None  # [chunks, projected]


class ClipText(nn.Module):
    """The encoder alone, for Stable Diffusion 1 and 2 and for SDXL's first."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """With weights still to be given. Raises SDB-MODEL-PARTS for what no CLIP of ours computes."""
        settings = SimpleNamespace(**{**_USUAL, **config})
        if settings.hidden_act not in _ACTIVATIONS:
            raise SdbridgeError(
                "SDB-MODEL-PARTS",
                f"the text encoder's activation {settings.hidden_act!r} is none of {', '.join(_ACTIVATIONS)}",
            )
        return cls(settings)

    @classmethod
    def from_pretrained(cls, folder: str, **how: Any) -> tuple[Self, Mapping[str, Any]]:
        """Through transformers, which knows files that we do not read: pickles, and keys of other names."""
        from transformers import CLIPTextModel

        return _taken_over(cls, CLIPTextModel, folder, how)

    def forward(self, ids: Tensor, output_hidden_states: bool = True) -> ClipTextStates:
        """``ids`` is ``[chunks, tokens]``."""
        states = [self.embeddings(ids)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        last = self.final_layer_norm(states[-1])
        numbers = ids.to(torch.int)
        if self.config.eos_token_id != _OLD_EOS:
            numbers = (numbers == self.config.eos_token_id).int()  # the first of them ends the text
        ends = numbers.argmax(dim=-1)
        pooled = last[torch.arange(last.shape[0], device=last.device), ends]
        return ClipTextStates(last, tuple(states), pooled)


class ClipTextProjected(nn.Module):
    """With a projection of the pooled text, for SDXL's second."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.text_model = ClipText(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """As ``ClipText.from_config``."""
        return cls(ClipText.from_config(config).config)

    @classmethod
    def from_pretrained(cls, folder: str, **how: Any) -> tuple[Self, Mapping[str, Any]]:
        """As ``ClipText.from_pretrained``."""
        from transformers import CLIPTextModelWithProjection

        return _taken_over(cls, CLIPTextModelWithProjection, folder, how)

    def forward(self, ids: Tensor, output_hidden_states: bool = True) -> ClipTextStates:
        found: ClipTextStates = self.text_model(ids)
        return ClipTextStates(
            found.last_hidden_state,
            found.hidden_states,
            found.pooler_output,
            self.text_projection(found.pooler_output),
        )


class _Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[-1]]


class _Layers(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        hidden = hidden + self.mlp(self.layer_norm2(hidden))
        return hidden


class _Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
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
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
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


def _taken_over(
    kind: Any, library_kind: Any, folder: str, how: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Our encoder with the weights that the library read, and what it says of them."""
    read, about = library_kind.from_pretrained(folder, **how)
    ours = kind.from_config(read.config.to_dict()).to(read.dtype)
    given = {name.removeprefix("text_model."): tensor for name, tensor in read.state_dict().items()}
    ours.load_state_dict({name: given[name.removeprefix("text_model.")] for name in ours.state_dict()})
    return ours, about
