"""Stage: train the tests' classifier, on drawings of other seeds than the diffusion model's."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from scripts.demo_model.classifier import MaterialClassifier, save_classifier
from scripts.demo_model.palettes import stops_tensor
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.scenes import draw_material, draw_tone
from scripts.demo_model.settings import Settings
from sdbridge.models.embedded_model import MATERIALS, PALETTES

OTHER_SEED = 1_000_003
CROP = 128
GROUP = 8  # pictures of one material drawn at once
GROUPS = 6


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed + OTHER_SEED)
    model = MaterialClassifier().to(s.device)
    progress = Progress(s, "classifier", {"classifier": model}, s.classifier_steps, rate=2e-3, average=0.995)
    seed = s.seed + OTHER_SEED + progress.step
    generator, rng = torch.Generator(s.device).manual_seed(seed), random.Random(seed)
    while progress.go_on(deadline):
        pictures, labels = draw_labelled(generator, rng)
        with autocast(s):
            scores = model(roughen(pictures, generator))
        loss = F.cross_entropy(scores.float(), labels)
        progress.update(loss)
        right = (scores.argmax(1) == labels).float().mean()
        progress.note(loss=loss.detach(), right=right)
    save_classifier(progress.averaged["classifier"].float().cpu())
    return progress.finished


def draw_labelled(generator: torch.Generator, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of crops of random materials in random or natural colours, and their materials."""
    pictures, labels = [], []
    for _ in range(GROUPS):
        material = rng.randrange(len(MATERIALS))
        _, tone, _ = draw_tone(GROUP, CROP, generator, rng)
        names = [MATERIALS[material] if rng.random() < 0.3 else rng.choice(PALETTES) for _ in range(GROUP)]
        stops = stops_tensor(names, generator.device)
        pictures.append(draw_material(MATERIALS[material], tone, stops, generator))
        labels += [material] * GROUP
    return torch.cat(pictures), torch.tensor(labels, device=generator.device)


def roughen(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, noise and light of random strength, so that no pixel-sharp detail is relied upon."""
    n = len(pictures)

    def strength(high: float) -> torch.Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, device=pictures.device) * high

    blurred = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="reflect"), 5, 1)
    mixed = torch.lerp(pictures, blurred, strength(1.0))
    noise = torch.randn(pictures.shape, generator=generator, device=pictures.device)
    return (mixed * (0.8 + strength(0.4)) + noise * strength(0.06)).clamp(0, 1)
