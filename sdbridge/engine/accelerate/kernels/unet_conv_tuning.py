"""Which ways of computing a UNet's 3x3 convolution are worth timing, and how is one timed?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdbridge.engine.accelerate.kernels.linear import Workspace
from sdbridge.engine.accelerate.kernels.tiles import Tile
from sdbridge.engine.accelerate.kernels.tuning import Progress, Tuner
from sdbridge.engine.accelerate.kernels.unet_conv import (
    ConvProblem,
    conv3x3,
    conv_torch,
    default_way,
    parse_way,
)

_WORST_ERROR = 2e-3  # against plain operations in float32; a half-precision result is about 3e-4 off


@dataclass(frozen=True)
class ConvTuning:
    """A ``ConvProblem`` as the tuner wants it: candidates, and calls that rotate among weights."""

    problem: ConvProblem

    @property
    def key(self) -> str:
        return self.problem.key

    @property
    def weight_bytes(self) -> int:
        return 18 * self.problem.channels * self.problem.outputs

    def candidates(self) -> tuple[str, ...]:
        return ("library", *candidate_ways(self.problem))

    def allowed(self, candidate: str) -> bool:
        return parse_way(candidate, self.problem) is not None

    def bind(
        self, device: torch.device, slab: Tensor, copies: int
    ) -> Callable[[str], list[Callable[[], object]]]:
        """For a candidate, calls that each read other weights out of ``slab`` (random, flat)."""
        p = self.problem
        dtype = getattr(torch, p.dtype)
        size = 9 * p.channels * p.outputs
        last = max(1, slab.numel() - size)
        step = -(-size // 64) * 64
        weights = [
            slab[at : at + size].view(p.outputs, 3, 3, p.channels).permute(0, 3, 1, 2)
            for at in (i * step % last // 64 * 64 for i in range(copies))
        ]
        pixels = p.batch * p.height * p.width
        inputs = [torch.randn(pixels, p.channels, device=device).to(dtype) for _ in range(2)]
        bias = torch.randn(p.outputs, device=device).to(dtype) if p.bias else None
        workspace = Workspace(device)

        def calls(candidate: str) -> list[Callable[[], object]]:
            return [
                partial(
                    conv3x3,
                    inputs[i % 2],
                    p.batch,
                    p.height,
                    p.width,
                    weight,
                    p.stride,
                    p.upsample,
                    bias,
                    lambda _problem: candidate,
                    workspace,
                )
                for i, weight in enumerate(weights)
            ]

        return calls

    def agrees(self, device: torch.device, candidate: str) -> bool:
        """Whether the candidate's answer is that of plain operations in float32."""
        p = self.problem
        dtype = getattr(torch, p.dtype)
        rows = torch.randn(p.batch * p.height * p.width, p.channels, device=device).to(dtype)
        weight = torch.randn(p.outputs, 3, 3, p.channels, device=device) * (9 * p.channels) ** -0.5
        weight = weight.to(dtype).permute(0, 3, 1, 2)
        bias = torch.randn(p.outputs, device=device).to(dtype) if p.bias else None
        shape = (p.batch, p.height, p.width, weight, p.stride, p.upsample, bias)
        found = conv3x3(rows, *shape, pick=lambda _: candidate).float()
        truth = conv_torch(rows.float(), p, weight.float(), None if bias is None else bias.float())
        return bool((found - truth).norm() < _WORST_ERROR * truth.norm())


class MeasuredConvs:
    """A ``pick`` that takes what a tuner measured, and knows what it was asked (so, what to tune)."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._asked: dict[str, ConvProblem] = {}

    def __call__(self, problem: ConvProblem) -> str:
        self._asked[problem.key] = problem
        return self._tuner.choice(ConvTuning(problem)) or default_way(problem)

    @property
    def asked(self) -> tuple[ConvProblem, ...]:
        """Every problem so far."""
        return tuple(self._asked.values())

    def tune(self, device: torch.device, progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Time all that was asked for since the beginning: seconds a problem, never inside a frame."""
        self._tuner.tune([ConvTuning(problem) for problem in self._asked.values()], device, progress)


