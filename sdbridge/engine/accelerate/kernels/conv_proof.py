"""Which of the Hopper convolutions compute small layers right on this card, with this Triton?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.conv import chained
from sdbridge.engine.accelerate.kernels.conv_double import run_double
from sdbridge.engine.accelerate.kernels.conv_halve import run_halve
from sdbridge.engine.accelerate.kernels.conv_last import run_last
from sdbridge.engine.accelerate.kernels.conv_ring import run_ring
from sdbridge.engine.accelerate.kernels.tuning import refusals

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0


def proven(channels: int) -> frozenset[str]:
    """The kinds of layer that come out right; asked once, before the first frame.

    The kernels start their factors at any row of a swizzled tile, which Triton's compiler does not promise.
    """
    fine: set[str] = set()
    refused: tuple[type[Exception], ...] = (*refusals(), AttributeError)
    for kind, prove in _PROOFS:
        try:
            error = prove(channels)
        except TimeoutError as why:
            log.warning("the Hopper convolution %r %s; it and those after it rest", kind, why)
            break
        except refused as why:  # an older or newer Triton
            log.warning("the Hopper convolution %r does not run here: %s", kind, str(why).strip()[:300])
            continue
        if error < 2e-3:
            fine.add(kind)
        else:
            log.warning("the Hopper convolution %r is wrong here (relative error %s)", kind, error)
    return frozenset(fine)


def _draw(channels: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator(device="cuda").manual_seed(5)
    source = torch.randn(1, 9, 68, channels, device="cuda", generator=draw).half()
    weight = torch.randn(taps, channels, channels, device="cuda", generator=draw).half()
    return source, weight, torch.randn(channels, device="cuda", generator=draw)


def rehearsed(channels: int) -> frozenset[str]:
    """All kinds whose proof can be gone through, while kernels are only noted down."""
    fine: set[str] = set()
    refused: tuple[type[Exception], ...] = (*refusals(), AttributeError)
    for kind, prove in _PROOFS:
        try:
            prove(channels)
        except refused:  # said when it is proven in earnest
            continue
        fine.add(kind)
    return frozenset(fine)


def _same(channels: int) -> float:
    source, weight, bias = _draw(channels, 9)
    want = _convolved(_planes(source), weight, bias)
    kept = torch.flip(source, (2,)).contiguous()
    worst = 0.0
    for rows, skip in ((2, None), (9, kept), (1, None), (4, kept)):
        out = torch.full_like(source, float("nan"))
        config = Config(rows, 64, 4, 4, by="ring")
        _end(lambda: run_ring(source, weight, bias, out, config, True, skip, chained()))  # noqa: B023
        error = _relative(out, torch.relu(want if skip is None else want + _planes(skip)))
        worst = worst if error <= worst else error  # nan stays
    return worst


def _up(channels: int) -> float:
    source, factors, _ = _draw(channels, 16)
    large = source.new_full((1, 18, 136, channels), float("nan"))
    _end(lambda: run_double(source, factors, large, Config(5, 128, 8, 4), chained()))
    worst = 0.0
    for which in range(4):  # the 2x2 convolution of each parity
        down, right = which // 2, which % 2
        shifted = torch.nn.functional.pad(_planes(source), (1 - right, right, 1 - down, down))
        want = _convolved(shifted, factors[which * 4 : which * 4 + 4])
        error = _relative(large[:, down::2, right::2], want)
        worst = worst if error <= worst else error  # nan stays
    return worst


def _halve(channels: int) -> float:
    source, weight, _ = _draw(channels, 9)
    small = source.new_full((1, 5, 34, channels), float("nan"))
    _end(lambda: run_halve(source, weight, small, Config(2, 64, 4, 4), chained()))
    return _relative(small, _convolved(_planes(source), weight)[:, :, ::2, ::2])


def _last(channels: int) -> float:
    source, weight, bias = _draw(channels, 9)
    weight, bias = weight[..., :16].contiguous(), bias[:16].contiguous()
    planes = torch.full((1, 3, *source.shape[1:3]), float("nan"), device="cuda")
    _end(lambda: run_last(source, weight, bias, planes, Config(2, 64, 4, 4), False, chained()))
    want = _convolved(_planes(source), weight, bias)[:, :3] * 2 - 1
    bytes_ = torch.zeros(source.shape[:3], dtype=torch.int32, device="cuda")
    weight, bias = weight * 0.004, bias * 0.0 + 0.5  # within 0..1, but for a few
    _end(lambda: run_last(source, weight, bias, bytes_, Config(9, 64, 4, 4), True, chained()))
    wanted = (_convolved(_planes(source), weight, bias)[:, :3] * 255 + 0.5).clamp(0, 255).floor()
    pixels = bytes_.view(torch.uint8).view(*bytes_.shape, 4)
    off = (pixels[..., :3].permute(0, 3, 1, 2).float() - wanted).abs().max()
    if off > 1 or not bool((pixels[..., 3] == 255).all()):
        return float("inf")
    return float((planes - want).norm() / want.norm())


def _end(run: Callable[[], None]) -> None:
    """Run and wait; a kernel that does not end must not hold the frame loop."""
    run()
    ended = torch.cuda.Event()
    ended.record()
    until = time.monotonic() + _PATIENCE_S
    while not ended.query():
        if time.monotonic() > until:
            raise TimeoutError(f"did not end in {_PATIENCE_S:.0f} s")
        time.sleep(0.001)


def _planes(source: Tensor) -> Tensor:
    return source.permute(0, 3, 1, 2).float()


def _convolved(planes: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float32, by PyTorch: 3x3 with padding, or 2x2 without."""
    side = {9: 3, 4: 2}[packed.shape[0]]
    kernel = packed.float().view(side, side, *packed.shape[1:]).permute(3, 2, 0, 1)
    with torch.backends.cudnn.flags(allow_tf32=False):
        return torch.nn.functional.conv2d(planes, kernel, bias, padding=1 if side == 3 else 0)


def _relative(out: Tensor, want: Tensor) -> float:
    return float((out.permute(0, 3, 1, 2) - want).norm() / want.norm())


_PROOFS = (("same", _same), ("up", _up), ("halve", _halve), ("last", _last))
