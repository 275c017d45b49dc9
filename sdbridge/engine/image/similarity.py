"""Whether a frame is so like the last processed one that its picture may be reused.

Section 2.5, the stochastic similarity filter: with likeness c and threshold eta, a frame is skipped with
probability P = max(0, (c - eta) / (1 - eta)). Decided on the host copy of the frame, so that the device
is never waited for, and without sleeping.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["cosine", "pixel"]


@dataclass(frozen=True)
class SimilaritySettings:
    enabled: bool = False
    kind: Kind = "cosine"
    threshold: float = 0.98
    max_skip: int = 10


class SimilarityFilter:
    """Remembers the last processed frame; every other frame is measured against it."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._reference: list[np.ndarray] = []
        self._skipped_in_a_row = 0

    def skip(
        self, pixels: np.ndarray, settings: SimilaritySettings, others: Sequence[np.ndarray] = ()
    ) -> bool:
        """True if this frame (uint8 ``[H, W, 4]``) may be skipped. Never more than ``max_skip`` in a row.

        ``others`` are the further inputs (control, mask, style): the picture depends on them too, so the
        least alike of all decides.
        """
        if not settings.enabled or settings.threshold >= 1.0:
            self.forget()
            return False
        centred = [_centred(picture) for picture in (pixels, *others)]
        before = self._reference
        if (
            [picture.shape for picture in before] == [picture.shape for picture in centred]
            and self._skipped_in_a_row < settings.max_skip
            and self._random.random()
            <= min(skip_probability(*pair, settings) for pair in zip(before, centred, strict=True))
        ):
            self._skipped_in_a_row += 1
            return True
        self._reference = centred
        self._skipped_in_a_row = 0
        return False

    def forget(self) -> None:
        """The next frame is processed whatever it shows."""
        self._reference = []
        self._skipped_in_a_row = 0

    def reset(self) -> None:
        """As new: also the dice start from the beginning."""
        self.forget()
        self._random = random.Random(self._seed)


def skip_probability(reference: np.ndarray, current: np.ndarray, settings: SimilaritySettings) -> float:
    """P for two centred pictures. ``pixel`` takes 1 - mean squared difference for the likeness."""
    if settings.kind == "cosine":
        norms = float(np.linalg.norm(reference)) * float(np.linalg.norm(current))
        likeness = (
            float(reference @ current) / norms if norms > 0 else float(np.array_equal(reference, current))
        )
    else:
        difference = reference - current
        likeness = 1.0 - float(difference @ difference) / difference.size
    return min(1.0, max(0.0, (likeness - settings.threshold) / (1.0 - settings.threshold)))


def _centred(pixels: np.ndarray) -> np.ndarray:
    """RGB as one float32 vector in -1..1, as the encoder sees it."""
    flat = pixels[..., :3].astype(np.float32).reshape(-1)
    flat *= 2.0 / 255.0
    flat -= 1.0
    return flat