def candidate_ways(problem: ConvProblem) -> list[str]:
    """The cuts worth timing: those that waste little and fill the card, with the splits that help."""
    found = []
    if problem.height * problem.width == 64 and problem.stride == 1 and not problem.upsample:
        for n, k, stages, splits in _WHOLE:
            found += [f"whole:{Tile(64, n, k, 4, stages, 8, split)}" for split in splits]
    for m, n, stages, streams in _HALO:
        for stream in streams:
            way = f"halo:{Tile(m, n, 64, n // 16, stages, 8, stream=stream)}"
            if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
                continue
            if parse_way(way, problem) is not None:
                found.append(way)
    for form, m, n, k, warps, stages in _SHAPES:
        if m > max(64, problem.pixels) or (problem.channels % k and problem.channels > k):
            continue
        columns = n * 5 // 4 if form == "wide" else n
        across = -(-problem.outputs // columns)
        if across * columns > 1.25 * problem.outputs:
            continue
        tiles = -(-problem.pixels // m) * across
        for split in _splits(tiles, 9 * problem.channels // k):
            together = split * m * columns  # what the last arriver of a tile would have to read
            named = [form] if together < 1 << 17 else []
            if together >= 1 << 16 and split > 1:
                named.append(f"{form}-apart".strip("-"))
            for copied in (False, True):
                tile = Tile(m, n, k, warps, stages, 8, split, tma=copied)
                found += [
                    text
                    for text in (f"{name}:{tile}".strip(":") for name in named)
                    if parse_way(text, problem)
                ]
    return found


def _splits(tiles: int, steps: int) -> list[int]:
    """How many programs may share a tile's sum: about one, or about two, for each of 132 processors."""
    if tiles > 264:
        return [1]
    wanted = {max(1, 132 // tiles), max(1, 264 // tiles)}
    if tiles >= 80:
        wanted.add(1)
    return sorted(split for split in wanted if split <= 32 and steps // split >= 4)


_WHOLE = (
    # channels, depth, stages, splits
    (16, 64, 4, (2, 3)),
    (16, 64, 3, (2, 3)),
    (16, 64, 2, (3,)),
    (16, 32, 5, (3,)),
    (16, 128, 2, (2, 3)),
    (32, 32, 3, (3,)),
)

_HALO = (
    # pixels, channels, stages, programs
    (256, 64, 3, (132,)),
    (256, 64, 2, (132,)),
    (256, 128, 2, (132,)),
    (128, 128, 3, (132,)),
    (128, 64, 4, (132,)),
    (128, 64, 2, (132, 264)),
    (64, 64, 6, (132,)),
    (64, 64, 3, (132, 264)),
    (64, 128, 3, (132,)),
)

_SHAPES = (
    # form, m, n, k, warps, stages
    ("", 128, 128, 64, 8, 3),
    ("", 128, 128, 64, 4, 4),
    ("", 128, 64, 64, 4, 4),
    ("", 64, 256, 64, 4, 3),
    ("", 64, 128, 64, 4, 4),
    ("", 64, 128, 128, 4, 3),
    ("", 64, 64, 64, 4, 5),
    ("", 64, 64, 128, 4, 3),
    ("wide", 64, 128, 64, 4, 4),
    ("wide", 64, 128, 64, 8, 4),
    ("wide", 128, 128, 64, 8, 4),
    ("swap", 64, 64, 64, 4, 6),
    ("swap", 64, 128, 64, 8, 5),
    ("swap", 128, 64, 64, 4, 4),
    ("swap", 256, 64, 64, 4, 4),
    ("swap", 128, 128, 64, 8, 4),
    ("swap", 256, 128, 64, 8, 4),
)
