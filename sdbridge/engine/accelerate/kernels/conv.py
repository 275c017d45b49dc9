"""3x3 convolutions of channels-last fp16 pictures, with what follows them, each one Triton kernel.

``taps``: an implicit matrix product over a patch of output pixels, one kernel position ("tap") at a
time: 3x3 with stride 1 or 2; a 3x3 after a nearest 2x upsampling, which is four 2x2 convolutions of
the small picture, one for each parity of the output pixel (4/9 of the arithmetic, and the large
picture is never written); a last layer of few channels, four by four output pixels at once, which is
a 6x6 convolution of stride 4 (each input pixel is read 2.25 times instead of 9).
``entry``: the first layer, straight from RGBA bytes, a float picture or a latent.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sdbridge.engine.accelerate.kernels import gluon_fits, interpreted
from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.recording import is_recording

#: What an entry layer reads.
RGBA, IMAGE, LATENT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
#: What a layer writes: channels-last fp16, planes, 4x4 groups of pixels as planes or as RGBA bytes.
FEATURES, PLANES, GROUP_PLANES, GROUP_RGBA = (tl.constexpr(value) for value in range(4))


@triton.jit
def _turn(given, factor, acc, SWAP: tl.constexpr):
    """``acc`` with one tap more; transposed in and out where the weights are the left factor."""
    if SWAP:
        acc = tl.dot(tl.trans(factor), tl.trans(given), acc)
    else:
        acc = tl.dot(given, factor, acc)
    return acc


@triton.jit
def _emit_features(acc, out, skip, inside, offset, N: tl.constexpr, SKIP: tl.constexpr, RELU: tl.constexpr):
    """Write ``[pixels, N]`` at ``offset`` (one per pixel), with the block's skip and ReLU."""
    column = tl.arange(0, N)
    where = offset[:, None] + column[None, :]
    if SKIP:
        acc += tl.load(skip + where, mask=inside[:, None], other=0.0).to(tl.float32)
    if RELU:
        acc = tl.maximum(acc, 0.0)
    tl.store(out + where, acc.to(tl.float16), mask=inside[:, None])


