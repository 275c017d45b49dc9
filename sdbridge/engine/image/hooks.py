"""What is done to pictures before encoding and after decoding: a short chain of live image hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.image.seams import RoleImages, StreamExtension
from sdbridge.engine.interface import ResetKind
from sdbridge.engine.preprocess.base import gaussian_blur
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

SHARPEN_SIGMA = 1.5


@dataclass
class FinishedPicture:
    """The last picture that went out, before upscaling: ``[F, 3, H, W]``, for feedback where it is wanted."""

    image: Tensor | None = None
    wanted: bool = False


@dataclass(frozen=True)
class Colours:
    """Mean and deviation of each channel of a frame's input, ``[3, 1, 1]`` each."""

    mean: Tensor
    deviation: Tensor


class ImageHooks(StreamExtension):
    """Before encoding: feedback, blur, sharpen. After decoding: colour match, blur, sharpen.

    A hook at 0 is not run at all.
    """

    name = "hooks"
    parameters = ("pre.", "post.")

    def __init__(self, finished: FinishedPicture) -> None:
        self._finished = finished
        self._amounts: dict[str, float] = {}

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        for name, value in changes.items():
            if name != "post.upscale":
                self._amounts[name] = float(value)
        self._finished.wanted = self._amount("pre.feedback") > 0
        return ()

    @property
    def edits_input(self) -> bool:
        return any(self._amount(name) > 0 for name in ("pre.feedback", "pre.blur", "pre.sharpen"))

    def edits_output(self, luggage: Sequence[Any]) -> bool:
        return any(luggage) or any(self._amount(name) > 0 for name in ("post.blur", "post.sharpen"))

    def _amount(self, name: str) -> float:
        return self._amounts.get(name, 0.0)

    def before_encode(self, image: Tensor, roles: RoleImages) -> Tensor:
        feedback, last = self._amount("pre.feedback"), self._finished.image
        if feedback > 0 and last is not None and last.shape[-2:] == image.shape[-2:]:
            image = torch.lerp(image, last[-1:].to(image.dtype).expand_as(image), feedback)
        image = gaussian_blur(image, self._amount("pre.blur"))
        return sharpen(image, self._amount("pre.sharpen"))

    def enter(self, roles: RoleImages, latent: Tensor) -> Sequence[Colours | None]:
        frames = int(latent.shape[0])
        if self._amount("post.color_match") <= 0 or "main" not in roles:
            return (None,) * frames
        return tuple(colours(one) for one in roles["main"][:, :3])

    def after_decode(self, image: Tensor, luggage: Sequence[Any]) -> Tensor:
        amount = self._amount("post.color_match")
        if amount > 0 and any(luggage):
            pairs = zip(image, luggage, strict=True)
            image = torch.stack([match(one, wanted, amount) if wanted else one for one, wanted in pairs])
        image = gaussian_blur(image, self._amount("post.blur"))
        return sharpen(image, self._amount("post.sharpen"))

    def practise(self, picture: Tensor, rows: int) -> None:
        image = picture[:, :3]
        image = torch.lerp(image, image[-1:].expand_as(image), 0.5)
        sharpen(gaussian_blur(image, 1.0), 0.5)
        torch.stack([match(image[0], colours(image[0]), 0.5)])

    def reset(self, how: ResetKind) -> None:
        self._finished.image = None

    def unload(self) -> None:
        self._finished.image = None


class Upscale(StreamExtension):
    """The end of the chain: keeps the finished picture for feedback, then doubles its size if asked."""

    name = "upscale"
    parameters = ("post.upscale",)

    def __init__(self, finished: FinishedPicture) -> None:
        self._finished = finished
        self._twice = False

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        self._twice = changes.get("post.upscale", "2x" if self._twice else "off") == "2x"
        return ()

    def edits_output(self, luggage: Sequence[Any]) -> bool:
        return self._twice or self._finished.wanted

    def after_decode(self, image: Tensor, luggage: Sequence[Any]) -> Tensor:
        # Kept in range: what is fed back must not grow from frame to frame.
        self._finished.image = image[:, :3].clamp(0, 1)
        return upscale(image) if self._twice else image

    def practise(self, picture: Tensor, rows: int) -> None:
        upscale(picture[:, :3].clamp(0, 1))


def sharpen(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask: the picture plus ``amount`` times what a blur takes away."""
    if amount <= 0:
        return image
    return (image + amount * (image - gaussian_blur(image, SHARPEN_SIGMA))).clamp(0, 1)


def colours(image: Tensor) -> Colours:
    """Mean and deviation of ``[3, H, W]`` by channel."""
    deviation, mean = torch.std_mean(image.float(), dim=(-2, -1), keepdim=True, correction=0)
    return Colours(mean, deviation)


def match(image: Tensor, wanted: Colours, amount: float) -> Tensor:
    """Pull the channels' mean and deviation towards ``wanted`` (Reinhard et al., 2001, in RGB)."""
    have = colours(image)
    # A flat picture has no contrast to stretch: at most fourfold, so that its noise stays noise.
    factor = (wanted.deviation / have.deviation.clamp_min(1e-4)).clamp_max(4.0)
    matched = ((image - have.mean) * factor + wanted.mean).clamp(0, 1)
    return torch.lerp(image.float(), matched.float(), amount).to(image.dtype)


def upscale(image: Tensor) -> Tensor:
    """``[F, C, H, W]`` -> twice the size, bicubic, with the softness that costs taken back a little."""
    return sharpen(nn.interpolate(image, scale_factor=2.0, mode="bicubic").clamp(0, 1), 0.3)
