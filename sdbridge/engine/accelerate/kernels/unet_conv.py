"""How do the UNet's 3x3 convolutions run: by cuDNN, or by which kernel of ours?

Pictures are channels-last rows ``[batch * height * width, C]``; the weight is the module's own
``[N, C, 3, 3]`` in channels-last memory, that is ``[N, 9 C]`` rows. Neither is ever copied or laid out anew,
so a LoRA that writes into a weight needs nothing from here. ``pick`` names the way for a ``ConvProblem``:

- ``torch``: plain operations, on any device;
- ``library``: cuDNN (an upsampling is a kernel of its own before it);
- a tile such as ``64x128x64.w4.s4.g8.split3``: pixels x channels x depth, one kernel of ours;
- ``swap:TILE``: the same with the weight as the left factor; ``wide:TILE``: a quarter more channels, 160 or
  320, so that 128 programs make 320 channels of 64x64 pixels, 640 of 32x32 and so on; ``apart:TILE``,
  ``swap-apart:TILE``, ``wide-apart:TILE``: the parts of a split are summed by a second kernel;
- ``whole:TILE``: ``TILE.m`` is the whole picture, whose pixels then are read once instead of nine times;
- ``halo:TILE``: Hopper only, ``TILE.m`` pixels are whole lines, fetched once for three taps; ``TILE.stream``
  programs have equal shares of the whole sum.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.accelerate.kernels import gluon_fits, interpreted
from sdbridge.engine.accelerate.kernels.linear import Workspace, default_workspace, triton_here
from sdbridge.engine.accelerate.kernels.tiles import Tile, parse_tile

_FORMS = ("", "swap", "wide", "apart", "swap-apart", "wide-apart", "whole", "halo")
_SHARED = 232448 - 4096  # bytes a program of the Hopper kernel may take for its ring


@dataclass(frozen=True)
class ConvProblem:
    """What a choice may depend on: the input's size, and what is done with it."""

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    stride: int = 1
    upsample: bool = False
    bias: bool = False
    dtype: str = "float16"

    @property
    def key(self) -> str:
        flags = (("half", self.stride == 2), ("double", self.upsample), ("bias", self.bias))
        said = "+".join(name for name, holds in flags if holds) or "plain"
        size = f"{self.batch}x{self.height}x{self.width}"
        return f"conv3x3 {size} {self.channels}>{self.outputs} {self.dtype} {said}"

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        if self.upsample:
            return 2 * self.height, 2 * self.width
        return (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1

    @property
    def pixels(self) -> int:
        """Rows of the result."""
        height, width = self.out_size
        return self.batch * height * width


@dataclass(frozen=True)
class ConvWay:
    """A parsed choice: which form of kernel, and the tile (None: the library)."""

    form: str
    tile: Tile | None

    @property
    def columns(self) -> int:
        """Channels that one program computes."""
        assert self.tile is not None
        return self.tile.n * 5 // 4 if "wide" in self.form else self.tile.n


Pick = Callable[[ConvProblem], str]


def conv3x3(
    rows: Tensor,
    batch: int,
    height: int,
    width: int,
    weight: Tensor,
    stride: int = 1,
    upsample: bool = False,
    bias: Tensor | None = None,
    pick: Pick | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """The 3x3 convolution (padding 1) of the picture, nearest-doubled before it for ``upsample``; as rows."""
    dtype = str(rows.dtype).removeprefix("torch.")
    problem = ConvProblem(
        batch, height, width, rows.shape[1], weight.shape[0], stride, upsample, bias is not None, dtype
    )
    if not _fits_triton(rows, weight):
        return conv_torch(rows, problem, weight, bias)
    text = (pick or default_way)(problem)
    way = parse_way(text, problem) or parse_way(default_way(problem), problem)
    if text == "torch" or way is None or way.tile is None:
        return conv_torch(rows, problem, weight, bias)
    out = torch.empty((problem.pixels, problem.outputs), dtype=rows.dtype, device=rows.device)
    if (way.form == "halo" or way.tile.tma) and not _fits_copy_engine(rows, weight):
        return conv_torch(rows, problem, weight, bias)
    shared = _parts(way, problem, workspace or default_workspace(rows.device))
    if way.form == "halo":
        _halo().launch_halo(
            way.tile, rows, weight, out, batch, (height, width), upsample=upsample, workspace=shared
        )
        return out
    if way.form == "whole":
        _kernels().launch_whole(way.tile, rows, weight, out, (height, width), bias=bias, workspace=shared)
        return out
    _kernels().launch_taps(
        way.tile,
        way.form,
        rows,
        weight,
        out,
        ((height, width), problem.out_size),
        stride=stride,
        upsample=upsample,
        bias=bias,
        workspace=shared,
    )
    return out


def conv_torch(rows: Tensor, problem: ConvProblem, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same by PyTorch's own functions, on any device: what all others are compared with."""
    picture = rows.view(problem.batch, problem.height, problem.width, -1).permute(0, 3, 1, 2)
    if problem.upsample:
        picture = functional.interpolate(picture, scale_factor=2.0, mode="nearest")
    out = functional.conv2d(picture, weight, bias, problem.stride, 1)
    return out.permute(0, 2, 3, 1).reshape(problem.pixels, problem.outputs)


def parse_way(text: str, problem: ConvProblem) -> ConvWay | None:
    """The way that ``text`` spells for this problem, or None where it is none or does not fit."""
    form, _, rest = text.rpartition(":")
    if form not in _FORMS or (form == "" and ":" in text):
        return None
    if rest == "library":
        return ConvWay("", None) if form == "" else None
    tile = parse_tile(rest)
    if tile is None or ("wide" in form and tile.n < 64) or ("apart" in form and tile.split == 1):
        return None
    if form == "halo":
        return ConvWay(form, tile) if _haloed(tile, problem) else None
    if tile.stream or (tile.tma and not _boxed(form, tile, problem)):
        return None
    small = problem.height * problem.width == tile.m and problem.stride == 1 and not problem.upsample
    if form == "whole" and (not small or tile.n > 32):
        return None
    return ConvWay(form, tile)


def _boxed(form: str, tile: Tile, problem: ConvProblem) -> bool:
    """Whether the tile's pixels are a box of the picture, as the copy engine wants it."""
    plain = problem.stride == 1 and not problem.upsample and problem.channels % 8 == 0
    fits = problem.width % tile.m == 0 or (
        tile.m % problem.width == 0 and problem.height * problem.width % tile.m == 0
    )
    return plain and fits and form.startswith("swap") and problem.dtype == "float16"


def lines_of(pixels: int, width: int) -> tuple[int, int]:
    """Height and width of a tile's box of the picture: whole lines, or a piece of one."""
    across = min(width, pixels)
    return pixels // across, across


def _haloed(tile: Tile, problem: ConvProblem) -> bool:
    """Whether the Hopper kernel can take this tile: its lines divide the picture, its ring fits."""
    high, wide = lines_of(tile.m, problem.width)
    lines = problem.height % high == 0 and problem.width % wide == 0 and high * wide == tile.m
    ring = tile.stages * (((high + 2) * wide + 3 * tile.n) * 128 + 8)
    sound = (
        gluon_fits()
        and tile.stream > 0
        and tile.k == 64
        and tile.n in (64, 128)
        and tile.n == 16 * tile.warps
    )
    plain = problem.stride == 1 and not problem.bias and problem.dtype == "float16"
    deep = problem.channels % 64 == 0 and problem.outputs % 8 == 0
    pieces = wide >= 8 and wide & (wide - 1) == 0 and tile.stages >= 2
    return lines and sound and plain and deep and pieces and ring <= _SHARED


def default_way(problem: ConvProblem) -> str:
    """What was the fastest on an H200, on cards of its kind; cuDNN where nothing was measured."""
    known = _measured_on_hopper().get(problem.key)
    return known if known is not None and parse_way(known, problem) is not None else "library"


@cache
def _measured_on_hopper() -> dict[str, str]:
    """The ways measured on an H200, for cards of its kind; nothing on others."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return {}
    return shipped_ways()


def shipped_ways() -> dict[str, str]:
    """Problem by problem the way that was the fastest on an H200 (``lab/uconv_lab.py`` measured it)."""
    file = Path(__file__).parent / "unet_conv_hopper.json"
    found: dict[str, str] = json.loads(file.read_text("utf-8"))
    return found


def _parts(way: ConvWay, problem: ConvProblem, workspace: Workspace) -> tuple[Tensor, Tensor] | None:
    tile = way.tile
    if tile is None or (tile.split == 1 and not tile.stream):
        return None
    if way.form == "halo":
        tiles = -(-problem.pixels // tile.m) * -(-problem.outputs // tile.n)
        return workspace.hold(2 * tile.stream * tile.m * tile.n, tiles)
    if "apart" in way.form:
        return workspace.hold(tile.split * problem.pixels * problem.outputs, 1)
    tiles = -(-problem.pixels // tile.m) * -(-problem.outputs // way.columns)
    return workspace.hold(tiles * tile.split * tile.m * way.columns, tiles)


def _fits_triton(rows: Tensor, weight: Tensor) -> bool:
    """Whether the kernels can read these: half precision where they lie, channels last."""
    if not triton_here() or not (rows.is_cuda or interpreted()):
        return False
    if rows.dtype not in (torch.float16, torch.bfloat16) or weight.dtype != rows.dtype:
        return False
    return rows.stride(1) == 1 and weight.permute(0, 2, 3, 1).is_contiguous()


def _fits_copy_engine(rows: Tensor, weight: Tensor) -> bool:
    """Whether the card has Hopper's copy engine (or the interpreter plays it), and the addresses suit it."""
    if rows.stride(0) % 8 or rows.data_ptr() % 16 or weight.data_ptr() % 16:
        return False
    return interpreted() or torch.cuda.get_device_capability(rows.device) >= (9, 0)


@cache
def _halo() -> ModuleType:
    return importlib.import_module("sdbridge.engine.accelerate.kernels.unet_conv_hopper")


@cache
def _kernels() -> ModuleType:
    return importlib.import_module("sdbridge.engine.accelerate.kernels.unet_conv_triton")
