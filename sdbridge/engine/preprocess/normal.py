"""Surface directions computed from depth: red right, green up, blue towards the viewer."""

from __future__ import annotations

import torch
from torch import Tensor

from sdbridge.engine.preprocess.base import Settings, gaussian_blur, sobel
from sdbridge.engine.preprocess.depth import Depth


class Normal:
    """Normals of a Depth preprocessor's picture. ``low`` sinks what is farther into a flat ground."""

    def __init__(self, depth: Depth) -> None:
        self.depth = depth

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        near = self.depth.nearness(image, settings.detail)
        return normals(near, background=settings.low).to(image.dtype)


def normals(near: Tensor, background: float = 0.0) -> Tensor:
    """``[F, 1, H, W]`` nearness 0..1 -> ``[F, 3, H, W]`` unit normals, mapped from -1..1 to 0..1."""
    across, down = sobel(gaussian_blur(near.float(), 1.0))
    # Depth is a share of the scene, the picture is in pixels: scaled to a cube as wide as the picture.
    scale = near.shape[-1] / 8.0
    kept = (near > background).to(across.dtype)
    slope_x, slope_y = -across * scale * kept, down * scale * kept
    length = torch.sqrt(slope_x**2 + slope_y**2 + 1.0)
    direction = torch.cat((slope_x, slope_y, torch.ones_like(slope_x)), dim=1) / length
    return direction * 0.5 + 0.5
