"""Which noise levels the rows of the stream run at, and how a clean estimate is noised for the next row.

Every sampler here is one linear rule. A frame's latent in step ``i`` is

    X_i = keep_i * x0 + replay_i * e + fresh_i * eps_i

from the clean estimate ``x0`` and the noise ``e`` that the step before predicted, and fixed fresh noise
``eps_i``. Because ``x0`` and ``e`` are what the stream stores, a changed level applies at once to frames
in flight (section 2.3 of the maths: no stale frame). With a = sqrt(abar_t) and b = sqrt(1 - abar_t):

    lcm           keep a, fresh b                   (Latent Consistency Models, multistep sampling)
    tcd           keep a, replay (a/a_s) b_s, fresh sqrt(1 - a^2/a_s^2), s = floor((1 - gamma) t)
    turbo, ddim   keep a, replay b                  (Euler and DDIM, eta 0, are the same step)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch

from sdbridge.errors import SdbridgeError

Sampler = Literal["lcm", "tcd", "turbo", "ddim"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
SAMPLERS: tuple[Sampler, ...] = ("lcm", "tcd", "turbo", "ddim")

MOST_STEPS = 8
_SIGMA_DATA = 0.5
_TIMESTEP_SCALING = 10.0


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """abar_t of training, t = 0 .. T-1, as the checkpoint's scheduler config gives it.

    Equal only to itself: plans are looked up by it in every frame, and a thousand numbers take long to hash.
    """

    alphas_cumprod: tuple[float, ...]

    @property
    def length(self) -> int:
        return len(self.alphas_cumprod)

    def alpha(self, timestep: int) -> float:
        """a = sqrt(abar): how much of the picture is left."""
        return math.sqrt(self.alphas_cumprod[timestep])

    def sigma(self, timestep: int) -> float:
        """b = sqrt(1 - abar): how much noise there is."""
        return math.sqrt(1.0 - self.alphas_cumprod[timestep])


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a diffusers scheduler config; missing keys mean Stable Diffusion's own values.

    Computed in float32 as diffusers does, so that both agree to the last bit.
    """
    length = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    kind = config.get("beta_schedule", "scaled_linear")
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, length, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, length, dtype=torch.float32) ** 2
    else:
        raise SdbridgeError("SDB-MODEL-SCHEDULE", f"the scheduler's beta_schedule is {kind!r}")
    abar = torch.cumprod(1.0 - betas, dim=0)
    if config.get("rescale_betas_zero_snr"):
        root = abar.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        abar = root**2
        abar[-1] = 2**-24  # as diffusers: exactly zero would leave nothing to divide by
    return NoiseSchedule(tuple(abar.double().tolist()))


