"""Which layouts the pictures have: tone maps 0 dark .. 1 light that a material then clothes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from scripts.demo_model.fields import Canvas, rotate, smooth

Composition = Callable[[Canvas], torch.Tensor]
SOFT = 0.012  # width of an edge in picture widths


def _place(c: Canvas) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coordinates about a random centre, turned a little, and a random size."""
    x, y = c.u - c.uniform(0.3, 0.7), c.v - c.uniform(0.3, 0.7)
    x, y = rotate(x, y, c.uniform(-0.35, 0.35))
    return x, y, c.uniform(0.17, 0.36)


def _on_ground(c: Canvas, mask: torch.Tensor, shade: torch.Tensor | None = None) -> torch.Tensor:
    """A figure on a ground of another tone, most often light on dark, both unevenly lit."""
    dark, light = c.uniform(0.0, 0.3), c.uniform(0.62, 1.0)
    swap = (c.uniform(0, 1) < 0.25).float()
    figure, ground = light * (1 - swap) + dark * swap, dark * (1 - swap) + light * swap
    fall = ((c.u - 0.5) * c.uniform(-0.35, 0.35) + (c.v - 0.5) * c.uniform(-0.35, 0.35)) * 0.8
    lit = figure if shade is None else figure + shade
    return (ground + fall) * (1 - mask) + (lit + fall * 0.5) * mask


def _inside(distance: torch.Tensor) -> torch.Tensor:
    return smooth(distance, SOFT, -SOFT)


def circle(c: Canvas) -> torch.Tensor:
    x, y, r = _place(c)
    distance = (x * x + y * y).sqrt()
    sphere = ((x + y) / r) * -0.25 * (c.uniform(0, 1) < 0.6).float()
    return _on_ground(c, _inside(distance - r), sphere)


def square(c: Canvas) -> torch.Tensor:
    x, y, r = _place(c)
    return _on_ground(c, _inside(torch.maximum(x.abs(), y.abs() * c.uniform(0.8, 1.25)) - r * 0.9))


def triangle(c: Canvas) -> torch.Tensor:
    x, y, r = _place(c)
    side = torch.maximum(x.abs() * 0.866 - y * 0.5, y) - r * 0.6
    return _on_ground(c, _inside(side))


def ring(c: Canvas) -> torch.Tensor:
    x, y, r = _place(c)
    distance = ((x * x + y * y).sqrt() - r).abs() - r * c.uniform(0.18, 0.35)
    return _on_ground(c, _inside(distance))


def star(c: Canvas) -> torch.Tensor:
    x, y, r = _place(c)
    angle, points = torch.atan2(x, -y), c.integer(4, 8)
    sector = 6.2832 / points
    part = (angle + sector / 2) % sector - sector / 2
    distance = (x * x + y * y).sqrt()
    return _on_ground(c, _inside(distance * (1 + 2.1 * part.abs() / sector) - r * 1.35))


def horizon(c: Canvas) -> torch.Tensor:
    line = c.uniform(0.4, 0.7) + c.noise(60, 4000) * 0.015
    ground = smooth(c.v - line, -SOFT, SOFT)
    sky_low, sky_high = c.uniform(0.5, 1.0), c.uniform(0.2, 0.7)
    sky = sky_high + (sky_low - sky_high) * (c.v / line).clamp(0, 1)
    x, y = c.u - c.uniform(0.2, 0.8), c.v - line + c.uniform(0.05, 0.3)
    sun = _inside((x * x + y * y).sqrt() - c.uniform(0.06, 0.14)) * (c.uniform(0, 1) < 0.7).float()
    earth = c.uniform(0.0, 0.3) + 0.25 * (c.v - line)
    return (sky * (1 - sun) + sun) * (1 - ground) + earth * ground


def mountains(c: Canvas) -> torch.Tensor:
    tone = c.uniform(0.75, 1.0) - 0.25 * c.v
    for layer in range(3):
        line = 0.35 + 0.2 * layer + c.noise(70 - 14 * layer, 4000) * 0.07 + c.noise(22, 4000) * 0.02
        tone = torch.where(
            c.v > line, 0.62 - 0.22 * layer + 0.25 * (c.v - line) + c.uniform(-0.06, 0.06), tone
        )
    return tone


