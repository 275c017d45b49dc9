"""The noise of every step: drawn on the CPU from seeds, so that a seed means the same on any device."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdbridge.engine.image.scratch import Scratch

SeedMode = Literal["fixed", "random", "walk"]
Shape = tuple[int, int, int, int]  # steps, channels, h, w

_KEPT = 16
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class SeedSettings:
    """Seeds and their shares, and how time moves them. Noise of seeds without weight is not drawn."""

    seeds: tuple[tuple[int, float], ...] = ((2, 1.0),)
    mode: SeedMode = "fixed"
    walk_speed: float = 0.5
    blend: Literal["linear", "slerp"] = "linear"


def noise_of(seed: int, shape: Shape, into: Tensor | None = None) -> Tensor:
    """Standard normal noise ``[n, 4, h, w]``, float32 on the CPU; written ``into`` a tensor if one is given.

    Step after step from one CPU generator: the first step's noise is what diffusers draws for the
    same seed, and it does not depend on how many steps follow.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.empty(shape) if into is None else into
    if shape[0] == 1:
        return noise.normal_(generator=generator)
    for step in noise.split(1):
        step.normal_(generator=generator)
    return noise


class NoiseSource:
    """Gives the noise for a frame. Keeps what it drew lately, so that a fader over seeds draws nothing.

    What it gives stands until the next frame's noise is asked for.
    """

    def __init__(self) -> None:
        self._drawn: OrderedDict[tuple[int, Shape], Tensor] = OrderedDict()
        self._shown: tuple[object, ...] | None = None
        self._noise: Tensor | None = None
        self._scratch = Scratch()
        self._frame = 0
        self._walked = 0.0
        self._last_now_s: float | None = None

    def noise(self, settings: SeedSettings, shape: Shape, now_s: float) -> tuple[Tensor, bool]:
        """Noise ``[n, 4, h, w]`` on the CPU for the frame that enters now, and whether it is another one.

        ``random`` derives a seed from the first seed and the frame's number, so that a replay is equal;
        ``walk`` goes from seed s to s + 1, s + 2, ... on the arc between their noises.
        """
        self._frame += 1
        passed = 0.0 if self._last_now_s is None else max(0.0, now_s - self._last_now_s)
        self._last_now_s = now_s
        key: tuple[object, ...]
        if settings.mode == "random":
            seed = _scramble(settings.seeds[0][0] if settings.seeds else 0, self._frame)
            key = ("random", seed, shape)
        elif settings.mode == "walk":
            self._walked += passed * settings.walk_speed
            key = ("walk", settings.seeds, settings.blend, round(self._walked, 6), shape)
        else:
            key = ("fixed", settings.seeds, settings.blend, shape)
        if key == self._shown and self._noise is not None:
            return self._noise, False
        if settings.mode == "random":
            noise = noise_of(seed, shape, self._room("random", shape))
        elif settings.mode == "walk":
            noise = self._walk(settings, shape)
        else:
            noise = self._blend(settings, shape, 0)
        self._shown, self._noise = key, noise
        return noise, True

    def reset(self) -> None:
        """Random and walk start from the beginning."""
        self._frame = 0
        self._walked = 0.0
        self._last_now_s = None
        self._shown = None

    def _walk(self, settings: SeedSettings, shape: Shape) -> Tensor:
        step = math.floor(self._walked)
        here, there = self._blend(settings, shape, step), self._blend(settings, shape, step + 1)
        shares = [1 - (self._walked - step), self._walked - step]
        return blend_noise([here, there], shares, "slerp", self._rooms("walk", shape))

    def _blend(self, settings: SeedSettings, shape: Shape, offset: int) -> Tensor:
        shares = [(seed, weight) for seed, weight in settings.seeds if weight > 0] or [
            (settings.seeds[0][0] if settings.seeds else 0, 1.0)
        ]
        if len(shares) == 1:
            return self._draw((shares[0][0] + offset) % (_LARGEST_SEED + 1), shape)
        noises = [self._draw((seed + offset) % (_LARGEST_SEED + 1), shape) for seed, _ in shares]
        rooms = self._rooms(f"blend {offset % 2}", shape)  # a walk is between two
        return blend_noise(noises, [weight for _, weight in shares], settings.blend, rooms)

    def _draw(self, seed: int, shape: Shape) -> Tensor:
        key = (seed, shape)
        if key not in self._drawn:
            oldest = None
            while len(self._drawn) >= _KEPT:
                (_, was), oldest = self._drawn.popitem(last=False)
                oldest = oldest if was == shape else None
            self._drawn[key] = noise_of(seed, shape, oldest)
        self._drawn.move_to_end(key)
        return self._drawn[key]

    def _room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._scratch.room(name, shape, torch.float32, torch.device("cpu"))

    def _rooms(self, name: str, shape: Shape) -> Rooms:
        return Rooms(self._room(name, shape), self._room("part", shape), self._room("number", ()))


@dataclass(frozen=True)
class Rooms:
    """Where ``blend_noise`` writes: the result, what is computed on the way, and single numbers."""

    into: Tensor
    part: Tensor
    number: Tensor

    def norm(self, noise: Tensor) -> float:
        return float(torch.linalg.vector_norm(noise, out=self.number))

    def product(self, a: Tensor, b: Tensor) -> float:
        return float(torch.sum(torch.mul(a, b, out=self.part), dim=(0, 1, 2, 3), out=self.number))


def blend_noise(noises: list[Tensor], weights: list[float], kind: str, rooms: Rooms | None = None) -> Tensor:
    """Weighted noises mixed so that the variance stays theirs (section 2.8).

    linear: the weighted sum, scaled to the weighted mean norm. slerp: pairwise along the arc.
    One alone is itself; else the result is in ``rooms``.
    """
    if len(noises) == 1:
        return noises[0]
    like = noises[0]
    rooms = rooms or Rooms(torch.empty_like(like), torch.empty_like(like), like.new_empty(()))
    total = sum(weights)
    if kind == "slerp":
        mixed, so_far = noises[0], weights[0]
        for noise, weight in zip(noises[1:], weights[1:], strict=True):
            so_far += weight
            mixed = _slerp(mixed, noise, weight / so_far, rooms)
        return mixed
    mixed = rooms.into.zero_()
    for noise, weight in zip(noises, weights, strict=True):
        mixed.add_(torch.mul(noise, weight / total, out=rooms.part))
    norm = sum(rooms.norm(n) * w / total for n, w in zip(noises, weights, strict=True))
    return mixed.mul_(norm / max(rooms.norm(mixed), 1e-12))


def _slerp(a: Tensor, b: Tensor, share: float, rooms: Rooms) -> Tensor:
    if share in (0.0, 1.0):
        return b if share else a
    norm_a, norm_b = rooms.norm(a), rooms.norm(b)
    cosine = rooms.product(a, b) / max(norm_a * norm_b, 1e-12)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    norm = (1 - share) * norm_a + share * norm_b
    if angle < 1e-6:
        return a
    first, second = math.sin((1 - share) * angle), math.sin(share * angle)
    torch.mul(b, second / norm_b, out=rooms.part)
    return torch.mul(a, first / norm_a, out=rooms.into).add_(rooms.part).mul_(norm / math.sin(angle))


def _scramble(seed: int, frame: int) -> int:
    """A seed for a frame's number: neighbours have nothing in common."""
    mixed = (seed * 0x9E3779B1 + frame * 0x85EBCA77) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 15)) & _LARGEST_SEED
