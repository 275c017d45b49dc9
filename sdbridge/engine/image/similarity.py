"""Whether a frame is so like the last processed one that its picture may be reused.

Section 2.5, the stochastic similarity filter: with likeness c and threshold eta, a frame is skipped with
probability P = max(0, (c - eta) / (1 - eta)). Decided on the host copy of the frame, so that the device
is never waited for, and without sleeping.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["cosine", "pixel"]
#: Zero and one of the encoder's range -1..1, in bytes.
_GREY, _HALF_RANGE = np.float32(127.5), 127.5


@dataclass(frozen=True)
class SimilaritySettings:
    enabled: bool = False
    kind: Kind = "cosine"
    threshold: float = 0.98
    max_skip: int = 10


@dataclass(frozen=True)
class Look:
    """A picture as it is compared: RGB about its middle grey as one float32 vector, and its square.

    Alpha stands in the vector as 0: leaving it out would cost a slow walk over every fourth byte.
    """

    vector: np.ndarray
    square: float
    shape: tuple[int, ...]


def look(pixels: np.ndarray, vector: np.ndarray | None = None) -> Look:
    """Look at uint8 ``[H, W, 4]``; ``vector`` float32 ``[H * W * 4]`` is written into where it is given."""
    flat = pixels.reshape(-1)
    vector = np.empty(flat.size, np.float32) if vector is None else vector
    np.subtract(flat, _GREY, out=vector, dtype=np.float32)
    vector[3::4] = 0.0
    return Look(vector, float(vector @ vector), pixels.shape)


class SimilarityFilter:
    """Remembers the last processed frame; every other frame is measured against it.

    Vectors are used again: at 1024x1024 a new one for each frame costs more than the comparison.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._reference: list[Look] = []
        self._spare: list[np.ndarray] = []
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
        now = [look(picture, self._vector(picture.size)) for picture in (pixels, *others)]
        before = self._reference
        skip = (
            [each.shape for each in before] == [each.shape for each in now]
            and self._skipped_in_a_row < settings.max_skip
            and self._random.random()
            <= min(skip_probability(*pair, settings) for pair in zip(before, now, strict=True))
        )
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skip else 0
        self._spare = [each.vector for each in (now if skip else before)]
        if not skip:
            self._reference = now
        return skip

    def _vector(self, size: int) -> np.ndarray | None:
        """One that no remembered picture stands in."""
        found = next((index for index, vector in enumerate(self._spare) if vector.size == size), None)
        return None if found is None else self._spare.pop(found)

    def forget(self) -> None:
        """The next frame is processed whatever it shows."""
        self._reference, self._spare = [], []
        self._skipped_in_a_row = 0

    def reset(self) -> None:
        """As new: also the dice start from the beginning."""
        self.forget()
        self._random = random.Random(self._seed)


def skip_probability(reference: Look, current: Look, settings: SimilaritySettings) -> float:
    """P for two pictures of one shape. ``pixel`` takes 1 - mean squared difference for the likeness."""
    if settings.kind == "cosine":
        norms = math.sqrt(reference.square * current.square)  # of one picture twice: its square, exactly
        likeness = (
            float(reference.vector @ current.vector) / norms
            if norms > 0
            else float(np.array_equal(reference.vector, current.vector))
        )
    else:
        difference = reference.vector - current.vector
        values = difference.size * 3 // 4  # without alpha
        likeness = 1.0 - float(difference @ difference) / (values * _HALF_RANGE**2)
    return min(1.0, max(0.0, (likeness - settings.threshold) / (1.0 - settings.threshold)))
