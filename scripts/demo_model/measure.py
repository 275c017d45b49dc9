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
import torch.nn.functional as F
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.demo_model.captions import held_out_pairs
from scripts.demo_model.classifier import MaterialClassifier, load_classifier
from scripts.demo_model.pairs import Captions
from scripts.demo_model.palettes import PALETTE_STOPS, colour, stops_tensor
from scripts.demo_model.sampling import FOUR_STEPS, sample
from scripts.demo_model.scenes import draw_material, draw_tone
from scripts.demo_model.stage_controlnet import control_map
from sdbridge.engine.image.device import choose_placement
from sdbridge.models.embedded_model import EMBEDDED_DIR, MATERIALS, PALETTES

ONE_STEP = (999,)
COLOURED = tuple(name for name in PALETTES if name != "silver")
BATCH = 25
OTHER_SEED = 77_003


class Controlled(torch.nn.Module):
    """A UNet and the ControlNet that steers it, called as a UNet is; at most one batch of BATCH pictures."""

    def __init__(self, unet: torch.nn.Module, net: ControlNetModel, control: torch.Tensor) -> None:
        super().__init__()
        self.unet, self.net, self.control = unet, net, control

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> object:
        down, middle = self.net(noisy, t, text, controlnet_cond=self.control, return_dict=False)
        return self.unet(
            noisy, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )


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

    @cached_property
    def quick(self) -> bool:
        """Whether this CPU multiplies bfloat16 matrices in hardware, as the product asks too."""
        return choose_placement("cpu", "auto").tiny_vae_dtype is torch.bfloat16

    def arithmetic(self) -> torch.autocast:
        """bfloat16 where the machine has it, as the product decodes: three times as fast."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.quick)

    def controlled(self, kind: str, control: torch.Tensor) -> Controlled:
        """The UNet under a ControlNet of the package that sees `control`."""
        net = ControlNetModel.from_pretrained(
            self.folder / f"controlnet_{kind}", torch_dtype=torch.float32, local_files_only=True
        )
        return Controlled(self.unet, net.requires_grad_(False).eval(), control)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.captions.embed(self.text, list(prompts))

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        parts = pictures.split(BATCH)
        with self.arithmetic():
            return torch.cat([self.vae.encode(part * 2 - 1).latents.float() for part in parts])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        with self.arithmetic():
            return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def paint(
        self,
        embedded: torch.Tensor,
        steps: Sequence[int] = FOUR_STEPS,
        seed: int = 0,
        source: torch.Tensor | None = None,
        unet: torch.nn.Module | None = None,
        **options: object,
    ) -> torch.Tensor:
        """Pictures [n, 3, 256, 256] for embedded prompts; from latents `source` or from noise."""
        generator, parts = torch.Generator().manual_seed(seed), []
        for start in range(0, len(embedded), BATCH):
            rows = slice(start, start + BATCH)
            mine = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            begin = None if source is None else source[rows]
            with self.arithmetic():
                latents = sample(unet or self.unet, embedded[rows], steps, generator, begin, **mine)
            parts.append(self.decode(latents))
        return torch.cat(parts)

    @torch.no_grad()
    def named(self, pictures: torch.Tensor) -> torch.Tensor:
        """Probability of each material, [n, materials]."""
        with self.arithmetic():
            scores = torch.cat([self.classifier(part).float() for part in pictures.split(BATCH)])
        return scores.softmax(1)


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


def accuracy(model: Shipped, pictures: torch.Tensor, rows: list[tuple[int, str]]) -> float:
    """Share of pictures in which the classifier names the prompted material."""
    named = model.named(pictures).argmax(1)
    return float((named == torch.tensor([material for material, _ in rows])).float().mean())


def painted(model: Shipped, rows: list[tuple[int, str]], steps: Sequence[int], seed: int = 3) -> torch.Tensor:
    """A picture from noise for each prompt."""
    return model.paint(model.embed([prompt for _, prompt in rows]), steps, seed)


def material_accuracy(
    model: Shipped, rows: list[tuple[int, str]], steps: Sequence[int], seed: int = 3
) -> float:
    """Share of pictures from noise in which the classifier names the prompted material."""
    return accuracy(model, painted(model, rows, steps, seed), rows)


def prompts_held_out(count: int) -> list[tuple[int, str]]:
    """Pairs that training never drew, over and over."""
    pairs = sorted(held_out_pairs())
    rows = [(MATERIALS.index(m), f"{m} in {p}") for m, p in pairs]
    return [rows[i % len(rows)] for i in range(count)]


def palette_share(pictures: torch.Tensor, rows: list[tuple[int, str]]) -> float:
    """Share of the pictures prompted with a coloured palette whose mean hue lies within 60 degrees of it."""
    near = []
    for picture, (_, prompt) in zip(pictures, rows, strict=True):
        palette = prompt.rpartition(" in ")[2]
        if palette in COLOURED:
            near.append(hue_distance(mean_hue(picture), palette_hue(palette)) <= 60)
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
    """Prompt score of one-step pictures at little noise for each guidance scale (1: none).

    At much noise one step already shows all of the prompt, and guidance has nothing left to add.
    """
    latents = model.encode(drawn_inputs(count))
    materials = [i % len(MATERIALS) for i in range(count)]
    embedded, empty = model.embed([MATERIALS[m] for m in materials]), model.embed([""] * count)
    scores = []
    for scale in scales:
        pictures = model.paint(embedded, (299,), seed, latents, guidance=scale, negative=empty)
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
        made = model.paint(embedded, (249,), seed, latents, guidance=1.6, negative=model.embed(negative))
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


def edge_scores(model: Shipped, count: int = 13, seed: int = 10) -> tuple[float, float]:
    """F1 of one-step pictures' edges against drawings': without, and with the ControlNet on those."""
    materials = list(range(0, len(MATERIALS), len(MATERIALS) // count))[:count]
    drawings = torch.cat([drawn_in(MATERIALS[m], None, 1, OTHER_SEED + m) for m in materials])
    edges = control_map("canny")(drawings)
    embedded = model.embed([MATERIALS[m] for m in materials])
    made = [
        model.paint(embedded, ONE_STEP, seed, unet=unet) for unet in (None, model.controlled("canny", edges))
    ]
    scores = [edge_agreement(control_map("canny")(pictures), edges) for pictures in made]
    return scores[0], scores[1]


def edge_agreement(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean F1 of two sets of edge maps, an edge counting as found within two pixels."""
    a, b = ours[:, :1] > 0.5, wanted[:, :1] > 0.5
    near_a, near_b = (F.max_pool2d(edges.float(), 5, 1, 2) > 0 for edges in (a, b))
    precision = (a & near_b).sum((1, 2, 3)) / a.sum((1, 2, 3)).clamp(min=1)
    recall = (b & near_a).sum((1, 2, 3)) / b.sum((1, 2, 3)).clamp(min=1)
    return float((2 * precision * recall / (precision + recall).clamp(min=1e-9)).mean())


def grid_distances(model: Shipped, count: int = 13, seed: int = 11) -> tuple[float, float]:
    """Mean distance of one-step pictures' colour grids from drawings': without, and with the ControlNet."""
    rng, draw = random.Random(seed), control_map("color")
    materials = list(range(0, len(MATERIALS), len(MATERIALS) // count))[:count]
    drawings = torch.cat([drawn_in(MATERIALS[m], rng.choice(COLOURED), 1, OTHER_SEED + m) for m in materials])
    grids, embedded = draw(drawings), model.embed([MATERIALS[m] for m in materials])
    made = [
        model.paint(embedded, ONE_STEP, seed, unet=unet) for unet in (None, model.controlled("color", grids))
    ]
    distances = [float((draw(pictures) - grids).abs().mean()) for pictures in made]
    return distances[0], distances[1]


@torch.no_grad()
def shuffle_weights(module: torch.nn.Module, seed: int = 9) -> None:
    """Put every tensor's numbers in random order: same statistics, no meaning."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        flat = parameter.reshape(-1)
        order = torch.randperm(flat.numel(), generator=generator)
        parameter.copy_(flat[order].view_as(parameter))
