"""How well the shipped weights do what they are told: every figure of the semantic tests, seeded."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.demo_model.captions import held_out_pairs
from scripts.demo_model.classifier import MaterialClassifier, load_classifier
from scripts.demo_model.pairs import Captions
from scripts.demo_model.palettes import PALETTE_STOPS, colour, stops_tensor
from scripts.demo_model.sampling import FOUR_STEPS, sample
from scripts.demo_model.scenes import draw_material, draw_tone
from sdbridge.models.embedded_model import EMBEDDED_DIR, MATERIALS, PALETTES

ONE_STEP = (999,)
COLOURED = tuple(name for name in PALETTES if name != "silver")
BATCH = 25
OTHER_SEED = 77_003


@dataclass
class Shipped:
    """The exported pipeline with the tests' classifier, in fp32 on the CPU."""

    folder: Path = EMBEDDED_DIR
    unet: UNet2DConditionModel = field(init=False)
    vae: AutoencoderTiny = field(init=False)
    text: CLIPTextModel = field(init=False)
    captions: Captions = field(init=False)

    def __post_init__(self) -> None:
        load = {"torch_dtype": torch.float32, "local_files_only": True}
        self.unet = UNet2DConditionModel.from_pretrained(self.folder / "unet", **load).eval()
        self.vae = AutoencoderTiny.from_pretrained(self.folder / "vae", **load).eval()
        self.text = CLIPTextModel.from_pretrained(self.folder / "text_encoder", **load).eval()
        self.captions = Captions(CLIPTokenizer.from_pretrained(self.folder / "tokenizer"), "cpu")
        for module in (self.unet, self.vae):
            module.to(memory_format=torch.channels_last)
        for module in (self.unet, self.vae, self.text):
            module.requires_grad_(False)

    @cached_property
    def classifier(self) -> MaterialClassifier:
        return load_classifier()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.captions.embed(self.text, list(prompts))

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pictures * 2 - 1).latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def paint(
        self,
        embedded: torch.Tensor,
        steps: Sequence[int] = FOUR_STEPS,
        seed: int = 0,
        source: torch.Tensor | None = None,
        **options: object,
    ) -> torch.Tensor:
        """Pictures [n, 3, 256, 256] for embedded prompts; from latents `source` or from noise."""
        generator, parts = torch.Generator().manual_seed(seed), []
        for start in range(0, len(embedded), BATCH):
            rows = slice(start, start + BATCH)
            mine = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            begin = None if source is None else source[rows]
            latents = sample(self.unet, embedded[rows], steps, generator, begin, **mine)
            parts.append(self.decode(latents))
        return torch.cat(parts)

    @torch.no_grad()
    def named(self, pictures: torch.Tensor) -> torch.Tensor:
        """Probability of each material, [n, materials]."""
        return torch.cat([self.classifier(part) for part in pictures.split(BATCH)]).softmax(1)


def prompts_seen(count: int, seed: int = 1) -> list[tuple[int, str]]:
    """Material and prompt; every material in turn, half with a palette that training paired it with."""
    rng, rows, held_out = random.Random(seed), [], held_out_pairs()
    for i in range(count):
        material = i % len(MATERIALS)
        prompt = MATERIALS[material]
        if i // len(MATERIALS) % 2:
            palette = rng.choice([p for p in PALETTES if (MATERIALS[material], p) not in held_out])
            prompt = f"{prompt} in {palette}"
        rows.append((material, prompt))
    return rows


def material_accuracy(
    model: Shipped, rows: list[tuple[int, str]], steps: Sequence[int], seed: int = 3
) -> float:
    """Share of pictures from noise in which the classifier names the prompted material."""
    pictures = model.paint(model.embed([prompt for _, prompt in rows]), steps, seed)
    named = model.named(pictures).argmax(1)
    return float((named == torch.tensor([material for material, _ in rows])).float().mean())


def prompts_held_out(count: int) -> list[tuple[int, str]]:
    """Pairs that training never drew, over and over."""
    pairs = sorted(held_out_pairs())
    rows = [(MATERIALS.index(m), f"{m} in {p}") for m, p in pairs]
    return [rows[i % len(rows)] for i in range(count)]


def palette_share(model: Shipped, count: int, steps: Sequence[int] = FOUR_STEPS, seed: int = 4) -> float:
    """Share of pictures whose mean hue lies within 60 degrees of the prompted palette's."""
    rng = random.Random(seed)
    palettes = [COLOURED[i % len(COLOURED)] for i in range(count)]
    held_out, prompts = held_out_pairs(), []
    for palette in palettes:
        prompts.append(f"{rng.choice([m for m in MATERIALS if (m, palette) not in held_out])} in {palette}")
    pictures = model.paint(model.embed(prompts), steps, seed)
    near = [
        hue_distance(mean_hue(picture), palette_hue(palette)) <= 60
        for picture, palette in zip(pictures, palettes, strict=True)
    ]
    return sum(near) / len(near)


