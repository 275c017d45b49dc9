"""A drawing with a thick pen: soft edges, thinned, cut at a threshold and widened again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings, as_rgb, gaussian_blur, grey, sobel
from sdbridge.engine.preprocess.canny import grow, thin


class Scribble:
    """White strokes three pixels wide on black. Thresholds as for canny, on a stronger blur."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        plane = gaussian_blur(grey(image).float(), 1.5 + 3.0 * (1.0 - settings.detail))
        across, down = sobel(plane)
        height = torch.sqrt(across**2 + down**2)
        ridge = thin(height, across, down)
        low = min(settings.low, settings.high)
        high = max(settings.low, settings.high)
        strokes = grow(ridge & (height > high), ridge & (height > low))
        return as_rgb(nn.max_pool2d(strokes, 3, stride=1, padding=1).to(image.dtype))
