"""From a text to the embeddings the UNet is steered by: long texts in chunks, weights, clip skip, pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.prompt_weights import parse_weights

CHUNK = 75  # tokens between the start and end marks of CLIP's 77
MOST_CHUNKS = 8  # 600 tokens; a longer text is cut there, with a word in the log


@dataclass(frozen=True)
class TextEmbedding:
    """What a text became. ``tokens`` is ``[1, 77 * chunks, width]``, ``pooled`` ``[1, width]`` (SDXL).

    ``cut`` is the number of tokens that were left out because the text was too long.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    cut: int = 0


class TextEncoder:
    """The model's own text encoders (one, or SDXL's two). ``encode`` may run in another thread."""

    def __init__(
        self, encoders: tuple[Any, ...], tokenizers: tuple[Any, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pairs = tuple(zip(encoders, tokenizers, strict=True))
        self._device, self._dtype = device, dtype

    def encode(self, text: str, clip_skip: int = 0) -> TextEmbedding:
        """Embed ``text``. Plain texts of up to 75 tokens give exactly what diffusers' pipelines compute."""
        with torch.inference_mode():
            encoded = [
                self._encode_with(encoder, tokenizer, text, clip_skip, index)
                for index, (encoder, tokenizer) in enumerate(self._pairs)
            ]
        chunks = max(tokens.shape[1] for tokens, _, _ in encoded)
        if any(tokens.shape[1] != chunks for tokens, _, _ in encoded):
            encoded = [
                (self._lengthen(index, tokens, chunks, clip_skip), pooled, cut)
                for index, (tokens, pooled, cut) in enumerate(encoded)
            ]
        return TextEmbedding(
            torch.cat([tokens for tokens, _, _ in encoded], dim=-1),
            encoded[-1][1],
            max(cut for _, _, cut in encoded),
        )

    def _lengthen(self, index: int, tokens: Tensor, length: int, clip_skip: int) -> Tensor:
        """SDXL's tokenizers may cut one text into different numbers of chunks: empty ones are added."""
        encoder, tokenizer = self._pairs[index]
        with torch.inference_mode():
            empty, _, _ = self._encode_with(encoder, tokenizer, "", clip_skip, index)
        missing = (length - tokens.shape[1]) // empty.shape[1]
        return torch.cat([tokens, *([empty] * missing)], dim=1)

    def _encode_with(
        self, encoder: Any, tokenizer: Any, text: str, clip_skip: int, index: int
    ) -> tuple[Tensor, Tensor | None, int]:
        ids, weights, cut = _tokenize(tokenizer, text)
        batch = torch.tensor(ids, device=self._device)  # [chunks, 77]
        hidden, pooled = self._run(encoder, batch, clip_skip)
        if any(weight != 1.0 for chunk in weights for weight in chunk):
            scale = torch.tensor(weights, device=self._device, dtype=hidden.dtype)[..., None]
            start, end, pad = _marks(tokenizer)
            empty_ids = torch.tensor([[start, end, *([pad] * CHUNK)]], device=self._device)
            empty, _ = self._run(encoder, empty_ids, clip_skip)
            hidden = torch.where(scale == 1, hidden, empty + scale * (hidden - empty))
        tokens = hidden.reshape(1, -1, hidden.shape[-1])
        return tokens, None if pooled is None else pooled[:1], cut

    def _run(self, encoder: Any, ids: Tensor, clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """Hidden states ``[chunks, 77, width]`` after leaving out ``clip_skip`` layers, and pooled."""
        out = encoder(ids, output_hidden_states=True)
        states = out.hidden_states
        deepest = len(states) - 1
        if len(self._pairs) == 2:  # SDXL takes the last layer but one, without the final norm
            taken = states[-1 - min(1 + clip_skip, deepest)]
            pooled = getattr(out, "text_embeds", None)
            return taken.to(self._dtype), None if pooled is None else pooled.to(self._dtype)
        if clip_skip == 0:
            return out.last_hidden_state.to(self._dtype), None
        inner = getattr(encoder, "text_model", encoder)
        return inner.final_layer_norm(states[-1 - min(clip_skip, deepest)]).to(self._dtype), None


def _marks(tokenizer: Any) -> tuple[int, int, int]:
    pad = tokenizer.pad_token_id
    return tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token_id if pad is None else pad


def _tokenize(tokenizer: Any, text: str) -> tuple[list[list[int]], list[list[float]], int]:
    """Chunks of 77 token ids and their weights, and how many tokens did not fit."""
    start, end, pad = _marks(tokenizer)
    ids: list[int] = []
    weights: list[float] = []
    for fragment in parse_weights(text):
        if not fragment.text.strip():
            continue
        found = tokenizer.encode(fragment.text)
        ids += found
        weights += [fragment.weight] * len(found)
    cut = max(0, len(ids) - CHUNK * MOST_CHUNKS)
    ids, weights = ids[: CHUNK * MOST_CHUNKS], weights[: CHUNK * MOST_CHUNKS]
    chunks, scales = [], []
    for first in range(0, max(1, len(ids)), CHUNK):
        part, scale = ids[first : first + CHUNK], weights[first : first + CHUNK]
        rest = CHUNK - len(part)
        chunks.append([start, *part, end, *([pad] * rest)])
        scales.append([1.0, *scale, 1.0, *([1.0] * rest)])
    return chunks, scales, cut
