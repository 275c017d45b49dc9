"""A line drawing without a network: what is darker than its surroundings, as light lines on black."""

from __future__ import annotations

from torch import Tensor

from sdbridge.engine.preprocess.base import Settings, as_rgb, gaussian_blur


class Lineart:
    """Blur minus picture, the strongest of the channels, brought to an even strength.

    ``detail`` 0.5 blurs by 6 pixels, which suits pictures 512 pixels wide; ``low`` cuts faint lines.
    """

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        sigma = max(1.0, 12.0 * (1.0 - settings.detail))
        lines = (gaussian_blur(image, sigma) - image).amax(dim=1, keepdim=True).clamp_min(0)
        # Evened by the strong lines' own height, so that a faint pencil and a marker come out alike.
        strong = (lines > 0.03).to(lines.dtype)
        count = strong.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
        typical = (lines * strong).sum(dim=(1, 2, 3), keepdim=True) / count
        even = (lines / typical.clamp_min(0.06) * 0.7).clamp(0, 1)
        return as_rgb(even * (even > settings.low).to(even.dtype))
