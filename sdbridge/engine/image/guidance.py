"""Guidance: how the predicted noise is pushed towards the prompt, and which extra rows that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
    out: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """The model's output as (noise e, clean estimate x0), whatever it was trained to predict.

    epsilon: x0 = (X - b e) / a.   v: x0 = a X - b v, e = a v + b X.   sample: e = (X - a x0) / b.
    All tensors ``[rows, 4, h, w]`` in the stream's own precision (float32 or more: a is .068 at t = 999).
    """
    if prediction == "v_prediction":
        return alpha * out + sigma * latents, alpha * latents - sigma * out
    if prediction == "sample":
        return (latents - alpha * out) / sigma, out
    return out, torch.addcmul(latents, sigma, out, value=-1) / alpha


def virtual_noise(latents: Tensor, source: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """S_i = (X_i - a_i z) / b_i: the noise that would lead from X_i back to the source latent z.

    The closed form of residual CFG (section 2.4; the published recursion of StreamDiffusion, equations
    3 to 7, follows by induction). No state is carried, so nothing can run away or go stale.
    """
    return (latents - alpha * source) / sigma


def guide(guidance: Guidance, conditioned: Tensor, unconditioned: Tensor) -> Tensor:
    """e = e_u + gamma (e_c - e_u), with e_u scaled by delta in the residual modes."""
    if guidance.mode != "full":
        unconditioned = guidance.delta * unconditioned
    return unconditioned + guidance.scale * (conditioned - unconditioned)