def palette_hue(palette: str) -> float:
    return colorsys.rgb_to_hsv(*PALETTE_STOPS[palette][2])[0] * 360


def mean_hue(picture: torch.Tensor) -> float:
    """Circular mean of the hue in degrees, weighted by chroma."""
    red, green, blue = picture
    across = red - 0.5 * (green + blue)
    up = (green - blue) * 3**0.5 / 2
    return float(torch.rad2deg(torch.atan2(up.mean(), across.mean()))) % 360


def hue_distance(a: float, b: float) -> float:
    return abs((a - b + 180) % 360 - 180)


def drawn_inputs(count: int, seed: int = OTHER_SEED) -> torch.Tensor:
    """Unstyled layouts in plain colours, of seeds that training never used, [n, 3, 256, 256]."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    pictures = []
    for _ in range(count):
        _, tone, _ = draw_tone(1, 256, generator, rng)
        stops = torch.rand(1, 5, 3, generator=generator).sort(1).values
        pictures.append(colour(tone, stops))
    return torch.cat(pictures)


def drawn_in(material: str, palette: str | None, count: int, seed: int = OTHER_SEED) -> torch.Tensor:
    """Drawings of one material of seeds that training never used."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    pictures = []
    for _ in range(count):
        _, tone, _ = draw_tone(1, 256, generator, rng)
        stops = stops_tensor([palette or material], torch.device("cpu"))
        pictures.append(draw_material(material, tone, stops, generator))
    return torch.cat(pictures).clamp(0, 1)


def strength_curve(
    model: Shipped, timesteps: Sequence[int], count: int = 26, seed: int = 5
) -> list[tuple[float, float]]:
    """(structural similarity to the input, prompt score) of one-step pictures at each timestep."""
    from skimage.metrics import structural_similarity

    inputs = drawn_inputs(count)
    latents = model.encode(inputs)
    materials = [i % len(MATERIALS) for i in range(count)]
    embedded = model.embed([MATERIALS[m] for m in materials])
    points = []
    for t in timesteps:
        pictures = model.paint(embedded, (t,), seed, latents)
        alike = [
            structural_similarity(a.mean(0).numpy(), b.mean(0).numpy(), data_range=1.0)
            for a, b in zip(inputs, pictures, strict=True)
        ]
        points.append((float(np.mean(alike)), prompt_score(model, pictures, materials)))
    return points


def prompt_score(model: Shipped, pictures: torch.Tensor, materials: Sequence[int]) -> float:
    """Mean probability that the classifier gives each picture's own material."""
    return float(model.named(pictures)[torch.arange(len(pictures)), torch.tensor(materials)].mean())


def guidance_scores(model: Shipped, scales: Sequence[float], count: int = 26, seed: int = 6) -> list[float]:
    """Prompt score of one-step pictures at middle noise for each guidance scale (1: none)."""
    latents = model.encode(drawn_inputs(count))
    materials = [i % len(MATERIALS) for i in range(count)]
    embedded, empty = model.embed([MATERIALS[m] for m in materials]), model.embed([""] * count)
    scores = []
    for scale in scales:
        pictures = model.paint(embedded, (459,), seed, latents, guidance=scale, negative=empty)
        scores.append(prompt_score(model, pictures, materials))
    return scores


def negative_scores(model: Shipped, count: int = 26, seed: int = 7) -> tuple[float, float]:
    """Score of the input's own material under another prompt: negative prompt empty, and naming it."""
    own = [i % len(MATERIALS) for i in range(count)]
    asked = [(m + 7) % len(MATERIALS) for m in own]
    pictures = torch.cat([drawn_in(MATERIALS[m], None, 1, OTHER_SEED + i) for i, m in enumerate(own)])
    latents, embedded = model.encode(pictures), model.embed([MATERIALS[m] for m in asked])
    scores = []
    for negative in ([""] * count, [MATERIALS[m] for m in own]):
        made = model.paint(embedded, (399,), seed, latents, guidance=1.4, negative=model.embed(negative))
        scores.append(prompt_score(model, made, own))
    return scores[0], scores[1]


def blend_scores(
    model: Shipped, shares: Sequence[float], count: int = 26, seed: int = 8
) -> list[tuple[float, float]]:
    """Scores of the first and of the second material as the prompt goes from one to the other."""
    first = [i % len(MATERIALS) for i in range(count)]
    second = [(m + 11) % len(MATERIALS) for m in first]
    a, b = model.embed([MATERIALS[m] for m in first]), model.embed([MATERIALS[m] for m in second])
    points = []
    for share in shares:
        pictures = model.paint(torch.lerp(a, b, share), FOUR_STEPS, seed)
        points.append((prompt_score(model, pictures, first), prompt_score(model, pictures, second)))
    return points


@torch.no_grad()
def shuffle_weights(module: torch.nn.Module, seed: int = 9) -> None:
    """Put every tensor's numbers in random order: same statistics, no meaning."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        flat = parameter.reshape(-1)
        order = torch.randperm(flat.numel(), generator=generator)
        parameter.copy_(flat[order].view_as(parameter))
