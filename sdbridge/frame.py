"""What travels: one picture with its id and times, and a chunk of pictures by role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np

from sdbridge.errors import SdbridgeError

Role = Literal["main", "control", "mask", "style", "generated"]
InputRole = Literal["main", "control", "mask", "style"]
OutputRole = Literal["generated", "control"]
INPUT_ROLES: tuple[Role, ...] = ("main", "control", "mask", "style")
OUTPUT_ROLES: tuple[Role, ...] = ("generated", "control")


class Loan(Protocol):
    """Leave to look at pixels where their owner keeps them, in a slot that is written again later."""

    def whole(self) -> bool:
        """Whether the pixels are still those that were lent. Ask after reading them, not before."""
        ...

    def copy(self) -> np.ndarray | None:
        """Pixels to keep, copied once for all who ask; None if they had changed by then."""
        ...


@dataclass(frozen=True)
class Frame:
    """One image: uint8 ``[H, W, 4]`` RGBA, top row first, C-contiguous, straight alpha.

    ``frame_id`` counts up per source. ``received_at_ns`` is ``time.monotonic_ns()`` when the bridge
    got the picture; an output frame carries the time of the input it was made from, so that
    now minus it is the latency. ``revision`` is the newest parameter revision that shaped it.

    With a ``loan`` the pixels lie in shared memory that is written again some frames later. Whoever
    copies or encodes them asks ``loan.whole()`` afterwards and throws its work away if it says no;
    whoever keeps them, or does not know of loans, takes ``own()``. Without one they never change.
    """

    pixels: np.ndarray
    frame_id: int
    received_at_ns: int
    revision: int = 0
    loan: Loan | None = None

    def own(self) -> Frame | None:
        """This frame with pixels that never change; None if they were lent and have changed already."""
        if self.loan is None:
            return self
        pixels = self.loan.copy()
        return None if pixels is None else replace(self, pixels=pixels, loan=None)

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class Chunk:
    """What one engine tick takes or gives: a frame per role, ``chunk_in`` entries for video engines.

    ``about`` carries small facts a sender may pass on (for NDI metadata), never pixels.
    """

    frames: tuple[Mapping[Role, Frame], ...]
    about: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(main: Frame, **others: Frame) -> Chunk:
        """A chunk of one entry: ``Chunk.of(frame, control=other)``."""
        entry: dict[Role, Frame] = {"main": main}
        entry.update(others)  # type: ignore[arg-type]  # keywords are role names
        return Chunk((MappingProxyType(entry),))

    @property
    def main(self) -> Frame:
        """The main frame of the newest entry."""
        return self.frames[-1]["main"]


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return ``pixels`` as the contract wants them, or raise SDB-FRAME-FORMAT with what they are."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4 or 0 in pixels.shape:
        raise SdbridgeError(
            "SDB-FRAME-FORMAT",
            f"a frame must be uint8 [height, width, 4] RGBA, this one is {pixels.dtype} {pixels.shape}",
        )
    return np.ascontiguousarray(pixels)
