"""Soft edges: the HED network where its weights are, else a blend of gradients at three scales.

S. Xie, Z. Tu, "Holistically-nested edge detection" (2015): a VGG-16 trunk whose five stages each give
an edge map. The module's names are those of the ControlNet authors' weights (ControlNetHED).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import Conv2d, Module, ModuleList, Parameter
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings, as_rgb, gaussian_blur, grey, sobel

#: (input channels, output channels, convolutions) of the five stages of VGG-16.
STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))


class SoftGradient:
    """Edges without a network. ``detail`` weighs fine scales against coarse ones."""

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return as_rgb(soft_gradient(image, settings.detail))


def soft_gradient(image: Tensor, detail: float) -> Tensor:
    """``[F, 1, H, W]`` edge height in 0..1, blended from blurs of 1, 2 and 4 pixels."""
    plane = grey(image)
    fine = 0.2 + 0.6 * detail
    weights = (fine, 0.5, 1.0 - fine)
    total = torch.zeros_like(plane)
    for sigma, weight in zip((1.0, 2.0, 4.0), weights, strict=True):
        across, down = sobel(gaussian_blur(plane, sigma))
        total = total + weight * sigma * torch.sqrt(across**2 + down**2 + 1e-12)
    return torch.tanh(total)


class Hed(Module):
    """The HED network. Weights: ``norm``, ``block1.convs.0.weight``, ``block1.projection.weight`` ..."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Parameter(torch.zeros(1, 3, 1, 1))
        for index, (channels_in, channels_out, count) in enumerate(STAGES, start=1):
            self.add_module(f"block{index}", _Stage(channels_in, channels_out, count, first=index == 1))

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return as_rgb(self.edges(image).to(image.dtype))

    def edges(self, image: Tensor) -> Tensor:
        """``[F, 3, H, W]`` 0..1 -> ``[F, 1, H, W]`` edge likelihood."""
        signal = image.to(self.norm.dtype) * 255.0 - self.norm
        size = image.shape[-2:]
        total: Tensor | None = None
        for index in range(1, len(STAGES) + 1):
            signal, edge = self.get_submodule(f"block{index}")(signal)
            edge = nn.interpolate(edge.float(), size, mode="bilinear")
            total = edge if total is None else total + edge
        assert total is not None
        return torch.sigmoid(total / len(STAGES))


class _Stage(Module):
    def __init__(self, channels_in: int, channels_out: int, count: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        sizes = [channels_in] + [channels_out] * count
        self.convs = ModuleList(Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes))
        self.projection = Conv2d(channels_out, 1, 1)

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        if not self.first:
            signal = nn.max_pool2d(signal, 2)
        for conv in self.convs:
            signal = nn.relu(conv(signal))
        return signal, self.projection(signal)
