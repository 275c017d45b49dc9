"""CLIP's text encoder, as Stable Diffusion's checkpoints hold it: token ids in, hidden states out.

The names of its weights are those that transformers 5 gives them, and so are its answers, to the last bit
(a test compares them). It stands here because importing transformers takes longer than all else of a start.
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
        self.encoder = ClipLayers(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """With weights still to be given. Raises SDB-MODEL-PARTS for what no CLIP of ours computes."""
        return cls(settings_of(config, _USUAL, "text"))

    @classmethod
    def from_pretrained(cls, folder: str, **how: Any) -> tuple[Self, Mapping[str, Any]]:
        """Through transformers, which knows files that we do not read: pickles, and keys of other names."""
        from transformers import CLIPTextModel

        return taken_over(cls, CLIPTextModel, folder, how, "text_model.")

    def forward(self, ids: Tensor, output_hidden_states: bool = True) -> ClipTextStates:
        """``ids`` is ``[chunks, tokens]``."""
        states = self.encoder(self.embeddings(ids))
        last = self.final_layer_norm(states[-1])
        numbers = ids.to(torch.int)
        if self.config.eos_token_id != _OLD_EOS:
            numbers = (numbers == self.config.eos_token_id).int()  # the first of them ends the text
        ends = numbers.argmax(dim=-1)
        pooled = last[torch.arange(last.shape[0], device=last.device), ends]
        return ClipTextStates(last, states, pooled)


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

        return taken_over(cls, CLIPTextModelWithProjection, folder, how, "text_model.")

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
