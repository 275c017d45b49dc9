"""Paints what the hold policy decided: the generated picture, black, or a blend of it and the fallback."""

from __future__ import annotations

import numpy as np

from sdbridge.frame import Loan
from sdbridge.hold import OutputState, Shown


class Compositor:
    """Makes one output picture. The arrays it gives are never written again, but for the one it was lent."""

    def __init__(self) -> None:
        self._black: np.ndarray | None = None
        self._frozen: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self._last_loan: Loan | None = None

    def paint(
        self,
        shown: Shown,
        generated: np.ndarray | None,
        fallback: np.ndarray | None,
        width: int,
        height: int,
        loan: Loan | None = None,
    ) -> np.ndarray:
        """The picture for ``shown``. ``width`` and ``height`` count while nothing was generated yet.

        A ``fallback`` of None is black. ``generated`` and ``fallback`` must have the same size if
        both are given. ``loan`` says that ``generated`` is lent, and good at this moment.
        """
        if shown.state is not OutputState.FROZEN:
            self._frozen = None
        elif self._frozen is None:
            self._frozen = self._kept(generated, loan)
        if self._frozen is not None:
            return self._frozen
        if generated is not None:
            height, width = generated.shape[:2]
        if shown.state is OutputState.BLACK:
            picture = self.black(width, height)
        else:
            base = generated if generated is not None else self.black(width, height)
            other = fallback if fallback is not None else self.black(width, height)
            picture = blend(base, other, shown.fallback)
        self._last = picture
        self._last_loan = loan if picture is generated else None
        return picture

    def _kept(self, generated: np.ndarray | None, loan: Loan | None) -> np.ndarray | None:
        """The last picture, to keep. Where that was lent and is gone: the one after it."""
        if self._last is None or self._last_loan is None:
            return self._last
        kept = self._last_loan.copy()
        if kept is None and loan is not None:
            kept = loan.copy()
        return generated if kept is None else kept

    def black(self, width: int, height: int) -> np.ndarray:
        """Opaque black, kept while the size stays."""
        if self._black is None or self._black.shape[:2] != (height, width):
            self._black = np.zeros((height, width, 4), np.uint8)
            self._black[..., 3] = 255
        return self._black


def blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """``a`` with ``share`` (0 to 1) of ``b``; the very array at either end, so that rest costs nothing."""
    weight = round(share * 256)
    if weight <= 0:
        return a
    if weight >= 256:
        return b
    # uint16 holds 255 * 256, and the two products add up to no more than that.
    mixed = np.multiply(a, np.uint16(256 - weight), dtype=np.uint16)
    mixed += np.multiply(b, np.uint16(weight), dtype=np.uint16)
    mixed += 128
    mixed >>= 8
    return mixed.astype(np.uint8)
