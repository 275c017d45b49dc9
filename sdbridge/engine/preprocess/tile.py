"""A coarse copy of the picture for tile ControlNets, which add the detail back."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings

COARSEST = 8


class Tile:
    """``detail`` 1 is the picture itself; 0 has only one pixel where there were eight by eight."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        factor = 1 + round((1.0 - settings.detail) * (COARSEST - 1))
        if factor == 1:
            return image
        height, width = image.shape[-2:]
        small = nn.interpolate(image, (max(1, height // factor), max(1, width // factor)), mode="area")
        return nn.interpolate(small, (height, width), mode="bilinear").clamp(0, 1)
