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


def clean_shares(alpha: float, sigma: float, prediction: str) -> tuple[float, float]:
    """What the clean estimate is made of: x0 = p X + q out, whatever the model was trained to predict.

    epsilon: x0 = (X - b e) / a.   v: x0 = a X - b v.   sample: it is the output.
    """
    if prediction == "epsilon":
        return 1.0 / alpha, -sigma / alpha
    return (alpha, -sigma) if prediction == "v_prediction" else (0.0, 1.0)


def estimate(out: Tensor, latents: Tensor, of_latent: Tensor, of_out: Tensor, into: Tensor) -> Tensor:
    """p X + q out, in the stream's own precision (float32 or more: 1 / a is 15 at t = 999)."""
    return torch.mul(of_latent, latents, out=into).addcmul_(of_out, out)


def to_noise(
    out: Tensor,
    latents: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction: str,
    scratch: Scratch | None = None,
    name: str = "",
) -> Tensor:
    """The noise e in ``latents`` ``[rows, 4, h, w]``, from the model's output.

    v: e = a v + b X.   sample: e = (X - a x0) / b.   epsilon: it is the output, cast where it is narrower.
    """
    scratch = scratch or Scratch()
    if prediction == "epsilon":
        return scratch.cast(f"noise{name}", out, latents.dtype)
    noise = scratch.like(f"noise{name}", latents)
    if prediction == "v_prediction":
        return torch.mul(alpha, out, out=noise).addcmul_(sigma, latents)
    return torch.addcmul(latents, alpha, out, value=-1, out=noise).div_(sigma)


def virtual_noise(
    latents: Tensor, source: Tensor, alpha: Tensor, sigma: Tensor, scratch: Scratch | None = None
) -> Tensor:
    """S_i = (X_i - a_i z) / b_i: the noise that would lead from X_i back to the source latent z.

    The closed form of residual CFG (section 2.4; the published recursion of StreamDiffusion, equations
    3 to 7, follows by induction). No state is carried, so nothing can run away or go stale.
    """
    noise = (scratch or Scratch()).like("virtual noise", latents)
    return torch.addcmul(latents, alpha, source, value=-1, out=noise).div_(sigma)


def virtual_clean(
    latents: Tensor, source: Tensor, alpha: Tensor, delta: float, scratch: Scratch | None = None
) -> Tensor:
    """What d times the virtual noise leads to: (X - b d S) / a = d z + (1 - d) X / a; z itself for 1."""
    if delta == 1.0:
        return source
    clean = (scratch or Scratch()).like("virtual clean", latents)
    return torch.div(latents, alpha, out=clean).mul_(1.0 - delta).add_(source, alpha=delta)


def push(scale: float, conditioned: Tensor, unconditioned: Tensor, into: Tensor) -> Tensor:
    """e = e_u + gamma (e_c - e_u), written ``into`` a buffer that may be ``conditioned``'s own."""
    return torch.lerp(unconditioned, conditioned, scale, out=into)