@triton.jit
def _emit_picture(acc, out, inside, batch, y, x, height, width, scale, shift, real,
                  N: tl.constexpr, OUT: tl.constexpr, M: tl.constexpr):  # fmt: skip
    """Write the last layer: planes of ``(value - shift) * scale``, or 4x4 groups of picture pixels."""
    column = tl.arange(0, N)
    if OUT == PLANES:
        value = (acc - shift) * scale
        where = ((batch * real + column[None, :]) * height + y[:, None]) * width + x[:, None]
        keep = inside[:, None] & (column[None, :] < real)
        tl.store(out + where, value.to(out.dtype.element_ty), mask=keep)
    if OUT == GROUP_PLANES:
        channel = column % 4
        row = y[:, None] * 4 + (column // 16)[None, :]
        place = x[:, None] * 4 + ((column // 4) % 4)[None, :]
        where = ((batch * 3 + channel[None, :]) * height + row) * width + place
        keep = inside[:, None] & (channel[None, :] < 3)
        value = acc * 2.0 - 1.0
        tl.store(out + where, value.to(out.dtype.element_ty), mask=keep)
    if OUT == GROUP_RGBA:
        level = tl.minimum(tl.maximum(acc * 255.0 + 0.5, 0.0), 255.0).to(tl.int32)
        channel = column % 4
        level = tl.where(channel[None, :] == 3, 255, level) << (8 * channel)[None, :]
        word = tl.sum(tl.reshape(level, [M, N // 4, 4]), 2)
        pixel = tl.arange(0, N // 4)
        row = y[:, None] * 4 + (pixel // 4)[None, :]
        place = x[:, None] * 4 + (pixel % 4)[None, :]
        tl.store(out + (batch * height + row) * width + place, word, mask=inside[:, None])


@triton.jit
def taps_kernel(source, weight, bias, skip, out,
                in_height, in_width, rows, columns, out_height, out_width, scale, shift, real,
                C: tl.constexpr, N: tl.constexpr, SIDE: tl.constexpr, STRIDE: tl.constexpr,
                UP: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr, RELU: tl.constexpr,
                OUT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, SWAP: tl.constexpr,
                STAGES: tl.constexpr, CHAIN: tl.constexpr):  # fmt: skip
    """``rows`` x ``columns`` is the grid of places computed; a program does BH x BW of them."""
    tiles = tl.cdiv(columns, BW)
    tile = tl.program_id(0)
    batch = tl.program_id(1)
    down = 0  # the parity of the output pixel, for UP
    right = 0
    if UP:
        down = batch % 4 // 2
        right = batch % 2
        weight += (batch % 4) * (SIDE * SIDE * C * N)
        batch = batch // 4
    pixel = tl.arange(0, BH * BW)
    y = tile // tiles * BH + pixel // BW
    x = tile % tiles * BW + pixel % BW
    inside = (y < rows) & (x < columns)
    top = y * STRIDE - 1 + down
    left = x * STRIDE - 1 + right
    channel = tl.arange(0, C)
    column = tl.arange(0, N)
    corner = ((batch * in_height + top) * in_width + left) * C
    weights = weight + channel[:, None] * N + column[None, :]
    if SWAP:
        acc = tl.zeros([N, BH * BW], dtype=tl.float32)
    else:
        acc = tl.zeros([BH * BW, N], dtype=tl.float32)
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    for tap in tl.range(0, SIDE * SIDE, num_stages=STAGES):
        ky = tap // SIDE
        kx = tap % SIDE
        iy = top + ky
        ix = left + kx
        there = (iy >= 0) & (iy < in_height) & (ix >= 0) & (ix < in_width) & inside
        where = corner + (ky * in_width + kx) * C
        given = tl.load(source + where[:, None] + channel[None, :], mask=there[:, None], other=0.0)
        factor = tl.load(weights + tap * (C * N))
        acc = _turn(given, factor, acc, SWAP)
    if SWAP:
        acc = tl.trans(acc)
    if BIAS:
        acc += tl.load(bias + column)[None, :]
    if OUT == FEATURES:
        if UP:
            y = y * 2 + down
            x = x * 2 + right
        offset = ((batch * out_height + y) * out_width + x) * N
        _emit_features(acc, out, skip, inside, offset, N, SKIP, RELU)
    else:
        _emit_picture(acc, out, inside, batch, y, x, out_height, out_width, scale, shift, real,
                      N, OUT, BH * BW)  # fmt: skip


@triton.jit
def _plane(source, place, there, step, SOURCE: tl.constexpr, scale, shift):
    """One channel of a picture or a latent, as the network takes it; zero outside."""
    value = tl.load(source + place + step, mask=there, other=0.0).to(tl.float32)
    if SOURCE == IMAGE:
        value = value * 0.5 + 0.5
    else:
        value = value / scale + shift
        value = 3.0 - 6.0 / (tl.exp(value * (2.0 / 3.0)) + 1.0)  # 3 * tanh(value / 3)
    return tl.where(there, value, 0.0).to(tl.float16)


@triton.jit
def entry_kernel(source, weight, bias, out, height, width, scale, shift,
                 REAL: tl.constexpr, CP: tl.constexpr, N: tl.constexpr, SOURCE: tl.constexpr,
                 RELU: tl.constexpr, BM: tl.constexpr, CHAIN: tl.constexpr):  # fmt: skip
    """BM pixels of a row: their nine neighbours of CP channels as one row of 16 * CP numbers."""
    x = tl.program_id(0) * BM + tl.arange(0, BM)
    y = tl.program_id(1)
    batch = tl.program_id(2)
    area = height * width
    tap = tl.arange(0, 16)
    iy = y + tap // 3 - 1
    ix = x[:, None] + (tap % 3 - 1)[None, :]
    there = ((iy >= 0) & (iy < height) & (tap < 9))[None, :] & (ix >= 0) & (ix < width)
    place = (iy * width)[None, :] + ix
    if CHAIN:
        gdc_wait()
        gdc_launch_dependents()
    gain = 1.0
    if SOURCE == RGBA:  # weights hold no alpha; a byte is exact in fp16, so 1/255 waits for the sum
        word = tl.load(source + batch * area + place, mask=there, other=0)
        red = (word & 255).to(tl.float16)
        green = ((word >> 8) & 255).to(tl.float16)
        blue = ((word >> 16) & 255).to(tl.float16)
        rows = tl.join(tl.join(red, blue), tl.join(green, tl.zeros_like(red)))
        gain = 1.0 / 255.0
    elif CP == 4:
        source += batch * (REAL * area)
        first = _plane(source, place, there, 0, SOURCE, scale, shift)
        second = tl.zeros_like(first)
        third = tl.zeros_like(first)
        fourth = tl.zeros_like(first)
        if REAL > 1:
            second = _plane(source, place, there, area, SOURCE, scale, shift)
        if REAL > 2:
            third = _plane(source, place, there, 2 * area, SOURCE, scale, shift)
        if REAL > 3:
            fourth = _plane(source, place, there, 3 * area, SOURCE, scale, shift)
        rows = tl.join(tl.join(first, third), tl.join(second, fourth))
    else:
        channel = tl.arange(0, CP)
        keep = there[:, :, None] & (channel < REAL)[None, None, :]
        where = place[:, :, None] + (channel * area)[None, None, :]
        rows = _plane(source + batch * (REAL * area), where, keep, 0, SOURCE, scale, shift)
    inner = tl.arange(0, 16 * CP)
    column = tl.arange(0, N)
    factor = tl.load(weight + inner[:, None] * N + column[None, :])
    acc = tl.dot(tl.reshape(rows, [BM, 16 * CP]), factor) * gain
    acc += tl.load(bias + column)[None, :]
    offset = (batch * area + y * width + x) * N
    _emit_features(acc, out, out, x < width, offset, N, False, RELU)


@cache
def chained() -> bool:
    """Whether each kernel is set up while the one before it still runs (Hopper and later)."""
    return not interpreted() and torch.cuda.get_device_capability()[0] >= 9


def hopper(channels: int) -> frozenset[str]:
    """The kinds of layer that the Hopper kernels do: on its machine code, with Gluon in this Triton."""
    known = _proven.get(channels)
    if known is None:
        if is_recording():  # nothing is proven by kernels that are not launched
            return _rehearsed(channels)
        known = _proven[channels] = _ask_proof("proven", channels)
    return known


_proven: dict[int, frozenset[str]] = {}


@cache
def _rehearsed(channels: int) -> frozenset[str]:
    """All kinds; the kernels of their proof are noted down. What does not stand it is left out later."""
    return _ask_proof("rehearsed", channels)


def _ask_proof(question: str, channels: int) -> frozenset[str]:
    if interpreted() or not gluon_fits() or torch.cuda.get_device_capability()[0] != 9:
        return frozenset()
    try:
        from sdbridge.engine.accelerate.kernels import conv_proof
    except (ImportError, AttributeError):
        return frozenset()
    found: frozenset[str] = getattr(conv_proof, question)(channels)
    return found


def _launch() -> dict[str, bool]:
    return {"launch_pdl": True} if chained() else {}


def pack_taps(weight: Tensor) -> Tensor:
    """``[out, in, 3, 3]`` -> ``[9, in, out]``."""
    count, channels, high, wide = weight.shape
    return weight.permute(2, 3, 1, 0).reshape(high * wide, channels, count).contiguous()


def pack_upsampled(weight: Tensor) -> Tensor:
    """``[out, in, 3, 3]`` after a nearest 2x -> ``[4 parities * 4 taps, in, out]`` on the small picture.

    An even output row sees the small rows above (the first kernel row) and its own (the other two);
    an odd one its own (the first two) and the one below.
    """
    sums = torch.zeros(2, 2, 3, dtype=weight.dtype, device=weight.device)  # parity, small row, kernel row
    sums[0, 0, 0] = sums[0, 1, 1] = sums[0, 1, 2] = 1
    sums[1, 0, 0] = sums[1, 0, 1] = sums[1, 1, 2] = 1
    folded = torch.einsum("oikl,pak,qbl->pqabio", weight, sums, sums)
    return folded.reshape(16, weight.shape[1], weight.shape[0]).contiguous()


def pack_grouped(weight: Tensor) -> Tensor:
    """``[3, in, 3, 3]`` -> ``[36, in, 64]``: 4x4 output pixels of 4 channels (the last is empty) at once."""
    count, channels = weight.shape[:2]
    packed = weight.new_zeros(6, 6, channels, 4, 4, 4)
    for row in range(4):
        for column in range(4):
            packed[row : row + 3, column : column + 3, :, row, column, :count] = weight.permute(2, 3, 1, 0)
    return packed.reshape(36, channels, 64)


def pack_entry(weight: Tensor) -> Tensor:
    """``[out, in, 3, 3]`` -> ``[16 * 4 (or 16), out]``: one row for each tap and channel, padded."""
    count, channels = weight.shape[:2]
    packed = weight.new_zeros(16, entry_channels(channels), count)
    packed[:9, :channels] = weight.permute(2, 3, 1, 0).reshape(9, channels, count)
    return packed.reshape(-1, count)


def entry_channels(channels: int) -> int:
    """How many channels an entry layer pads its input to."""
    return 4 if channels <= 4 else 16


def pack_grouped_bias(bias: Tensor) -> Tensor:
    """``[3]`` -> ``[64]``, as the grouped weights are."""
    return pad_outputs(bias, 4).repeat(16)


def pad_outputs(tensor: Tensor, count: int) -> Tensor:
    """Zeros behind the last dimension up to ``count``."""
    return torch.nn.functional.pad(tensor, (0, count - tensor.shape[-1]))


def run_taps(
    source: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, config: Config, *,
    stride: int = 1, up: bool = False, relu: bool = False, skip: Tensor | None = None,
    to: tl.constexpr = FEATURES, scale: float = 1.0, shift: float = 0.0,
) -> None:  # fmt: skip
    """One convolution of ``[F, H, W, C]`` into ``out``, whose shape says what is wanted."""
    frames, in_height, in_width, channels = source.shape
    if to.value == PLANES.value:
        real, height, width = out.shape[1:]
    elif to.value == GROUP_PLANES.value:
        real, (height, width) = 3, out.shape[2:]
    else:
        real, (height, width) = out.shape[3] if out.dim() == 4 else 4, out.shape[1:3]
    side = {True: 2, False: 3}[up]
    grouped = to.value in (GROUP_PLANES.value, GROUP_RGBA.value)
    if grouped:
        side, stride = 6, 4
    if config.by != "taps":
        _run_on_hopper(source, weight, bias, out, config, stride, up, relu, skip)
        return
    per = 2 if up else 4 if grouped else 1
    rows, columns = height // per, width // per
    tiles = triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns)
    taps_kernel[(tiles, frames * (4 if up else 1))](
        source, weight, weight if bias is None else bias, source if skip is None else skip, out,
        in_height, in_width, rows, columns, height, width, scale, shift, real,
        C=channels, N=weight.shape[-1], SIDE=side, STRIDE=stride, UP=up, BIAS=bias is not None,
        SKIP=skip is not None, RELU=relu, OUT=to.value, BH=config.rows, BW=config.columns,
        SWAP=config.swap, STAGES=config.stages,
        num_warps=config.warps, CHAIN=chained(), **_launch(),
    )  # fmt: skip


def _run_on_hopper(
    source: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, config: Config,
    stride: int, up: bool, relu: bool, skip: Tensor | None,
) -> None:  # fmt: skip
    # Gluon is not in every Triton.
    from sdbridge.engine.accelerate.kernels import conv_double, conv_halve, conv_ring

    if up:
        conv_double.run_double(source, weight, out, config, chained())
    elif stride == 2:
        conv_halve.run_halve(source, weight, out, config, chained())
    else:
        assert bias is not None
        conv_ring.run_ring(source, weight, bias, out, config, relu, skip, chained())


def run_last(
    source: Tensor, weight: Tensor, bias: Tensor, out: Tensor, config: Config, *, rgba: bool
) -> None:
    """The decoder's last layer on Hopper, with weights ``[9, C, 16]``; RGBA goes to int32 ``[F, H, W]``."""
    from sdbridge.engine.accelerate.kernels import conv_last

    conv_last.run_last(source, weight, bias, out, config, rgba, chained())


def run_entry(
    source: Tensor, weight: Tensor, bias: Tensor, out: Tensor, config: Config, *,
    relu: bool = False, kind: tl.constexpr = IMAGE, scale: float = 1.0, shift: float = 0.0,
) -> None:  # fmt: skip
    """The first layer into ``out`` ``[F, H, W, N]``; RGBA comes as int32 ``[F, H, W]``."""
    frames, height, width, count = out.shape
    real = 4 if kind.value == RGBA.value else source.shape[1]
    block = config.rows * config.columns
    entry_kernel[(triton.cdiv(width, block), height, frames)](
        source, weight, bias, out, height, width, scale, shift, REAL=real, CP=weight.shape[0] // 16,
        N=count, SOURCE=kind.value, RELU=relu, BM=block, num_warps=config.warps,
        CHAIN=chained(), **_launch(),
    )  # fmt: skip