def face(c: Canvas) -> torch.Tensor:
    x, y = c.u - c.uniform(0.4, 0.6), c.v - c.uniform(0.42, 0.58)
    x, y = rotate(x, y, c.uniform(-0.25, 0.25))
    size = c.uniform(0.26, 0.38)
    x, y = x / size, y / size

    def oval(cx: float, cy: float, rx: float, ry: float) -> torch.Tensor:
        return smooth((((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2).sqrt(), 1.06, 0.94)

    look = c.uniform(-0.06, 0.06)
    eye_y = -0.2
    eyes = oval(-0.33, eye_y, 0.17, 0.11) + oval(0.33, eye_y, 0.17, 0.11)
    features = eyes + oval(0, 0.52, 0.32, 0.09) + 0.5 * oval(0, 0.17, 0.09, 0.2)
    pupil = smooth((((x.abs() - 0.33 - look) / 0.07) ** 2 + ((y - eye_y) / 0.07) ** 2).sqrt(), 1.1, 0.9)
    head, ground = c.uniform(0.65, 0.9), c.uniform(0.05, 0.35)
    hair = oval(0, -0.35, 0.92, 0.95)
    tone = ground * (1 - hair) + hair * (ground + 0.12 * c.uniform(-1, 1))
    skin = oval(0, 0, 0.8, 1.05)
    tone = tone * (1 - skin) + skin * (head - 0.25 * x * c.uniform(-0.6, 1))
    return tone - skin * features.clamp(0, 1) * (head - 0.2) * 0.75 + pupil * 0.3


def blobs(c: Canvas) -> torch.Tensor:
    return _on_ground(c, smooth(c.fbm(72, 2, gain=0.3), 0.2, 0.32))


def stripes(c: Canvas) -> torch.Tensor:
    x, _ = rotate(c.u, c.v, c.uniform(0, 3.14))
    wave = ((x + c.uniform(0, 1)) * 6.2832 * c.uniform(1.5, 3.2)).sin()
    return _on_ground(c, smooth(wave, -0.12, 0.12))


def spiral(c: Canvas) -> torch.Tensor:
    x, y, _ = _place(c)
    distance = (x * x + y * y).sqrt()
    turn = torch.where(c.uniform(0, 1) < 0.5, -1.0, 1.0)
    wave = (torch.atan2(y, x) * turn + distance * c.uniform(14, 24)).sin()
    return _on_ground(c, smooth(wave, -0.15, 0.15))


def arch(c: Canvas) -> torch.Tensor:
    x, y = c.u - c.uniform(0.35, 0.65), c.v - c.uniform(0.35, 0.5)
    r = c.uniform(0.16, 0.3)
    above = (x * x + y * y).sqrt() - r
    opening = torch.where(y < 0, above, x.abs() - r)
    frame = _inside(opening - r * 0.35)
    return _on_ground(c, (frame - _inside(opening) * 0.999).clamp(0, 1))


def scattered(c: Canvas) -> torch.Tensor:
    """Shapes of many tones over one another, no composition in particular: the everyday picture."""
    tone = c.uniform(0.1, 0.9) + c.noise(90) * 0.12
    for _ in range(7):
        x, y = c.u - c.uniform(0, 1), c.v - c.uniform(0, 1)
        x, y = rotate(x, y, c.uniform(0, 3.14))
        size = c.uniform(0.05, 0.3)
        oval = (x * x + (y * c.uniform(0.5, 2.0)) ** 2).sqrt() - size
        box = torch.maximum(x.abs(), y.abs() * c.uniform(0.3, 2.5)) - size
        mask = _inside(torch.where(c.uniform(0, 1) < 0.5, oval, box))
        tone = tone * (1 - mask) + mask * (c.uniform(0, 1) + x * c.uniform(-1, 1))
    return tone


def plain(c: Canvas) -> torch.Tensor:
    """Hardly any layout: slow light and shade."""
    return c.uniform(0.3, 0.75) + c.noise(120) * 0.16


COMPOSITION_DRAWINGS: dict[str, Composition] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "ring": ring,
    "star": star,
    "horizon": horizon,
    "mountains": mountains,
    "face": face,
    "blobs": blobs,
    "stripes": stripes,
    "spiral": spiral,
    "arch": arch,
}
UNNAMED_DRAWINGS: dict[str, Composition] = {"scattered": scattered, "plain": plain}
"""Layouts that captions leave out."""
