"""A scene: one layout drawn several times, unstyled and in several materials, with captions."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from scripts.demo_model.captions import caption, held_out_pairs
from scripts.demo_model.compositions import COMPOSITION_DRAWINGS, UNNAMED_DRAWINGS
from scripts.demo_model.fields import Canvas
from scripts.demo_model.materials import MATERIAL_DRAWINGS
from scripts.demo_model.palettes import colour, stops_tensor
from scripts.demo_model.photos import draw_photo_like
from sdbridge.models.embedded_model import COMPOSITIONS, MATERIALS, PALETTES

LUMA = (0.299, 0.587, 0.114)
NO_PALETTE = len(PALETTES)  # label of natural colours
NO_COMPOSITION = len(COMPOSITIONS)
PALETTE_SHARE = 0.6  # how often a caption names a palette
COMPOSITION_SHARE = 0.5


@dataclass(frozen=True)
class SceneBatch:
    """n layouts, each drawn unstyled (index 0) and in k materials (1..k)."""

    pictures: torch.Tensor  # uint8 [n, 1 + k, 3, h, w]
    materials: torch.Tensor  # long [n, k], index into MATERIALS
    palettes: torch.Tensor  # long [n, k], NO_PALETTE for natural colours
    compositions: torch.Tensor  # long [n], NO_COMPOSITION where unnamed

    def captions(self, rng: random.Random) -> list[list[str]]:
        """A fresh caption for each styled picture."""
        rows = []
        for row in range(len(self.pictures)):
            rows.append(
                [
                    caption_of(int(m), int(p), int(self.compositions[row]), rng)
                    for m, p in zip(self.materials[row], self.palettes[row], strict=True)
                ]
            )
        return rows


def caption_of(material: int, palette: int, composition: int, rng: random.Random) -> str:
    """A caption for the labels; the composition is named only now and then."""
    named = composition != NO_COMPOSITION and rng.random() < COMPOSITION_SHARE
    return caption(
        MATERIALS[material],
        PALETTES[palette] if palette != NO_PALETTE else None,
        COMPOSITIONS[composition] if named else None,
        rng,
    )


def draw_tone(
    n: int, size: int, generator: torch.Generator, rng: random.Random
) -> tuple[Canvas, torch.Tensor, int]:
    """A canvas, a tone map for each picture, and the composition's label."""
    c = Canvas(n, size, generator)
    names = list(COMPOSITION_DRAWINGS) + list(UNNAMED_DRAWINGS) * 2
    name = rng.choice(names)
    label = COMPOSITIONS.index(name) if name in COMPOSITION_DRAWINGS else NO_COMPOSITION
    drawing = COMPOSITION_DRAWINGS.get(name) or UNNAMED_DRAWINGS[name]
    return c, drawing(c).clamp(0, 1), label


def draw_material(
    material: str, tone: torch.Tensor, stops: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Clothe tone maps [n, h, w] in a material and gradients: [n, 3, h, w] in 0..1."""
    c = Canvas(tone.shape[0], tone.shape[-1], generator)
    return colour(MATERIAL_DRAWINGS[material](c, tone), stops)


def draw_scenes(n: int, styled: int, size: int, generator: torch.Generator, rng: random.Random) -> SceneBatch:
    """n layouts in `styled` materials each; a fifth of the calls lay out by a photo-like picture."""
    if rng.random() < 0.2:
        photo = draw_photo_like(n, size, generator)
        tone, label = sum(w * photo[:, i] for i, w in enumerate(LUMA)), NO_COMPOSITION
        unstyled = photo
    else:
        c, tone, label = draw_tone(n, size, generator, rng)
        unstyled = colour(tone + c.noise(2) * c.uniform(0, 0.02), _random_stops(c))
    pictures, materials, palettes = [unstyled], [], []
    held_out = held_out_pairs()
    for material in rng.sample(range(len(MATERIALS)), styled):
        names, labels = [], []
        for _ in range(n):
            palette = _choose_palette(MATERIALS[material], held_out, rng)
            labels.append(palette)
            names.append(MATERIALS[material] if palette == NO_PALETTE else PALETTES[palette])
        stops = stops_tensor(names, tone.device)
        pictures.append(draw_material(MATERIALS[material], tone, stops, generator))
        materials.append(torch.full((n,), material))
        palettes.append(torch.tensor(labels))
    stacked = torch.stack([(p.clamp(0, 1) * 255).round().to(torch.uint8) for p in pictures], 1)
    return SceneBatch(stacked, torch.stack(materials, 1), torch.stack(palettes, 1), torch.full((n,), label))


def _choose_palette(material: str, held_out: frozenset[tuple[str, str]], rng: random.Random) -> int:
    if rng.random() > PALETTE_SHARE:
        return NO_PALETTE
    return rng.choice([i for i, name in enumerate(PALETTES) if (material, name) not in held_out])


def _random_stops(c: Canvas) -> torch.Tensor:
    """Random colours from dark to light (now and then in any order), [n, 5, 3]."""
    tint = torch.rand(c.n, 5, 3, generator=c.generator, device=c.device)
    ladder = torch.linspace(0.0, 1.0, 5, device=c.device)[None, :, None]
    vivid = c.uniform(0.2, 0.75)
    return (ladder * (1 - vivid * 0.6) + (tint - 0.3) * vivid).clamp(0, 1)
