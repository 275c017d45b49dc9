"""What goes into the stream and what comes out of it: frames' latents, and who they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class FrameTag:
    """Who a frame is; ``luggage`` has one entry per extension."""

    frame_id: int
    received_at_ns: int
    luggage: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Entering:
    """F frames for row 0.

    latent   ``[F, 4, h, w]`` what is noised: the clean latent, perhaps with feedback in it
    source   ``[F, 4, h, w]`` the clean latent of the input itself (zeros in txt2img)

    Both may be written over as soon as the next frames enter, and be of a narrower dtype than the stream.

    fills    empty rows may be filled from it (img2img); txt2img lets the pipe fill instead
    """

    latent: Tensor
    source: Tensor
    tags: tuple[FrameTag, ...]
    fills: bool = True


@dataclass(frozen=True)
class Leaving:
    """F finished frames: their clean latent ``[F, 4, h, w]``, which stands until the next but one ``run``
    writes its own there, and who they are.
    """

    latent: Tensor
    tags: tuple[FrameTag, ...]
