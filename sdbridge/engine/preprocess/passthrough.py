"""The picture itself as control image: for maps that another program already made."""

from __future__ import annotations

from torch import Tensor

from sdbridge.engine.preprocess.base import Settings


class Passthrough:
    """Gives the picture as it is."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return image
