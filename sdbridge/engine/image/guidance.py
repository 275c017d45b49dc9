"""Guidance: how the predicted noise is pushed towards the prompt, and which extra rows that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdbridge.engine.image.scratch import Scratch

Mode = Literal["none", "full", "self", "initialize"]


@dataclass(frozen=True)
class Guidance:
    """Mode, scale (gamma) and delta as they are in this frame."""

    mode: Mode = "none"
    scale: float = 1.0
    delta: float = 1.0

    @property
    def active(self) -> bool:
        """At a scale of 1 and below the formula gives the conditioned noise, so guidance rests."""
        return self.mode != "none" and self.scale > 1.0

    @property
    def uses_negative_prompt(self) -> bool:
        return self.mode in ("full", "initialize")

    def extra_rows(self, steps: int, frames: int) -> int:
        """Rows the UNet sees beside the conditioned ones: 0, F (initialize) or n F (full)."""
        if not self.active or self.mode == "self":
            return 0
        return frames if self.mode == "initialize" else steps * frames


def to_noise_and_clean(
    out: Tensor,
    latents: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: str,
    scratch: Scratch | None = None,
    name: str = "",
) -> tuple[Tensor, Tensor]:
    """The model's output as (noise e, clean estimate x0), whatever it was trained to predict.

    epsilon: x0 = (X - b e) / a.   v: x0 = a X - b v, e = a v + b X.   sample: e = (X - a x0) / b.
    All tensors ``[rows, 4, h, w]`` in the stream's own precision (float32 or more: a is .068 at t = 999).

    Both lie in ``scratch`` under ``name``, x0 in two turns (a decoder may still read the one before); but
    e is ``out`` itself where the model gives it.
    """
    scratch = scratch or Scratch()
    clean = scratch.like(f"clean{name}", latents, turns=2)
    if prediction == "epsilon":
        return out, torch.addcmul(latents, sigma, out, value=-1, out=clean).div_(alpha)
    noise, part = scratch.like(f"noise{name}", latents), scratch.like("part", latents)
    if prediction == "v_prediction":
        torch.mul(alpha, out, out=noise).add_(torch.mul(sigma, latents, out=part))
        torch.mul(alpha, latents, out=clean).sub_(torch.mul(sigma, out, out=part))
        return noise, clean
    torch.mul(alpha, out, out=noise)
    return torch.sub(latents, noise, out=noise).div_(sigma), clean.copy_(out)


def virtual_noise(
    latents: Tensor, source: Tensor, alpha: Tensor, sigma: Tensor, scratch: Scratch | None = None
) -> Tensor:
    """S_i = (X_i - a_i z) / b_i: the noise that would lead from X_i back to the source latent z.

    The closed form of residual CFG (section 2.4; the published recursion of StreamDiffusion, equations
    3 to 7, follows by induction). No state is carried, so nothing can run away or go stale.
    """
    noise = (scratch or Scratch()).like("virtual noise", latents)
    torch.mul(alpha, source, out=noise)
    return torch.sub(latents, noise, out=noise).div_(sigma)


def push(scale: float, conditioned: Tensor, unconditioned: Tensor, into: Tensor) -> Tensor:
    """e = e_u + gamma (e_c - e_u), written ``into`` a buffer that may be ``conditioned``'s own."""
    return torch.sub(conditioned, unconditioned, out=into).mul_(scale).add_(unconditioned)
