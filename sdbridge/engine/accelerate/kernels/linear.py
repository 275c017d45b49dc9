"""How do the UNet's linear layers run: by which kernel, with bias, GEGLU and residual folded in?

Every function takes row-major tokens ``x [M, K]`` and a weight ``[N, K]`` as nn.Linear has it (rows of a
packed tensor are fine); neither is ever copied or laid out anew. ``pick`` names the way for a ``Problem``:

- ``torch``: plain operations, on any device (what CPU and a CUDA without Triton get);
- ``library``: cuBLAS, then one pointwise kernel for what cuBLAS cannot fold in;
- a tile such as ``128x64x64.w4.s2.g8.split1.tma``: everything in one kernel of ours.

LayerNorm is not folded in: with the rows' moments taken inside the kernel, or left by the layer before, the
product took twice as long on an H200 as the two kernels together (the operand then passes through registers).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from sdbridge.engine.accelerate.kernels.tiles import Tile, parse_tile


@dataclass(frozen=True)
class Problem:
    """What a choice may depend on. ``n`` counts the result's columns (a GEGLU weight has twice as many)."""

    m: int
    n: int
    k: int
    dtype: str = "float16"
    bias: bool = False
    residual: bool = False
    geglu: bool = False
    in_place: bool = False  # the result overwrites the residual

    @property
    def key(self) -> str:
        flags = ("bias", "residual", "geglu", "in_place")
        said = "+".join(flag for flag in flags if getattr(self, flag)) or "plain"
        return f"linear {self.m}x{self.n}x{self.k} {self.dtype} {said}"


@dataclass(frozen=True)
class Way:
    """A parsed choice: the tile, or None for the library."""

    tile: Tile | None


Pick = Callable[[Problem], str]


class Workspace:
    """Where the parts of a split product meet. Two graphs that may run at the same time need one each.

    A larger need is met by a new tensor; the old ones are kept, since captured graphs hold their addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[tuple[Tensor, Tensor]] = []

    def hold(self, floats: int, tiles: int) -> tuple[Tensor, Tensor]:
        if self._kept and self._kept[-1][0].numel() >= floats and self._kept[-1][1].numel() >= tiles:
            return self._kept[-1]
        partials = torch.empty(max(floats, 1 << 20), dtype=torch.float32, device=self._device)
        arrivals = torch.zeros(max(tiles, 4096), dtype=torch.int32, device=self._device)
        self._kept.append((partials, arrivals))
        return partials, arrivals


_workspaces: dict[torch.device, Workspace] = {}


def default_workspace(device: torch.device) -> Workspace:
    """The one used when a call names none: right for one stream of work."""
    return _workspaces.setdefault(device, Workspace(device))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    pick: Pick | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """``x W^T (+ bias) (+ residual)``: one kernel where a tile is picked."""
    return run_problem(x, weight, bias, residual, out, pick=pick, workspace=workspace)


def linear_geglu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    *,
    pick: Pick | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """diffusers' GEGLU, ``hidden * gelu(gate)`` with (hidden, gate) the halves of ``x W^T + bias``."""
    return run_problem(x, weight, bias, None, out, geglu=True, pick=pick, workspace=workspace)


@cache
def triton_here() -> bool:
    """Whether Triton is installed; its kernels need CUDA besides (or its interpreter, in tests)."""
    return importlib.util.find_spec("triton") is not None


def parse_way(text: str) -> Way | None:
    """The way that ``text`` spells, or None where it is none."""
    if text == "library":
        return Way(None)
    tile = parse_tile(text)
    if tile is None or tile.stream:  # equal shares of steps were never the fastest for a plain product
        return None
    return Way(tile)


