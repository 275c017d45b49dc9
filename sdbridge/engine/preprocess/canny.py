"""Canny edges on the device: Sobel, thinning, two thresholds, and growing of weak edges from strong ones.

J. Canny, "A computational approach to edge detection" (1986), with the choices of OpenCV's ``Canny``
(aperture 3, L1 norm), so that ControlNets see the edges they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings, as_rgb, gaussian_blur, grey, sobel

#: A step of full contrast gives this Sobel value: 4 for the kernel's weights, 255 for the scale.
FULL_CONTRAST = 4 * 255.0
#: How far, in pixels, a weak edge is followed from a strong one. A fixed number, because asking
#: whether anything still changes would stop the host; longer weak tails are cut.
GROWTH = 64
_TAN_22 = math.tan(math.pi / 8)
_TAN_67 = math.tan(3 * math.pi / 8)


class Canny:
    """White edges on black. ``low`` and ``high`` are edge heights in shares of full contrast.

    ``detail`` 1 looks at every pixel; less blurs first, with a sigma of up to two pixels.
    """

    def __init__(self) -> None:
        self._grow: Callable[[Tensor, Tensor], Tensor] = grow

    def accelerate(self, wrap: Callable[[Callable[..., Any], str], Callable[..., Any]]) -> None:
        """Have the many small steps of growing, which no setting changes, run as ``wrap`` runs calls."""
        self._grow = wrap(grow, "canny")

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        # Rounded as a camera's bytes are: OpenCV's edges come from whole numbers, and so do ours.
        plane = (grey(image).float() * 255).round()
        plane = gaussian_blur(plane, 2.0 * (1.0 - settings.detail))
        across, down = sobel(plane)
        height = across.abs() + down.abs()
        ridge = thin(height, across, down)
        low = min(settings.low, settings.high) * FULL_CONTRAST
        high = max(settings.low, settings.high) * FULL_CONTRAST
        edges = self._grow(ridge & (height > high), ridge & (height > low))
        return as_rgb(edges.to(image.dtype, copy=True))  # accelerated, the next picture overwrites its own


def thin(height: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """True where ``height`` is the largest along its gradient's direction, of four directions."""
    padded = nn.pad(height, (1, 1, 1, 1))
    rows, columns = height.shape[-2:]

    def at(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 1 + dy + rows, 1 + dx : 1 + dx + columns]

    steep = down.abs()
    flat = across.abs()
    horizontal = steep < flat * _TAN_22
    vertical = steep > flat * _TAN_67
    falling = (across >= 0) == (down >= 0)  # the gradient points along the main diagonal
    # Ties go to one side only, so that a plateau of two pixels gives one line.
    ridge = (height > at(-1, -1)) & (height > at(1, 1))
    ridge = ridge.where(falling, (height > at(-1, 1)) & (height > at(1, -1)))
    ridge = ((height > at(-1, 0)) & (height >= at(1, 0))).where(vertical, ridge)
    return ((height > at(0, -1)) & (height >= at(0, 1))).where(horizontal, ridge)


def grow(strong: Tensor, weak: Tensor) -> Tensor:
    """``strong`` and all of ``weak`` that hangs together with it, up to GROWTH pixels away; 1.0 and 0.0."""
    if strong.device.type == "cpu":
        return _grow_on_host(strong, weak).float()
    reached, allowed = strong.half(), weak.half()
    for _ in range(GROWTH):  # two launches a step; nothing asks the device how far it is
        reached = nn.max_pool2d(reached, 3, stride=1, padding=1) * allowed
    return reached.float()


def _grow_on_host(strong: Tensor, weak: Tensor) -> Tensor:
    """The same on the processor, where bytes are fast and looking whether it is done costs nothing."""
    reached = strong
    for step in range(1, GROWTH + 1):
        wide = nn.pad(reached, (1, 1, 1, 1))
        wide = wide[..., :-2] | wide[..., 1:-1] | wide[..., 2:]
        before, reached = reached, (wide[..., :-2, :] | wide[..., 1:-1, :] | wide[..., 2:, :]) & weak
        if step % 4 == 0 and torch.equal(before, reached):
            break
    return reached
