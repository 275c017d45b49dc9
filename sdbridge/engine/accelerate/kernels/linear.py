"""How do the UNet's linear layers run: by which kernel, with bias, GEGLU, LayerNorm and residual folded in?

Every function takes row-major tokens ``x [M, K]`` and a weight ``[N, K]`` as nn.Linear has it (rows of a
packed tensor are fine); neither is ever copied or laid out anew. ``pick`` names the way for a ``Problem``:

- ``torch``: plain operations, on any device (what CPU and a CUDA without Triton get);
- ``library``: cuBLAS, then one pointwise kernel for what cuBLAS cannot fold in;
- a tile such as ``128x64x64.w4.s3.g8.split1``: everything in one kernel of ours;
- with a LayerNorm the way of normalising before it: ``separate:library``, ``separate:TILE``, ``inside:TILE``
  (the kernel takes its rows' moments itself), ``given:TILE`` (the layer before left them).
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

Norm = tuple[Tensor, Tensor, float]


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
    norm: bool = False
    moments_given: bool = False
    moments_wanted: bool = False
    in_place: bool = False  # the result overwrites the residual

    @property
    def key(self) -> str:
        flags = ("bias", "residual", "geglu", "norm", "moments_given", "moments_wanted", "in_place")
        said = "+".join(flag for flag in flags if getattr(self, flag)) or "plain"
        return f"linear {self.m}x{self.n}x{self.k} {self.dtype} {said}"


@dataclass(frozen=True)
class Moments:
    """Mean and sum of squared distances of each row in groups of ``width`` columns: ``[2, M, groups]``."""

    values: Tensor
    width: int


@dataclass(frozen=True)
class Way:
    """A parsed choice: how to normalise ('' where nothing is), and the tile (None: the library)."""

    norm: str
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
    return run_problem(x, weight, bias, residual, out, pick=pick, workspace=workspace)[0]


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
    return run_problem(x, weight, bias, None, out, geglu=True, pick=pick, workspace=workspace)[0]


def layer_norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    geglu: bool = False,
    residual: Tensor | None = None,
    moments: Moments | None = None,
    out: Tensor | None = None,
    *,
    pick: Pick | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """``linear`` or ``linear_geglu`` of LayerNorm(x); ``moments`` of x, if the layer before left them."""
    return run_problem(
        x,
        weight,
        bias,
        residual,
        out,
        geglu=geglu,
        norm=(norm_weight, norm_bias, eps),
        moments=moments,
        pick=pick,
        workspace=workspace,
    )[0]


def linear_with_moments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    *,
    pick: Pick | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Moments]:
    """``linear``, and each row's moments for a ``layer_norm_linear`` that follows."""
    result, moments = run_problem(x, weight, bias, residual, out, wanted=True, pick=pick, workspace=workspace)
    assert moments is not None
    return result, moments


@cache
def triton_here() -> bool:
    """Whether Triton is installed; its kernels need CUDA besides (or its interpreter, in tests)."""
    return importlib.util.find_spec("triton") is not None


def parse_way(text: str, problem: Problem) -> Way | None:
    """The way that ``text`` spells for this problem, or None where it is none or does not fit."""
    norm, _, rest = text.rpartition(":")
    if problem.norm != bool(norm) or norm not in ("", "separate", "inside", "given"):
        return None
    if norm == "given" and not problem.moments_given:
        return None
    if rest == "library":
        return Way(norm, None) if norm in ("", "separate") else None
    tile = parse_tile(rest)
    return None if tile is None else Way(norm, tile)


