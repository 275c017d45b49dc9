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

from sdbridge.engine.accelerate.replay import foresee
from sdbridge.engine.preprocess.base import Settings, as_rgb, blur, gaussian_taps, grey, sobel

#: A step of full contrast gives this Sobel value: 4 for the kernel's weights, 255 for the scale.
FULL_CONTRAST = 4 * 255.0
#: How far, in pixels, a weak edge is followed from a strong one. A fixed number, because asking
#: whether anything still changes would stop the host; longer weak tails are cut.
GROWTH = 64
#: Sigma of the blur at ``detail`` 0, and how far that reaches.
WIDEST = 2.0
_REACH = math.ceil(3 * WIDEST)
_TAN_22 = math.tan(math.pi / 8)
_TAN_67 = math.tan(3 * math.pi / 8)


class EdgeCall:
    """Canny as a call on tensors alone: what a CUDA graph can hold. 1 where an edge is, ``[F, 1, H, W]``.

    Tensors: the picture ``[F, 3, H, W]``, the low and the high threshold, then the blur's weights if there
    is a blur. What moves is another number in the same tensor, so nothing is captured again.
    """

    def __call__(self, image: Tensor, thresholds: Tensor, *taps: Tensor) -> Tensor:
        # Rounded as a camera's bytes are: OpenCV's edges come from whole numbers, and so do ours.
        plane = (grey(image).float() * 255).round()
        if taps:
            plane = blur(plane, taps[0])
        across, down = sobel(plane)
        height = across.abs() + down.abs()
        ridge = thin(height, across, down)
        return grow(ridge & (height > thresholds[1]), ridge & (height > thresholds[0]))

    def faster(self, image: Tensor, thresholds: Tensor, *taps: Tensor) -> Tensor:
        """The same on our own kernels, which need compiling before."""
        from sdbridge.engine.accelerate.kernels import canny

        return canny.canny(image, thresholds, taps[0] if taps else None, GROWTH)


class Canny:
    """White edges on black. ``low`` and ``high`` are edge heights in shares of full contrast.

    ``detail`` 1 looks at every pixel; less blurs first, with a sigma of up to two pixels.
    """

    def __init__(self) -> None:
        self._run: Callable[..., Tensor] = EdgeCall()
        self._one_shape = False  # so that a moving ``detail`` needs no other graph
        self._given: tuple[object, tuple[Tensor, ...]] = (None, ())

    def accelerate(self, wrap: Callable[[Callable[..., Any], str], Callable[..., Any]]) -> None:
        """Have its many small operations run as ``wrap`` runs calls on tensors."""
        plain = self._run
        self._run = wrap(plain, "canny")
        self._one_shape = self._run is not plain

    def foresee(self, image: Tensor, settings: Settings) -> bool:
        """Whether pictures like ``image`` are ready to be drawn; else that is begun (``replay.foresee``)."""
        return foresee(self._run, image, *self._further(settings, image.device))

    def _further(self, settings: Settings, device: torch.device) -> tuple[Tensor, ...]:
        key = (settings, device)
        if self._given[0] != key:
            self._given = (key, _on_device(settings, device, self._one_shape))
        return self._given[1]

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        edges = self._run(image, *self._further(settings, image.device))
        return as_rgb(edges.to(image.dtype, copy=True))  # accelerated, the next picture overwrites its own


def _on_device(settings: Settings, device: torch.device, one_shape: bool) -> tuple[Tensor, ...]:
    """The thresholds and, where there is a blur, its weights, sent without waiting.

    In ``one_shape`` there always is one, of the widest's reach: that costs a GPU some microseconds.
    """
    ordered = sorted((settings.low, settings.high))
    host = torch.tensor([share * FULL_CONTRAST for share in ordered], dtype=torch.float32)
    pinned = host.pin_memory() if device.type == "cuda" else host
    thresholds = pinned.to(device, non_blocking=True)
    sigma = WIDEST * (1.0 - settings.detail)
    if sigma <= 0 and not one_shape:
        return (thresholds,)
    return thresholds, gaussian_taps(sigma, device, torch.float32, _REACH if one_shape else 0)


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
