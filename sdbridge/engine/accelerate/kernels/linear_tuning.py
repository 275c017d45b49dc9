"""Which ways of computing a linear layer are worth timing, and how is one timed?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate.kernels.linear import (
    Problem,
    Workspace,
    default_way,
    parse_way,
    run_problem,
)
from sdbridge.engine.accelerate.kernels.tiles import Tile
from sdbridge.engine.accelerate.kernels.tuning import Progress, Tuner

_WORST_ERROR = 5e-3  # against plain operations in float32; a half-precision result is about 4e-4 off


@dataclass(frozen=True)
class LinearTuning:
    """A ``Problem`` as the tuner wants it: candidates, and calls that rotate among weights."""

    problem: Problem

    @property
    def key(self) -> str:
        return self.problem.key

    @property
    def weight_bytes(self) -> int:
        return self.problem.n * self.problem.k * (4 if self.problem.geglu else 2)

    def candidates(self) -> tuple[str, ...]:
        return ("library", *map(str, candidate_tiles(self.problem, *_card())))

    def allowed(self, candidate: str) -> bool:
        return parse_way(candidate) is not None

    def bind(
        self, device: torch.device, slab: Tensor, copies: int
    ) -> Callable[[str], list[Callable[[], object]]]:
        """For a candidate, calls that each read other weights out of ``slab`` (random, flat)."""
        p = self.problem
        size = p.n * p.k * (2 if p.geglu else 1)
        last = max(1, slab.numel() - size)
        step = -(-size // 64) * 64
        starts = [i * step % last // 64 * 64 for i in range(copies)]
        weights = [slab[at : at + size].view(-1, p.k) for at in starts]
        given = [self._operands(device) for _ in range(2)]
        out = (
            given[0]["residual"]
            if p.in_place
            else torch.empty((p.m, p.n), dtype=given[0]["x"].dtype, device=device)
        )
        workspace = Workspace(device)

        def calls(candidate: str) -> list[Callable[[], object]]:
            def pick(_: Problem) -> str:
                return candidate

            return [
                partial(
                    run_problem,
                    **(given[0] if p.in_place else given[i % 2]),
                    weight=weight,
                    out=out,
                    pick=pick,
                    workspace=workspace,
                )
                for i, weight in enumerate(weights)
            ]

        return calls

    def agrees(self, device: torch.device, candidate: str) -> bool:
        """Whether the candidate's answer is that of plain operations in float32: trust, but look."""
        p = self.problem
        given = self._operands(device)
        weight = torch.randn(p.n * (2 if p.geglu else 1), p.k, device=device) * p.k**-0.5
        weight = weight.to(given["x"].dtype)
        wide: dict[str, Any] = {
            name: value.float() if isinstance(value, Tensor) else value for name, value in given.items()
        }
        out = given["residual"] if p.in_place else None
        found = run_problem(**given, weight=weight, out=out, pick=lambda _: candidate, workspace=None)
        truth = run_problem(**wide, weight=weight.float(), out=None, pick=lambda _: "torch", workspace=None)
        return bool((found.float() - truth).norm() / truth.norm() < _WORST_ERROR)

    def _operands(self, device: torch.device) -> dict[str, Any]:
        """Random operands, all but the weight and the place of the result."""
        p = self.problem
        dtype = getattr(torch, p.dtype)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, device=device).to(dtype)

        return {
            "x": random(p.m, p.k),
            "bias": random(p.n * (2 if p.geglu else 1)) if p.bias else None,
            "residual": random(p.m, p.n) if p.residual else None,
            "geglu": p.geglu,
        }


class MeasuredWays:
    """A ``pick`` that takes what a tuner measured, and knows what it was asked (so, what to tune)."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._asked: dict[str, Problem] = {}

    def __call__(self, problem: Problem) -> str:
        self._asked[problem.key] = problem
        return self._tuner.choice(LinearTuning(problem)) or default_way(problem)

    @property
    def asked(self) -> tuple[Problem, ...]:
        """Every problem so far."""
        return tuple(self._asked.values())

    def tune(self, device: torch.device, progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Time all that was asked for since the beginning: seconds a problem, never inside a frame."""
        self._tuner.tune([LinearTuning(problem) for problem in self._asked.values()], device, progress)


def _card() -> tuple[int, bool]:
    """How many processors the card has, and whether it has Hopper's copy engine."""
    if not torch.cuda.is_available():
        return 132, True
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.multi_processor_count, properties.major >= 9


def candidate_tiles(problem: Problem, processors: int = 132, copy_engine: bool = True) -> list[Tile]:
    """The tiles worth timing: shapes that waste little, each with the splits that help fill the card."""
    found = []
    for m, n, k, warps, stages in _SHAPES:
        if problem.geglu and n > 128:
            continue
        if (m > 64 and problem.m <= 64) or (n > 64 and problem.n <= 64) or (k > 64 and problem.k % k):
            continue
        tiles = -(-problem.m // m) * -(-problem.n // n)
        for split in (1, 2, 4, 8) if stages > 2 else (1,):
            if split > 1 and (tiles * split > 3 * processors or problem.k < 192 * split):
                continue
            if split == 1 and tiles < processors // 11 and problem.k >= 640:
                continue  # a tenth of the card: a split is always faster
            found.append(Tile(m, n, k, warps, stages, 8, split))
    if not copy_engine:
        return found
    plain = [tile for tile in found if (tile.m, tile.n, tile.k, tile.warps, tile.stages) in _PLAIN_TOO]
    return plain + [replace(tile, tma=True) for tile in found]


#: Where there is a copy engine, these are timed without it as well.
_PLAIN_TOO = (
    (128, 256, 64, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (64, 64, 64, 4, 5),
    (64, 32, 128, 4, 4),
)

_SHAPES = (
    # m, n, k, warps, stages: the register and shared-memory limits of sm_80 to sm_90 hold for most of them
    (128, 256, 64, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 8, 2),
    (128, 128, 64, 4, 3),
    (128, 64, 64, 4, 4),
    (128, 64, 64, 4, 2),
    (128, 64, 64, 8, 4),
    (128, 64, 64, 8, 2),
    (128, 32, 64, 4, 4),
    (64, 256, 64, 4, 3),
    (64, 128, 64, 4, 4),
    (64, 128, 64, 4, 2),
    (64, 64, 64, 4, 5),
    (64, 64, 64, 4, 3),
    (64, 64, 64, 4, 2),
    (64, 64, 128, 4, 3),
    (64, 32, 64, 4, 6),
    (64, 32, 128, 4, 4),
)
