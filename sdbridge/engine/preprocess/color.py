"""The picture's palette as a grid of flat cells, for colour ControlNets and T2I-Adapters."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings


class ColorGrid:
    """Mean colour of each cell. ``detail`` 0, 0.5, 1 puts 2, 8, 32 cells along the shorter side.

    Eight cells are the 64-pixel grid at 512 pixels on which the colour adapter was trained.
    """

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        height, width = image.shape[-2:]
        along = round(2.0 ** (1.0 + 4.0 * settings.detail))
        side = max(1.0, min(height, width) / along)
        cells = (max(1, round(height / side)), max(1, round(width / side)))
        return nn.interpolate(nn.adaptive_avg_pool2d(image, cells), (height, width), mode="nearest")