def default_way(problem: Problem) -> str:
    """A sensible way where nothing was measured on this card.

    A product alone is cuBLAS's: on an H200 it is a tenth to a third ahead of any tile. A tile wins where it
    saves kernels, and that is GEGLU. LayerNorm folded into the product lost everywhere it was measured.
    """
    known = _measured_on_hopper().get(problem.key)
    if known is not None:
        return known
    if problem.in_place and not problem.bias:
        return "library"
    if not (problem.residual or problem.geglu or problem.moments_wanted):
        return "separate:library" if problem.norm else "library"
    m, n = problem.m, problem.n
    tile_m, tile_n = next((s for s in _DEFAULT_SHAPES if -(-m // s[0]) * -(-n // s[1]) >= 240), (64, 32))
    tiles = -(-m // tile_m) * -(-n // tile_n)
    split = 1
    while tiles * split < 100 and split < 8 and problem.k >= 256 * split:
        split *= 2
    hopper = _on_hopper()
    stages = 2 if hopper and tile_m > 64 else 3
    warps = 4 if hopper or tile_m == 64 else 8
    tile = Tile(tile_m, tile_n, 64, warps, stages, 8, split, tma=hopper)
    return f"separate:{tile}" if problem.norm else str(tile)


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


def problem_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    geglu: bool,
    norm: bool,
    given: bool,
    wanted: bool,
    in_place: bool = False,
) -> Problem:
    """The problem that these operands pose."""
    n = weight.shape[0] // 2 if geglu else weight.shape[0]
    dtype = str(x.dtype).removeprefix("torch.")
    flags = (bias is not None, residual is not None, geglu, norm, given, wanted, in_place)
    return Problem(x.shape[0], n, x.shape[1], dtype, *flags)


def run_problem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    *,
    geglu: bool = False,
    norm: Norm | None = None,
    moments: Moments | None = None,
    wanted: bool = False,
    pick: Pick | None,
    workspace: Workspace | None,
) -> tuple[Tensor, Moments | None]:
    """All of the above in one: what a problem asks for, by the way that ``pick`` names."""
    given = moments is not None
    problem = problem_of(
        x,
        weight,
        bias,
        residual,
        geglu=geglu,
        norm=norm is not None,
        given=given,
        wanted=wanted,
        in_place=residual is not None and out is not None and out.data_ptr() == residual.data_ptr(),
    )
    text = (pick or default_way)(problem)
    if not _fits_triton(x, weight, residual):
        text = "torch"
    way = None if text == "torch" else parse_way(text, problem) or parse_way(default_way(problem), problem)
    if way is None:
        return _run_torch(x, weight, bias, residual, out, geglu, norm, wanted)
    if out is None:
        out = torch.empty((problem.m, problem.n), dtype=x.dtype, device=x.device)
    kernels = _kernels()
    if way.norm == "separate":
        assert norm is not None
        normal = torch.empty_like(x)
        chained = way.tile is not None and way.tile.chained
        kernels.launch_norm(x, *norm, normal, chained=chained)
        x, norm, moments = normal, None, None
    if way.norm == "inside":
        moments = None
    if way.tile is None:
        left = _run_library(kernels, x, weight, bias, residual, out, geglu, wanted)
        return out, left
    tile = way.tile
    left = None
    if wanted:
        groups = -(-problem.n // tile.n)
        values = torch.empty((2, problem.m, groups), dtype=torch.float32, device=x.device)
        left = Moments(values, tile.n)
    kernels.launch_gemm(
        tile,
        x,
        weight,
        out,
        bias=bias,
        residual=residual,
        geglu=geglu,
        norm=norm,
        moments_in=None if moments is None else (moments.values, moments.values.shape[2], moments.width),
        moments_out=None if left is None else left.values,
        workspace=_parts(tile, problem, workspace or default_workspace(x.device)),
    )
    return out, left


def _parts(tile: Tile, problem: Problem, workspace: Workspace) -> tuple[Tensor, Tensor] | None:
    if tile.split == 1 and not tile.stream:
        return None
    tiles = -(-problem.m // tile.m) * -(-problem.n // tile.n)
    parts = 2 * tile.stream if tile.stream else tiles * tile.split
    return workspace.hold(parts * tile.m * tile.n * (2 if problem.geglu else 1), tiles)


def _run_library(
    kernels: ModuleType,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    geglu: bool,
    wanted: bool,
) -> Moments | None:
    """cuBLAS, which folds a bias in; a residual, GEGLU or moments take a pointwise kernel behind it."""
    if residual is None and not geglu and not wanted:
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias, x, weight.t(), out=out)
        return None
    if residual is not None and out.data_ptr() == residual.data_ptr() and not (geglu or wanted):
        out.addmm_(x, weight.t())  # cuBLAS adds in place; only a bias is left to do
        if bias is not None:
            kernels.launch_finish(out, out, bias=bias)
        return None
    product = torch.mm(x, weight.t())
    values = torch.empty((2, out.shape[0], 1), dtype=torch.float32, device=x.device) if wanted else None
    kernels.launch_finish(product, out, bias=bias, residual=residual, geglu=geglu, moments_out=values)
    return None if values is None else Moments(values, out.shape[1])


def _run_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    geglu: bool,
    norm: Norm | None,
    wanted: bool,
) -> tuple[Tensor, Moments | None]:
    """The same in plain operations: the form that all others are compared with."""
    if norm is not None:
        x = F.layer_norm(x, (x.shape[1],), norm[0], norm[1], norm[2])
    value = F.linear(x, weight, bias)
    if geglu:
        hidden, gate = value.chunk(2, dim=-1)
        value = hidden * F.gelu(gate)
    if residual is not None:
        value = value + residual
    if out is not None:
        value = out.copy_(value)
    if not wanted:
        return value, None
    seen = value.float()
    mean = seen.mean(1)
    spread = (seen - mean[:, None]).square().sum(1)
    return value, Moments(torch.stack((mean, spread))[:, :, None].contiguous(), value.shape[1])


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
