"""How pictures are made from the trained parts: the few-step sampler that the stream engine uses too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from diffusers import UNet2DConditionModel

FOUR_STEPS = (999, 759, 499, 259)


@cache
def noise_levels(device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and noise shares a_t, b_t of the scaled-linear schedule, [1000] each."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return kept.sqrt().float().to(device), (1 - kept).sqrt().float().to(device)


def predict_clean(
    unet: UNet2DConditionModel, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, **extra: object
) -> torch.Tensor:
    """x0 from the network's velocity: a x - b v."""
    signal, noise = noise_levels(noisy.device)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    velocity = unet(noisy, t, text, **extra).sample.float()
    return a * noisy - b * velocity


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text: torch.Tensor,
    timesteps: Sequence[int],
    generator: torch.Generator,
    source: torch.Tensor | None = None,
    guidance: float = 1.0,
    negative: torch.Tensor | None = None,
    channels: int = 8,
    size: int = 32,
    **extra: object,
) -> torch.Tensor:
    """Latents by consistency sampling: from noise, or from a source at the first timestep."""
    n, device = len(text), text.device
    signal, noise = noise_levels(device)
    shape = (n, channels, size, size)
    clean = torch.zeros(shape, device=device) if source is None else source
    for t in timesteps:
        fresh = torch.randn(shape, generator=generator, device=generator.device).to(device)
        first_from_noise = source is None and t == timesteps[0]
        noisy = fresh if first_from_noise else signal[t] * clean + noise[t] * fresh
        at = torch.full((n,), t, device=device)
        clean = predict_clean(unet, noisy, at, text, **extra)
        if guidance != 1.0 and negative is not None:
            away = predict_clean(unet, noisy, at, negative, **extra)
            clean = away + guidance * (clean - away)
    return clean
