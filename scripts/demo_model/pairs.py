"""Training batches of the diffusion stages: a source, what it should become, and its caption."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.demo_model.captions import UNCONDITIONAL
from scripts.demo_model.networks import TOKENS
from scripts.demo_model.scenes import NO_COMPOSITION, caption_of
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_latents import LatentScenes
from sdbridge.models.embedded_model import PALETTES

SAME_SHARE = 0.4  # plain denoising: source and target are the same picture
UNCONDITIONAL_SHARE = 0.1


@dataclass(frozen=True)
class PairBatch:
    """n training examples."""

    source: torch.Tensor  # [n, c, h, w]
    target: torch.Tensor  # the same layout as the caption says
    captions: list[str]
    label: torch.Tensor  # material * 13 + palette, for the critic
    scene: torch.Tensor  # which scene and which of its pictures the target is
    which: torch.Tensor
    unconditional: torch.Tensor  # bool [n]


def draw_pairs(
    scenes: LatentScenes, n: int, crop: int, rng: random.Random, s: Settings, conditional_only: bool = False
) -> PairBatch:
    """Scenes at random; an unconditional example keeps its source, whatever it is."""
    device = scenes.latents.device
    count, pictures = scenes.latents.shape[:2]
    side = scenes.latents.shape[-1]
    rows, sources, targets, captions, labels, empty = [], [], [], [], [], []
    for _ in range(n):
        row, target = rng.randrange(count), rng.randrange(1, pictures)
        source = target if rng.random() < SAME_SHARE else rng.randrange(pictures)
        unconditional = not conditional_only and rng.random() < UNCONDITIONAL_SHARE
        if unconditional:
            target = source
        material = int(scenes.materials[row, max(target, 1) - 1])
        palette = int(scenes.palettes[row, max(target, 1) - 1])
        composition = int(scenes.compositions[row]) if crop == side else NO_COMPOSITION
        rows.append(row)
        sources.append(source)
        targets.append(target)
        labels.append(material * (len(PALETTES) + 1) + palette)
        captions.append(UNCONDITIONAL if unconditional else caption_of(material, palette, composition, rng))
        empty.append(unconditional)
    picked_source = scenes.latents[torch.tensor(rows), torch.tensor(sources)]
    picked_target = scenes.latents[torch.tensor(rows), torch.tensor(targets)]
    top, left = rng.randrange(side - crop + 1), rng.randrange(side - crop + 1)
    window = (..., slice(top, top + crop), slice(left, left + crop))
    return PairBatch(
        source=picked_source[window].float().contiguous(memory_format=torch.channels_last),
        target=picked_target[window].float().contiguous(memory_format=torch.channels_last),
        captions=captions,
        label=torch.tensor(labels, device=device),
        scene=torch.tensor(rows),
        which=torch.tensor(targets),
        unconditional=torch.tensor(empty, device=device),
    )


def restyled_share(t: torch.Tensor) -> torch.Tensor:
    """How far the target has moved from the source to the caption: none at little noise, all at much.

    This is what makes strength a smooth control: below t = 120 the picture is kept, above 450 it is redrawn.
    """
    return ((t.float() - 120) / 330).clamp(0, 1)


class Captions:
    """Token ids of captions, remembered."""

    def __init__(self, tokenizer: CLIPTokenizer, device: str) -> None:
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
