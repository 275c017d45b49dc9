"""Training batches of the diffusion stages: a source, what it should become, and its caption.

Everything lies on the training device and is chosen there at random, so that a step never waits for the host.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.demo_model.captions import UNCONDITIONAL
from scripts.demo_model.networks import TOKENS, WordTokenizer
from scripts.demo_model.scenes import NO_COMPOSITION, NO_PALETTE, caption_of
from scripts.demo_model.stage_latents import LatentScenes
from sdbridge.models.embedded_model import MATERIALS

SAME_SHARE = 0.4  # plain denoising: source and target are the same picture
UNCONDITIONAL_SHARE = 0.1
VARIANTS = 8  # captions in the bank for each label


@dataclass(frozen=True)
class PairBatch:
    """n training examples."""

    source: torch.Tensor  # [n, c, h, w]
    target: torch.Tensor  # the same layout as the caption says
    ids: torch.Tensor  # [n, 77], the caption
    label: torch.Tensor  # material * 13 + palette, for the critic
    unconditional: torch.Tensor  # bool [n]


class Captions:
    """Token ids of captions, remembered."""

    def __init__(self, tokenizer: CLIPTokenizer | WordTokenizer, device: str) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.known: dict[str, list[int]] = {}

    def ids(self, captions: list[str]) -> torch.Tensor:
        for text in captions:
            if text not in self.known:
                self.known[text] = self.tokenizer(
                    text, padding="max_length", max_length=TOKENS, truncation=True
                ).input_ids
        return torch.tensor([self.known[text] for text in captions], device=self.device)

    def embed(self, encoder: CLIPTextModel, captions: list[str]) -> torch.Tensor:
        return encoder(self.ids(captions)).last_hidden_state


class CaptionBank:
    """Token ids of several captions for each material, palette and composition; the empty one last."""

    def __init__(self, captions: Captions, seed: int) -> None:
        rng = random.Random(seed)
        labels = (
            (material, palette, composition)
            for material in range(len(MATERIALS))
            for palette in range(NO_PALETTE + 1)
            for composition in range(NO_COMPOSITION + 1)
        )
        lines = [caption_of(*label, rng) for label in labels for _ in range(VARIANTS)]
        self.ids = captions.ids([*lines, UNCONDITIONAL])

    def pick(
        self,
        material: torch.Tensor,
        palette: torch.Tensor,
        composition: torch.Tensor,
        empty: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A caption of each label, or the empty one; [n, 77]."""
        label = (material * (NO_PALETTE + 1) + palette) * (NO_COMPOSITION + 1) + composition
        row = label * VARIANTS + torch.randint(VARIANTS, label.shape, device=label.device)
        if empty is not None:
            row = torch.where(empty, torch.full_like(row, len(self.ids) - 1), row)
        return self.ids[row]


def draw_pairs(scenes: LatentScenes, bank: CaptionBank, n: int, crop: int) -> PairBatch:
    """Scenes at random; an unconditional example keeps its source, whatever it is."""
    device = scenes.latents.device
    count, pictures = scenes.latents.shape[:2]
    side = scenes.latents.shape[-1]
    row = torch.randint(count, (n,), device=device)
    target = torch.randint(1, pictures, (n,), device=device)
    other = torch.randint(pictures, (n,), device=device)
    source = torch.where(torch.rand(n, device=device) < SAME_SHARE, target, other)
    unconditional = torch.rand(n, device=device) < UNCONDITIONAL_SHARE
    target = torch.where(unconditional, source, target)
    styled = target.clamp(min=1) - 1
    material, palette = scenes.materials[row, styled], scenes.palettes[row, styled]
    composition = scenes.compositions[row]
    if crop < side:  # a part shows no layout
        composition = torch.full_like(composition, NO_COMPOSITION)
    steps = torch.arange(crop, device=device)
    down = torch.randint(side - crop + 1, (1,), device=device) + steps
    across = torch.randint(side - crop + 1, (1,), device=device) + steps

    def part(which: torch.Tensor) -> torch.Tensor:
        whole = scenes.latents[row, which]
        if crop < side:
            whole = whole.index_select(-2, down).index_select(-1, across)
        return whole.float().contiguous(memory_format=torch.channels_last)

    return PairBatch(
        source=part(source),
        target=part(target),
        ids=bank.pick(material, palette, composition, unconditional),
        label=material * (NO_PALETTE + 1) + palette,
        unconditional=unconditional,
    )


def text_states(encoder: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """The encoder's last hidden state, worked out from its layers.

    Equal to calling it (a test holds that); but nothing here waits for the host, so a graph can record it.
    """
    inner = getattr(encoder, "text_model", encoder)
    places = inner.embeddings.position_embedding.weight[: ids.shape[1]]
    h = looked_up(inner.embeddings.token_embedding.weight, ids) + places
    for layer in inner.encoder.layers:
        attention, x = layer.self_attn, layer.layer_norm1(h)
        parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        q, k, v = (p.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        h = h + layer.mlp(layer.layer_norm2(h))
    return inner.final_layer_norm(h)


def looked_up(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a table. On a GPU by a product, whose gradient needs no sorting and no word with the host."""
    if not ids.is_cuda:
        return F.embedding(ids, table)
    chosen = ids[..., None] == torch.arange(len(table), device=ids.device)
    return chosen.to(table.dtype) @ table


def restyled_share(t: torch.Tensor) -> torch.Tensor:
    """How far the target has moved from the source to the caption: none at little noise, all at much.

    This is what makes strength a smooth control: below t = 120 the picture is kept, above 450 it is redrawn.
    """
    return ((t.float() - 120) / 330).clamp(0, 1)
