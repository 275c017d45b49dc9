"""The negative of the picture: dark lines on paper become the light lines that networks expect."""

from __future__ import annotations

from torch import Tensor

from sdbridge.engine.preprocess.base import Settings


class Invert:
    """One minus the picture."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return 1.0 - image
