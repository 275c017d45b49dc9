"""How each material is drawn: a value 0..1 for each pixel, which a palette then colours.

Every material takes the canvas and a tone map (0 dark .. 1 light, the layout of the picture) and
keeps the tone map readable, so that a picture restyled from one material to another keeps its layout.
Feature sizes are in pixels of a 256-pixel picture and stay the same in smaller crops.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from scripts.demo_model.fields import Canvas, rotate, smooth

Material = Callable[[Canvas, torch.Tensor], torch.Tensor]


def _lit(texture: torch.Tensor, tone: torch.Tensor, depth: float = 0.5) -> torch.Tensor:
    """An opaque surface: the tone lights it, the texture moves the value by `depth` about the tone."""
    return 0.12 + 0.76 * tone * (1 - depth * 0.6) + depth * (texture - 0.35)


def _glowing(light: torch.Tensor, tone: torch.Tensor, ground: float = 0.25) -> torch.Tensor:
    """Light on a dark ground: the tone sets the strength of the light."""
    return ground * tone * 0.8 + light * (0.35 + 0.65 * tone)


def fire(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    tongues = c.ridges(34, 3, stretch=2.6)
    flicker = c.fbm(24, 3, stretch=2.2) * 0.16
    return _glowing((tongues * 1.15 + flicker).clamp(0, 1), tone, 0.45)


def ocean(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    warp = c.fbm(60, 3) * 7
    scale = c.uniform(0.85, 1.2)
    wave = ((c.y + warp) * 0.42 * scale + c.noise(40, 14) * 1.1).sin() * 0.5 + 0.5
    foam = smooth(wave, 0.8, 1.0)
    return _lit(wave * 0.55 + foam * 0.6, tone, 0.6)


def clouds(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    puff = c.fbm(70, 5, gain=0.5)
    return 0.2 + 0.45 * tone + 0.5 * (smooth(puff, -0.9, 1.3) - 0.4)


def marble(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    x, y = rotate(c.x, c.y, c.uniform(0, 3.14))
    warp = c.fbm(80, 4, gain=0.6) * 34
    vein = ((x + y * 0.3 + warp) * 0.055).sin().abs()
    return 0.3 + 0.6 * tone + 0.1 * c.noise(40) * 0.6 - 0.75 * (1 - smooth(vein, 0.0, 0.3)) * 0.8


def wood(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    centre = c.uniform(-120, 120)
    x = c.u * c.size - c.size / 2 - centre
    radius = x.abs() + c.noise(110, 260) * 14 + c.noise(30, 160) * 2.5
    ring = (radius * 0.42 * c.uniform(0.85, 1.15)).sin() * 0.5 + 0.5
    grain = c.noise(3, 60) * 0.06
    return _lit(ring**1.6 + grain, tone, 0.45)


def lava(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(30, 40)
    k = c.cells((c.x + c.noise(26) * 7) / scale, (c.y + c.noise(26) * 7) / scale)
    crack = 1 - smooth(k.second - k.first, 0.02, 0.3)
    crust = 0.12 * k.value + 0.05 * c.noise(6)
    return 0.05 + crust + 0.34 * tone + crack * (0.45 + 0.5 * tone)


def ice(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(46, 60)
    k = c.cells((c.x + c.noise(60) * 6) / scale, (c.y * 1.5 + c.noise(60) * 6) / scale, 1.0)
    line = 1 - smooth(k.second - k.first, 0.0, 0.07)
    facet = (k.dx * 1.1 + k.dy * 0.6) * 0.35 + (k.value - 0.5) * 0.2
    frost = c.noise(5, 2.2) * 0.05
    return 0.38 + 0.45 * tone + facet + 0.55 * line + frost


def neon_grid(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = c.uniform(26, 34)
    x, y = (c.x / step + 0.5) % 1 - 0.5, (c.y / step + 0.5) % 1 - 0.5
    near = torch.minimum(x.abs(), y.abs()) * step
    line = (-(near**2) / 3.2).exp() + 0.35 * (-near / 5).exp()
    return _glowing(line, tone, 0.12)


def galaxy(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    dust = smooth(c.fbm(70, 4, gain=0.6), -0.7, 1.9)
    k = c.cells(c.x / 13, c.y / 13, 1.0)
    star = (-(k.first**2) / (0.006 + 0.03 * k.value**4)).exp() * smooth(k.value, 0.3, 0.7)
    return 0.03 + dust * (0.2 + 0.4 * tone) + 0.15 * tone + star * 0.85


def stained_glass(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(34, 44)
    k = c.cells(c.x / scale, c.y / scale)
    lead = smooth(k.second - k.first, 0.07, 0.15)
    return lead * (0.2 + 0.5 * tone + 0.65 * (k.value - 0.45))


def brick(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    high = c.uniform(15, 18)
    row = (c.y / high).floor()
    x = c.x / (high * 2.2) + 0.5 * (row % 2)
    column = x.floor()
    edge = torch.minimum(0.5 - (x % 1 - 0.5).abs(), (0.5 - (c.y / high % 1 - 0.5).abs()) / 2.2)
    mortar = 1 - smooth(edge, 0.03, 0.07)
    body = (c.hash(column, row) - 0.5) * 0.3 + c.noise(4) * 0.04
    return (0.12 + 0.55 * tone + body) * (1 - mortar) + mortar * (0.5 + 0.4 * tone)


def leopard(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(25, 30)
    k = c.cells((c.x + c.noise(24) * 4) / scale, (c.y + c.noise(24) * 4) / scale, 0.75)
    radius = k.first + c.noise(11) * 0.06
    spot = smooth(radius, 0.16, 0.22) * (1 - smooth(radius, 0.36, 0.42)) * smooth(c.noise(14), -1.4, -0.9)
    core = 1 - smooth(radius, 0.14, 0.22)
    return 0.32 + 0.55 * tone - 0.72 * spot * (0.6 + 0.4 * tone) - 0.15 * core + 0.03 * c.noise(3)


def circuit_board(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = 12.0
    x, y = c.x / step, c.y / step
    column, row = x.floor(), y.floor()
    fx, fy = x - column - 0.5, y - row - 0.5
    # a trace runs right from a cell if its draw says so, and down by another draw: connected paths
    right = c.hash(column, row)
    left = torch.roll(right, round(step), 2)
    down = c.hash(row, column + 7)
    up = torch.roll(down, round(step), 1)
    width = 0.13
    horizontal = ((right < 0.55) & (fx > -width)) | ((left < 0.55) & (fx < width))
    vertical = ((down < 0.45) & (fy > -width)) | ((up < 0.45) & (fy < width))
    trace = (horizontal & (fy.abs() < width)) | (vertical & (fx.abs() < width))
    distance = (fx * fx + fy * fy).sqrt()
    pad = (c.hash(column + 3, row + 5) < 0.22) & (distance < 0.38)
    hole = pad & (distance < 0.15)
    light = (trace | pad).float() * (1 - hole.float())
    return 0.12 + 0.3 * tone + light * (0.25 + 0.4 * tone)


def zebra(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    x, _ = rotate(c.x, c.y, c.uniform(-0.5, 0.5))
    phase = (x + c.fbm(90, 2) * 24) * 0.27 * c.uniform(0.85, 1.15)
    stripe = smooth(phase.sin() + 0.25 * c.noise(50), -0.25, 0.25)
    return (0.1 + 0.12 * tone) * (1 - stripe) + stripe * (0.5 + 0.5 * tone)


def scales(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = c.uniform(20, 25)
    value, shown = torch.zeros_like(c.u), torch.zeros_like(c.u)
    y0 = (c.y / (step * 0.5)).floor()
    for back in (1, 0, -1):  # rows lie over those above, so the lowest that covers a pixel wins
        row = y0 + back
        x = c.x / step + 0.5 * (row % 2)
        dx = x - x.floor() - 0.5
        dy = c.y / step - row * 0.5
        distance = (dx * dx + dy * dy).sqrt()
        inside = (distance < 0.56) & (dy > -0.05)
        shade = smooth(distance, 0.58, 0.46) * (0.35 + 0.9 * distance)
        value = torch.where(inside & (shown == 0), shade, value)
        shown = torch.where(inside, torch.ones_like(shown), shown)
    return _lit(value, tone, 0.75)


def honeycomb(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = c.uniform(22, 28)
    x, y = c.x / step, c.y / step
    root = 3**0.5
    ax, ay = x % 1 - 0.5, y % root - root / 2
    bx, by = (x - 0.5) % 1 - 0.5, (y - root / 2) % root - root / 2
    nearer = ax * ax + ay * ay < bx * bx + by * by
    gx, gy = torch.where(nearer, ax, bx).abs(), torch.where(nearer, ay, by).abs()
    edge = 0.5 - torch.maximum(gx, gx * 0.5 + gy * root / 2)
    wall = 1 - smooth(edge, 0.05, 0.1)
    return (0.1 + 0.5 * tone + 0.5 * (0.42 - edge)) * (1 - wall) + wall * (0.6 + 0.4 * tone)


def grass(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    lean = c.noise(80) * 6
    blade = c.noise(3.2, 22)
    second = torch.roll(c.noise(2.6, 16), 5, 1)
    clump = c.noise(28) * 0.08
    return _lit(0.42 + 0.2 * blade + 0.14 * second + clump + 0.01 * lean, tone, 0.75)


def sand_dunes(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    _, y = rotate(c.x, c.y, c.uniform(0.5, 0.9))
    ripple = (y + c.fbm(70, 2) * 11) / c.uniform(11, 14)
    saw = ripple % 1
    ridge = smooth(saw, 0.0, 0.75) * (1 - smooth(saw, 0.85, 1.0))
    return _lit(ridge * 0.85 + 0.03 * c.noise(2), tone, 0.5)


def bubbles(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(34, 42)
    k = c.cells(c.x / scale, c.y / scale, 0.55)
    radius = 0.26 + 0.2 * k.value
    distance = k.first / radius
    rim = smooth(distance, 0.72, 0.95) * (1 - smooth(distance, 0.97, 1.05))
    glint = (-((k.dx / radius - 0.35) ** 2 + (k.dy / radius - 0.35) ** 2) / 0.03).exp()
    inside = (distance < 1).float()
    return 0.15 + 0.4 * tone + inside * 0.1 + rim * 0.45 + glint * inside * 0.55


def basket_weave(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = c.uniform(20, 25)
    x, y = c.x / step, c.y / step
    over = (x.floor() + y.floor()) % 2
    fx, fy = x % 1 - 0.5, y % 1 - 0.5
    across, along = torch.where(over > 0, fy, fx), torch.where(over > 0, fx, fy)
    strand = (across * 3 * 3.1416 * 2).cos() * 0.5 + 0.5
    bend = (along * 3.1416).cos().clamp(0, 1)
    return _lit(strand * 0.45 + bend * 0.6 - 0.1, tone, 0.7)


def crystal(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    scale = c.uniform(38, 48)
    x, y = c.x / scale, c.y / scale * 1.1547
    x = x - y * 0.5
    upper = ((x % 1) + (y % 1) > 1).float()
    shade = c.hash(x.floor() * 2 + upper, y.floor())
    slope = ((x % 1) - (y % 1)) * (0.5 - upper) * 0.4
    return 0.1 + 0.5 * tone + 0.75 * (shade - 0.42) + slope * 0.5


def rain(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    wide = 5.5
    column = ((c.x + c.y * 0.18) / wide).floor()
    length = 34.0
    shift = c.hash(column, torch.zeros_like(column)) * 200
    row = ((c.y + shift) / length).floor()
    along = (c.y + shift) / length % 1
    shown = (c.hash(column, row) < 0.5).float()
    body = (1 - ((c.x + c.y * 0.18) / wide % 1 - 0.5).abs() * 2.2).clamp(0, 1)
    return _glowing(body * shown * smooth(along, 0.0, 0.9) * smooth(along, 1.0, 0.93) * 1.1, tone, 0.4)


def mosaic(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = c.uniform(12, 15)
    x, y = c.x / step, c.y / step
    shade = c.hash(x.floor(), y.floor())
    edge = torch.minimum(0.5 - (x % 1 - 0.5).abs(), 0.5 - (y % 1 - 0.5).abs())
    return smooth(edge, 0.02, 0.1) * (0.15 + 0.6 * tone + 0.55 * (shade - 0.45))


def lightning(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    bolt = (1 - (c.noise(60, 100) + c.fbm(22, 3) * 0.3).abs() * 5).clamp(0, 1)
    halo = (1 - (c.noise(60, 100)).abs() * 1.5).clamp(0, 1) ** 3
    return 0.04 + 0.32 * tone + bolt**2 * (0.55 + 0.4 * tone) + halo * 0.12


def halftone(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    step = 12.0
    x, y = rotate(c.x, c.y, torch.full_like(c.uniform(0, 1), 0.785))
    fx, fy = x / step % 1 - 0.5, y / step % 1 - 0.5
    distance = (fx * fx + fy * fy).sqrt()
    radius = 0.12 + 0.5 * (1 - tone)
    return 0.95 - 0.85 * torch.sigmoid((radius - distance) * 22)


def contour_map(c: Canvas, tone: torch.Tensor) -> torch.Tensor:
    height = c.fbm(70, 2, gain=0.35) * 2.6 + tone * 3
    fraction = (height * 1.3) % 1
    slope = 0.11
    line = 1 - smooth((fraction - 0.5).abs(), slope * 0.5, slope)
    return 0.25 + 0.6 * tone + 0.03 * c.noise(50) - 0.7 * line * (0.5 + 0.5 * tone)


MATERIAL_DRAWINGS: dict[str, Material] = {
    "fire": fire,
    "ocean": ocean,
    "clouds": clouds,
    "marble": marble,
    "wood": wood,
    "lava": lava,
    "ice": ice,
    "neon grid": neon_grid,
    "galaxy": galaxy,
    "stained glass": stained_glass,
    "brick": brick,
    "leopard": leopard,
    "circuit board": circuit_board,
    "zebra": zebra,
    "scales": scales,
    "honeycomb": honeycomb,
    "grass": grass,
    "sand dunes": sand_dunes,
    "bubbles": bubbles,
    "basket weave": basket_weave,
    "crystal": crystal,
    "rain": rain,
    "mosaic": mosaic,
    "lightning": lightning,
    "halftone": halftone,
    "contour map": contour_map,
}