def default_way(problem: Problem) -> str:
    """A sensible way where nothing was measured on this card.

    A product alone is cuBLAS's: on an H200 it is a tenth to a third ahead of any tile. A tile wins where it
    saves kernels, and that is GEGLU.
    """
    known = _measured_on_hopper().get(problem.key)
    if known is not None:
        return known
    if not (problem.residual or problem.geglu) or (problem.in_place and not problem.bias):
        return "library"
    m, n = problem.m, problem.n
    tile_m, tile_n = next((s for s in _DEFAULT_SHAPES if -(-m // s[0]) * -(-n // s[1]) >= 240), (64, 32))
    tiles = -(-m // tile_m) * -(-n // tile_n)
    split = 1
    while tiles * split < 100 and split < 8 and problem.k >= 256 * split:
        split *= 2
    hopper = _on_hopper()
    stages = 2 if hopper and tile_m > 64 else 3
    warps = 4 if hopper or tile_m == 64 else 8
    return str(Tile(tile_m, tile_n, 64, warps, stages, 8, split, tma=hopper))


_DEFAULT_SHAPES = ((128, 64), (64, 64), (64, 32))


@cache
def _on_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


@cache
def _measured_on_hopper() -> dict[str, str]:
    """The ways measured on an H200, for cards of its kind; nothing on others."""
    return shipped_ways() if _on_hopper() else {}


def shipped_ways() -> dict[str, str]:
    """Problem by problem the way that was the fastest on an H200 (``lab/linear_lab.py`` measured it)."""
    found: dict[str, str] = json.loads((Path(__file__).parent / "linear_hopper.json").read_text("utf-8"))
    return found


def run_problem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    *,
    geglu: bool = False,
    pick: Pick | None,
    workspace: Workspace | None,
) -> Tensor:
    """All of the above in one: what a problem asks for, by the way that ``pick`` names."""
    in_place = residual is not None and out is not None and out.data_ptr() == residual.data_ptr()
    problem = Problem(
        x.shape[0],
        weight.shape[0] // 2 if geglu else weight.shape[0],
        x.shape[1],
        str(x.dtype).removeprefix("torch."),
        bias is not None,
        residual is not None,
        geglu,
        in_place,
    )
    text = (pick or default_way)(problem)
    if text == "torch" or not _fits_triton(x, weight, residual):
        return _run_torch(x, weight, bias, residual, out, geglu)
    way = parse_way(text) or parse_way(default_way(problem))
    if out is None:
        out = torch.empty((problem.m, problem.n), dtype=x.dtype, device=x.device)
    if way is None or way.tile is None:
        return _run_library(x, weight, bias, residual, out, geglu)
    tile = way.tile
    _kernels().launch_gemm(
        tile,
        x,
        weight,
        out,
        bias=bias,
        residual=residual,
        geglu=geglu,
        workspace=_parts(tile, problem, workspace or default_workspace(x.device)),
    )
    return out


def _parts(tile: Tile, problem: Problem, workspace: Workspace) -> tuple[Tensor, Tensor] | None:
    if tile.split == 1:
        return None
    tiles = -(-problem.m // tile.m) * -(-problem.n // tile.n)
    return workspace.hold(tiles * tile.split * tile.m * tile.n * (2 if problem.geglu else 1), tiles)


def _run_library(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, geglu: bool
) -> Tensor:
    """cuBLAS, which folds a bias in; a residual beside it or GEGLU takes a pointwise kernel behind it."""
    if residual is None and not geglu:
        if bias is None:
            return torch.mm(x, weight.t(), out=out)
        return torch.addmm(bias, x, weight.t(), out=out)
    if residual is not None and out.data_ptr() == residual.data_ptr() and not geglu:
        out.addmm_(x, weight.t())  # cuBLAS adds in place; only a bias is left to do
        if bias is not None:
            _kernels().launch_finish(out, out, bias=bias)
        return out
    _kernels().launch_finish(torch.mm(x, weight.t()), out, bias=bias, residual=residual, geglu=geglu)
    return out


def _run_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None, geglu: bool
) -> Tensor:
    """The same in plain operations: the form that all others are compared with."""
    value = F.linear(x, weight, bias)
    if geglu:
        hidden, gate = value.chunk(2, dim=-1)
        value = hidden * F.gelu(gate)
    if residual is not None:
        value = value + residual
    return value if out is None else out.copy_(value)


def _fits_triton(x: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    if x.dtype not in (torch.float16, torch.bfloat16):
        return False  # float32 products would be rounded to tf32
    if not triton_here() or not (x.is_cuda or _interpreting()):
        return False
    return all(tensor is None or tensor.stride(1) == 1 for tensor in (x, weight, residual))


@cache
def _interpreting() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("sdbridge.engine.accelerate.kernels.linear_triton")
