"""What every preprocessor takes and gives, and the small image maths they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as nn


@dataclass(frozen=True)
class Settings:
    """The live values of one ControlNet slot that preprocessors read, each 0..1."""

    low: float = 0.1
    high: float = 0.3
    detail: float = 0.5


class Preprocessor(Protocol):
    """image ``[F, 3, H, W]`` float 0..1 on the device -> control image, same shape and range.

    Never synchronises with the host, keeps nothing of the image, and may be shared by several slots.
    """

    def __call__(self, image: Tensor, settings: Settings) -> Tensor: ...


def grey(image: Tensor) -> Tensor:
    """``[F, 3, H, W]`` -> ``[F, 1, H, W]`` luma, with the weights of Rec. 601 as OpenCV uses them."""
    red, green, blue = image.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def as_rgb(plane: Tensor) -> Tensor:
    """``[F, 1, H, W]`` -> ``[F, 3, H, W]``, the same plane thrice."""
    return plane.expand(-1, 3, -1, -1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every channel with edges repeated; a sigma of 0 gives the image itself."""
    if sigma <= 0:
        return image
    return blur(image, gaussian_taps(sigma, image.device, image.dtype))


def gaussian_taps(sigma: float, device: torch.device, dtype: torch.dtype, radius: int = 0) -> Tensor:
    """The weights of a Gaussian of ``sigma``, one direction of it; an odd number of them.

    With a ``radius`` there are 2 radius + 1 of them at any ``sigma``, also at 0, which changes nothing: zeros
    stand at the ends. Made on the host: kernels that run for the first time would stop a frame.
    """
    own = max(1, math.ceil(3 * sigma)) if sigma > 0 else 0
    steps = torch.arange(-own, own + 1, dtype=dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2) if sigma > 0 else torch.ones(1, dtype=dtype)
    spare = max(0, radius - own)
    host = nn.pad(kernel / kernel.sum(), (spare, spare))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def blur(image: Tensor, taps: Tensor) -> Tensor:
    """Every channel weighted with ``taps`` across and down, edges repeated."""
    channels, radius = image.shape[1], taps.numel() // 2
    across = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    wide = nn.pad(image, (radius, radius, 0, 0), mode="replicate")
    wide = nn.conv2d(wide, across, groups=channels)
    tall = nn.pad(wide, (0, 0, radius, radius), mode="replicate")
    return nn.conv2d(tall, down, groups=channels)


def sobel(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical 3x3 Sobel derivatives of ``[F, 1, H, W]``, edges repeated.

    Built from shifted copies, so that whole-number input gives whole-number output exactly.
    """
    padded = nn.pad(plane, (1, 1, 1, 1), mode="replicate")
    left, middle, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    smooth_down = _smooth_rows(right - left)
    smooth_across = left + 2 * middle + right
    return smooth_down, smooth_across[..., 2:, :] - smooth_across[..., :-2, :]


def _smooth_rows(columns: Tensor) -> Tensor:
    return columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]


def stretch(plane: Tensor) -> Tensor:
    """Spread each image of ``[F, 1, H, W]`` over 0..1; a flat image becomes 0."""
    low = plane.amin(dim=(1, 2, 3), keepdim=True)
    high = plane.amax(dim=(1, 2, 3), keepdim=True)
    rounding = torch.maximum(high.abs(), low.abs()) * 1e-5 + 1e-20  # what is flat but for rounding stays flat
    return (plane - low) / torch.maximum(high - low, rounding)
