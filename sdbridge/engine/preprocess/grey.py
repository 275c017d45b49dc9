"""The picture without colour."""

from __future__ import annotations

from torch import Tensor

from sdbridge.engine.preprocess.base import Settings, as_rgb, grey


class Grey:
    """Luma in all three channels."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return as_rgb(grey(image))
