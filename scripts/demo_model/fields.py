"""Random fields that every drawing is made of: noise, cells, coordinates; batched torch, any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

TABLE = 32  # side of the random table that jitters cells; patterns repeat after TABLE cells


@dataclass(frozen=True)
class Cells:
    """Distances to the two nearest points of a jittered grid; the nearest's value and offset."""

    first: torch.Tensor
    second: torch.Tensor
    value: torch.Tensor
    dx: torch.Tensor
    dy: torch.Tensor


class Canvas:
    """A batch of n pictures of one size and the random numbers they are drawn with."""

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, size, generator
        self.device = generator.device
        axis = torch.arange(size, device=self.device, dtype=torch.float32)
        offset_x, offset_y = self.uniform(0, 512), self.uniform(0, 512)
        self.x = (axis[None, None, :] + offset_x).expand(n, size, size)
        self.y = (axis[None, :, None] + offset_y).expand(n, size, size)
        # 0..1 over the picture, for compositions
        self.u = (axis / (size - 1))[None, None, :].expand(n, size, size)
        self.v = (axis / (size - 1))[None, :, None].expand(n, size, size)

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """One number for each picture, [n, 1, 1]."""
        return torch.rand(self.n, 1, 1, generator=self.generator, device=self.device) * (high - low) + low

    def integer(self, low: int, high: int) -> torch.Tensor:
        """One whole number for each picture, low <= i < high, [n, 1, 1]."""
        return torch.randint(low, high, (self.n, 1, 1), generator=self.generator, device=self.device)

    def noise(self, cell: float, cell_y: float | None = None) -> torch.Tensor:
        """Smooth noise with features of about `cell` pixels, mean 0, deviation about 1."""
        across = max(2, round(self.size / cell)) + 3
        down = max(2, round(self.size / (cell_y or cell))) + 3
        grid = torch.randn(self.n, 1, down, across, generator=self.generator, device=self.device)
        high = round(self.size * down / (down - 3))
        wide = round(self.size * across / (across - 3))
        field = F.interpolate(grid, size=(high, wide), mode="bicubic", align_corners=False)[:, 0]
        top, left = (high - self.size) // 2, (wide - self.size) // 2
        return field[:, top : top + self.size, left : left + self.size] * 1.25

    def fbm(self, cell: float, octaves: int = 4, gain: float = 0.5, stretch: float = 1.0) -> torch.Tensor:
        """Fractal noise, deviation about 1; `stretch` > 1 makes features taller than wide."""
        total, norm, weight = torch.zeros_like(self.u), 0.0, 1.0
        for _ in range(octaves):
            if cell < 1.6:
                break
            total = total + weight * self.noise(cell, cell * stretch)
            norm, weight, cell = norm + weight * weight, weight * gain, cell / 2
        return total / norm**0.5

    def ridges(self, cell: float, octaves: int = 3, stretch: float = 1.0) -> torch.Tensor:
        """Thin bright lines where smooth noise crosses zero, 0..1."""
        total, weight, norm = torch.zeros_like(self.u), 1.0, 0.0
        for _ in range(octaves):
            total = total + weight * (1 - self.noise(cell, cell * stretch).abs()).clamp(0, 1) ** 2
            norm, weight, cell = norm + weight, weight * 0.5, cell / 2
        return total / norm

    def cells(self, x: torch.Tensor, y: torch.Tensor, jitter: float = 0.9) -> Cells:
        """Cellular pattern of unit-spaced points at coordinates (x, y)."""
        table = torch.rand(self.n, 3, TABLE * TABLE, generator=self.generator, device=self.device)
        base_x, base_y = x.floor(), y.floor()
        first = torch.full_like(x, 9.0)
        second, value = first.clone(), torch.zeros_like(x)
        near_x, near_y = torch.zeros_like(x), torch.zeros_like(x)
        for step_y in (-1, 0, 1):
            for step_x in (-1, 0, 1):
                column, row = base_x + step_x, base_y + step_y
                index = ((row % TABLE) * TABLE + column % TABLE).long().flatten(1)
                pick = table.gather(2, index[:, None].expand(-1, 3, -1)).view(self.n, 3, *x.shape[1:])
                dx = column + 0.5 + (pick[:, 0] - 0.5) * jitter - x
                dy = row + 0.5 + (pick[:, 1] - 0.5) * jitter - y
                distance = (dx * dx + dy * dy).sqrt()
                closer = distance < first
                second = torch.where(closer, first, torch.minimum(second, distance))
                first = torch.where(closer, distance, first)
                value = torch.where(closer, pick[:, 2], value)
                near_x, near_y = torch.where(closer, dx, near_x), torch.where(closer, dy, near_y)
        return Cells(first, second, value, near_x, near_y)

    def hash(self, column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """A random value 0..1 for each whole-numbered cell, the same for equal cells."""
        table = torch.rand(self.n, TABLE * TABLE, generator=self.generator, device=self.device)
        index = ((row % TABLE) * TABLE + column % TABLE).long().flatten(1)
        return table.gather(1, index).view_as(column)


def smooth(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 below `low`, 1 above `high` (or the other way round), smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def rotate(x: torch.Tensor, y: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    c, s = angle.cos(), angle.sin()
    return x * c + y * s, y * c - x * s