@lru_cache(maxsize=256)
def timestep_grid(sampler: Sampler, schedule_steps: int, length: int = 1000) -> tuple[int, ...]:
    """The timesteps that step indices 0 .. S-1 stand for, noisiest first.

    lcm and tcd take S of the K = 50 steps the models were distilled on (100 when S is larger), section
    2.1; turbo and ddim space them "trailing", so that index 0 is always the noisiest step.
    """
    if sampler in ("lcm", "tcd"):
        original = 50 if schedule_steps <= 50 else 100
        stride = length // original
        origin = [stride * (original - k) - 1 for k in range(original)]
        return tuple(origin[k * original // schedule_steps] for k in range(schedule_steps))
    return tuple(round_half_even(length - k * length / schedule_steps) - 1 for k in range(schedule_steps))


def round_half_even(value: float) -> int:
    """numpy's rounding, which diffusers' trailing spacing uses."""
    return round(value)


def parse_step_indices(text: str, schedule_steps: int) -> tuple[int, ...]:
    """``"16,32"`` as indices into a schedule of ``schedule_steps``; empty text gives none.

    Raises SDB-ENGINE-STEPS when they are no whole numbers, out of range, out of order or too many.
    """
    words = [word for word in text.replace(";", ",").replace(" ", ",").split(",") if word]
    try:
        indices = tuple(int(word) for word in words)
    except ValueError:
        raise SdbridgeError(
            "SDB-ENGINE-STEPS", f"step_indices takes whole numbers such as 16,32, not {text[:60]!r}"
        ) from None
    if len(indices) > MOST_STEPS:
        raise SdbridgeError(
            "SDB-ENGINE-STEPS", f"step_indices takes up to {MOST_STEPS} numbers, not {len(indices)}"
        )
    if any(not 0 <= index < schedule_steps for index in indices):
        raise SdbridgeError(
            "SDB-ENGINE-STEPS", f"step_indices are 0 to {schedule_steps - 1} here, not {text[:60]!r}"
        )
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise SdbridgeError("SDB-ENGINE-STEPS", f"step_indices must rise, {text[:60]!r} does not")
    return indices


def rescale_indices(indices: tuple[int, ...], set_at: int, schedule_steps: int) -> tuple[int, ...]:
    """Indices that were meant for a schedule of ``set_at`` steps, in one of ``schedule_steps``.

    They keep their share of the schedule and stay distinct; a schedule shorter than their number
    keeps as many as it has steps.
    """
    moved = [index * schedule_steps // set_at for index in indices][:schedule_steps]
    return _spread(moved, schedule_steps)


def indices_from_strength(strength: float, steps: int, schedule_steps: int) -> tuple[int, ...]:
    """``steps`` indices, evenly over the last ``strength`` of the schedule."""
    count = min(steps, schedule_steps)
    first = min(round((1.0 - strength) * schedule_steps), schedule_steps - count)
    span = schedule_steps - first
    return _spread([first + k * span // count for k in range(count)], schedule_steps)


def _spread(indices: list[int], schedule_steps: int) -> tuple[int, ...]:
    """The nearest strictly rising indices that fit."""
    count = len(indices)
    for k in range(1, count):
        indices[k] = max(indices[k], indices[k - 1] + 1)
    return tuple(min(index, schedule_steps - count + k) for k, index in enumerate(indices))


@dataclass(frozen=True)
class StepPlan:
    """The n steps of the stream as numbers; every tuple has n entries. Made again only on a change.

    ``finish`` is how much of x0 and of e the picture that leaves is made of: TCD ends at t = 0 and not
    before it, as published and as diffusers has it.
    """

    sampler: Sampler
    indices: tuple[int, ...]
    timesteps: tuple[int, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    keep: tuple[float, ...]
    replay: tuple[float, ...]
    fresh: tuple[float, ...]
    c_skip: tuple[float, ...]
    c_out: tuple[float, ...]
    finish: tuple[float, float] = (1.0, 0.0)

    @property
    def count(self) -> int:
        return len(self.timesteps)


@lru_cache(maxsize=512)
def plan_steps(
    schedule: NoiseSchedule,
    sampler: Sampler,
    schedule_steps: int,
    indices: tuple[int, ...],
    *,
    tcd_gamma: float = 0.3,
    add_noise: bool = True,
    from_noise: bool = False,
) -> StepPlan:
    """Levels and coefficients of every row.

    ``from_noise`` (txt2img): row 0 is the noise itself, X_0 = eps_0. ``add_noise`` False leaves the fresh
    noise of later rows out (X_i = a_i x0, section 2.2 step 6). Row 0 of img2img is a_0 z + b_0 eps_0.
    """
    grid = timestep_grid(sampler, schedule_steps, schedule.length)
    timesteps = tuple(grid[index] for index in indices)
    alpha = tuple(schedule.alpha(t) for t in timesteps)
    sigma = tuple(schedule.sigma(t) for t in timesteps)
    rules = [_rule(schedule, sampler, t, tcd_gamma, add_noise) for t in timesteps]
    rules[0] = (0.0, 0.0, 1.0) if from_noise else (alpha[0], 0.0, sigma[0])
    boundary = [_boundary(t) if sampler == "lcm" else (0.0, 1.0) for t in timesteps]
    return StepPlan(
        sampler,
        indices,
        timesteps,
        alpha,
        sigma,
        keep=tuple(rule[0] for rule in rules),
        replay=tuple(rule[1] for rule in rules),
        fresh=tuple(rule[2] for rule in rules),
        c_skip=tuple(pair[0] for pair in boundary),
        c_out=tuple(pair[1] for pair in boundary),
        finish=(schedule.alpha(0), schedule.sigma(0)) if sampler == "tcd" else (1.0, 0.0),
    )


def _rule(
    schedule: NoiseSchedule, sampler: Sampler, timestep: int, tcd_gamma: float, add_noise: bool
) -> tuple[float, float, float]:
    """keep, replay, fresh of a row that a step before feeds."""
    a, b = schedule.alpha(timestep), schedule.sigma(timestep)
    if sampler == "lcm":
        return a, 0.0, b if add_noise else 0.0
    if sampler == "tcd" and add_noise:
        s = math.floor((1.0 - tcd_gamma) * timestep)
        ratio = a / schedule.alpha(s)
        return a, ratio * schedule.sigma(s), math.sqrt(max(0.0, 1.0 - ratio * ratio))
    return a, b, 0.0


def _boundary(timestep: int) -> tuple[float, float]:
    """c_skip and c_out of the consistency model's boundary condition (LCM, equation 9)."""
    scaled = timestep * _TIMESTEP_SCALING
    total = scaled * scaled + _SIGMA_DATA * _SIGMA_DATA
    return _SIGMA_DATA * _SIGMA_DATA / total, scaled / math.sqrt(total)
