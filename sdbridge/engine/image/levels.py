"""A plan's coefficients on the device: how noised each row is, and what its clean estimate is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdbridge.engine.image.guidance import clean_shares
from sdbridge.engine.image.schedule import StepPlan


@dataclass(frozen=True)
class Levels:
    """``[R, 1, 1, 1]`` each, row by row; and what of it is known on the host."""

    alpha: Tensor
    sigma: Tensor
    keep: Tensor
    replay: Tensor
    fresh: Tensor
    c_skip: Tensor
    c_out: Tensor
    of_latent: Tensor  # the clean estimate is so much of the latent
    of_out: Tensor  # and so much of the model's output
    kept_of_latent: Tensor  # the same with the sampler's boundary condition in it
    kept_of_out: Tensor
    timesteps: tuple[int, ...] = field(kw_only=True)
    fraction: tuple[float, ...] = field(kw_only=True)


def levels_of(
    plan: StepPlan, prediction: str, frames: int, precision: torch.dtype, device: torch.device
) -> Levels:
    """Computed in float64 and sent in one piece; every step's are there ``frames`` times."""
    shares = [clean_shares(a, b, prediction) for a, b in zip(plan.alpha, plan.sigma, strict=True)]
    bounded = [
        (c_out * p + c_skip, c_out * q)
        for (p, q), c_skip, c_out in zip(shares, plan.c_skip, plan.c_out, strict=True)
    ]
    table = [plan.alpha, plan.sigma, plan.keep, plan.replay, plan.fresh, plan.c_skip, plan.c_out]
    table += [*zip(*shares, strict=True), *zip(*bounded, strict=True)]
    host = torch.tensor(table, dtype=torch.float64).repeat_interleave(frames, dim=1)
    wide = host.to(precision)[:, :, None, None, None]
    if device.type == "cuda":
        wide = wide.pin_memory()
    rows = wide.to(device, non_blocking=True).unbind(0)
    timesteps = tuple(t for t in plan.timesteps for _ in range(frames))
    return Levels(*rows, timesteps=timesteps, fraction=tuple(1 - (t + 1) / 1000 for t in timesteps))
