"""Pictures with the statistics of photographs, drawn from nothing: for the VAE, and as unstyled input."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scripts.demo_model.compositions import scattered
from scripts.demo_model.fields import Canvas, rotate, smooth


def dead_leaves(c: Canvas, leaves: int = 60) -> torch.Tensor:
    """Opaque ovals and boxes of power-law sizes and natural colours over one another, some textured."""
    picture = _natural_colour(c)[:, :, None, None] + torch.zeros(c.n, 3, c.size, c.size, device=c.device)
    for _ in range(leaves):
        x, y = c.u - c.uniform(-0.1, 1.1), c.v - c.uniform(-0.1, 1.1)
        x, y = rotate(x, y, c.uniform(0, 3.14))
        size = 0.02 * (1 - c.uniform(0, 0.985)) ** -0.65
        aspect = c.uniform(0.35, 2.0)
        oval = (x * x + (y * aspect) ** 2).sqrt()
        box = torch.maximum(x.abs(), y.abs() * aspect)
        soft = c.uniform(0.001, 0.02)
        mask = ((size - torch.where(c.uniform(0, 1) < 0.6, oval, box)) / soft + 0.5).clamp(0, 1)[:, None]
        light = 1 + (x * c.uniform(-2, 2) + y * c.uniform(-2, 2))[:, None]
        picture = picture * (1 - mask) + mask * _natural_colour(c)[:, :, None, None] * light
    return picture


def rough_light(c: Canvas) -> torch.Tensor:
    """1/f noise in each of three correlated channels."""
    shared = c.fbm(c.size / 2.2, 8, gain=0.55)
    tint = [c.fbm(c.size / 2.2, 6, gain=0.5) for _ in range(3)]
    strength, mean = c.uniform(0.08, 0.24), c.uniform(0.25, 0.7)
    return torch.stack([mean + strength * (shared + 0.45 * t) for t in tint], 1)


def shaded_scene(c: Canvas) -> torch.Tensor:
    """Smoothly lit shapes with soft shadows and fine grain, like a studio photograph."""
    tone = scattered(c)
    stops = torch.stack([_natural_colour(c) * k for k in (0.1, 0.5, 0.9, 1.3)], 1)
    stops = stops + torch.randn(stops.shape, generator=c.generator, device=c.device) * 0.06
    place = tone.clamp(0, 0.999) * 3
    low = place.long()
    part = (place - low)[:, None]
    table = stops.transpose(1, 2)
    shape = (c.n, 3, c.size, c.size)
    index = low.flatten(1)[:, None].expand(-1, 3, -1)
    picture = table.gather(2, index).view(shape) * (1 - part) + table.gather(2, index + 1).view(shape) * part
    return picture + (c.noise(2.5) * c.uniform(0, 0.05))[:, None]


def lines_and_letters(c: Canvas) -> torch.Tensor:
    """Thin strokes and hard edges on a flat ground, like print, branches and wires."""
    ground, ink = _natural_colour(c), _natural_colour(c)
    stroke = torch.zeros_like(c.u)
    for _ in range(10):
        x, y = rotate(c.u - c.uniform(0, 1), c.v - c.uniform(0, 1), c.uniform(0, 3.14))
        bend = y + (x * c.uniform(2, 9)).sin() * c.uniform(0, 0.15)
        wide = c.uniform(0.002, 0.014)
        along = smooth(x.abs(), c.uniform(0.05, 0.6), 0.0).clamp(0, 1) > 0.02
        stroke = torch.maximum(stroke, smooth(bend.abs(), wide * 1.4, wide * 0.6) * along)
    stroke = stroke[:, None]
    light = 1 + (c.noise(140) * 0.15)[:, None]
    return ground[:, :, None, None] * light * (1 - stroke) + ink[:, :, None, None] * stroke


KINDS = (dead_leaves, rough_light, shaded_scene, lines_and_letters)


def draw_photo_like(n: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """n pictures [n, 3, size, size] in 0..1: one kind laid over another, then blurred or grained."""
    c = Canvas(n, size, generator)
    first = KINDS[int(torch.randint(0, len(KINDS), (1,), generator=generator, device=c.device))](c)
    second = KINDS[int(torch.randint(0, len(KINDS), (1,), generator=generator, device=c.device))](c)
    seam = smooth(c.fbm(size / 2.5, 4), -0.02, 0.02)[:, None]
    picture = first * (1 - seam) + second * seam
    texture = (c.fbm(c.size / 8, 5, gain=0.8) * smooth(c.noise(size / 3), -0.2, 0.6))[:, None]
    picture = picture * (1 + texture * c.uniform(0, 0.25)[:, None])
    blurred = F.avg_pool2d(F.pad(picture, (2, 2, 2, 2), mode="reflect"), 5, 1)
    amount = (c.uniform(-0.8, 1.0).clamp(min=0) * smooth(c.noise(size / 2), -1, 1))[:, None]
    picture = picture * (1 - amount) + blurred * amount
    return picture.clamp(0, 1)


def _natural_colour(c: Canvas) -> torch.Tensor:
    """Mostly greyish and brownish colours, now and then a vivid one, [n, 3]."""
    value = torch.rand(c.n, 1, generator=c.generator, device=c.device) ** 1.2
    tint = torch.randn(c.n, 3, generator=c.generator, device=c.device)
    vivid = torch.rand(c.n, 1, generator=c.generator, device=c.device) ** 3
    return (value * (1 + tint * (0.08 + 0.5 * vivid))).clamp(0, 1)
