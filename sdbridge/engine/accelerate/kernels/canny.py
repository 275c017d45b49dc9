"""Canny edges in four to six Triton kernels: luma, blur, thinned edges as bits, growing, bytes.

Everything but the blur gives the very bits of the plain operations in ``preprocess/canny.py``: products and
sums are rounded one by one (no fused multiply-add). Sixty-four pixels of a row are one word, so that a
round of growing is a few operations on words, and all rounds of a tile are one launch: a program holds
the tile and a margin that is as wide as edges can grow, and nobody waits for a neighbour.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows that one program of the growing holds; all but a margin of ``rounds`` above and below are its own.
GROW_ROWS = 256
#: Words (of 64 pixels) that it holds of each row; all but the first and the last are its own.
GROW_WORDS = 4
_WORD = 64
_TAN_22 = tl.constexpr(math.tan(math.pi / 8))
_TAN_67 = tl.constexpr(math.tan(3 * math.pi / 8))
#: Added to a float32 below 2**22 and taken away again, it leaves the nearest whole number, ties to even.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def _luma_kernel(image, plane, area, width, of_frame, of_channel, of_row, of_column, BLOCK: tl.constexpr):
    """Rec. 601 luma of an RGB picture of any strides, as whole numbers 0..255."""
    frame = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    at = image + frame * of_frame + pixel // width * of_row + pixel % width * of_column
    red = tl.load(at, mask=inside, other=0.0)
    green = tl.load(at + of_channel, mask=inside, other=0.0)
    blue = tl.load(at + 2 * of_channel, mask=inside, other=0.0)
    level = (0.299 * red + 0.587 * green + 0.114 * blue) * 255.0
    tl.store(plane + frame * area + pixel, (level + _ROUND) - _ROUND, mask=inside)


@triton.jit
def _blur_kernel(plane, taps, out, area, height, width,
                 RADIUS: tl.constexpr, DOWN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One direction of a Gaussian blur, edges repeated."""
    frame = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    y = pixel // width
    x = pixel % width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(-RADIUS, RADIUS + 1):
        if DOWN:
            there = tl.minimum(tl.maximum(y + step, 0), height - 1) * width + x
        else:
            there = y * width + tl.minimum(tl.maximum(x + step, 0), width - 1)
        weight = tl.load(taps + RADIUS + step)
        total += weight * tl.load(plane + frame * area + there, mask=inside, other=0.0)
    tl.store(out + frame * area + pixel, total, mask=inside)


@triton.jit
def _level(plane, y, x, height, width):
    """The plane's value, edges repeated."""
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    x = tl.minimum(tl.maximum(x, 0), width - 1)
    return tl.load(plane + y * width + x)


@triton.jit
def _slopes(plane, y, x, height, width, DY: tl.constexpr, DX: tl.constexpr):
    """Both Sobel derivatives at (y + DY, x + DX), summed in the order of the plain form."""
    a = _level(plane, y + (DY - 1), x + (DX - 1), height, width)
    b = _level(plane, y + (DY - 1), x + DX, height, width)
    c = _level(plane, y + (DY - 1), x + (DX + 1), height, width)
    d = _level(plane, y + DY, x + (DX - 1), height, width)
    f = _level(plane, y + DY, x + (DX + 1), height, width)
    g = _level(plane, y + (DY + 1), x + (DX - 1), height, width)
    h = _level(plane, y + (DY + 1), x + DX, height, width)
    i = _level(plane, y + (DY + 1), x + (DX + 1), height, width)
    across = (c - a) + 2.0 * (f - d) + (i - g)
    down = (g + 2.0 * h + i) - (a + 2.0 * b + c)
    return across, down


@triton.jit
def _height(plane, y, x, height, width, DY: tl.constexpr, DX: tl.constexpr):
    """The edge's height at a neighbour; 0 outside of the picture."""
    across, down = _slopes(plane, y, x, height, width, DY, DX)
    inside = (y + DY >= 0) & (y + DY < height) & (x + DX >= 0) & (x + DX < width)
    return tl.where(inside, tl.abs(across) + tl.abs(down), 0.0)


@triton.jit
def _edges_kernel(plane, thresholds, strong, weak, height, width, words, ROWS: tl.constexpr):
    """Thinned edges above the high and the low threshold, 64 pixels a word, the leftmost its lowest bit."""
    word = tl.program_id(0)
    frame = tl.program_id(2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    bit = tl.arange(0, 64)
    y = row[:, None]
    x = (word * 64 + bit)[None, :]
    plane += frame * (height * width)
    across, down = _slopes(plane, y, x, height, width, 0, 0)
    steep = tl.abs(down)
    flat = tl.abs(across)
    here = flat + steep
    before = (here > _height(plane, y, x, height, width, -1, -1)) & (
        here > _height(plane, y, x, height, width, 1, 1)
    )
    behind = (here > _height(plane, y, x, height, width, -1, 1)) & (
        here > _height(plane, y, x, height, width, 1, -1)
    )
    upright = (here > _height(plane, y, x, height, width, -1, 0)) & (
        here >= _height(plane, y, x, height, width, 1, 0)
    )
    level = (here > _height(plane, y, x, height, width, 0, -1)) & (
        here >= _height(plane, y, x, height, width, 0, 1)
    )
    falling = (across >= 0) == (down >= 0)
    ridge = (falling & before) | ((falling == 0) & behind)
    vertical = steep > flat * _TAN_67
    ridge = (vertical & upright) | ((vertical == 0) & ridge)
    horizontal = steep < flat * _TAN_22
    ridge = (horizontal & level) | ((horizontal == 0) & ridge)
    ridge = ridge & (x < width)
    low = tl.load(thresholds)
    high = tl.load(thresholds + 1)
    value = (tl.full([64], 1, tl.int64) << bit.to(tl.int64))[None, :]
    at = (frame * height + row) * words + word
    tl.store(strong + at, tl.sum(tl.where(ridge & (here > high), value, 0), 1), mask=row < height)
    tl.store(weak + at, tl.sum(tl.where(ridge & (here > low), value, 0), 1), mask=row < height)


@triton.jit
def _grow_kernel(strong, weak, out, height, words,
                 ROUNDS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    """``ROUNDS`` times: every set pixel sets its eight neighbours, where ``weak`` allows it."""
    frame = tl.program_id(2)
    i = tl.arange(0, ROWS)
    j = tl.arange(0, WORDS)
    row = (tl.program_id(1) * (ROWS - 2 * ROUNDS) - ROUNDS + i)[:, None]
    word = (tl.program_id(0) * (WORDS - 2) - 1 + j)[None, :]
    there = (row >= 0) & (row < height) & (word >= 0) & (word < words)
    at = (frame * height + row) * words + word
    reached = tl.load(strong + at, mask=there, other=0).to(tl.uint64, bitcast=True)
    allowed = tl.load(weak + at, mask=there, other=0).to(tl.uint64, bitcast=True)
    none = tl.zeros([ROWS, WORDS], dtype=tl.int32)
    above = none + tl.maximum(i - 1, 0)[:, None]
    below = none + tl.minimum(i + 1, ROWS - 1)[:, None]
    left = none + tl.maximum(j - 1, 0)[None, :]
    right = none + tl.minimum(j + 1, WORDS - 1)[None, :]
    one = tl.full([ROWS, WORDS], 1, tl.uint64)
    last = tl.full([ROWS, WORDS], 63, tl.uint64)
    for _ in range(ROUNDS):
        # What is wrong beyond the tile's rim comes in by a pixel a round: the margin takes it all.
        wide = reached | (reached << one) | (reached >> one)
        wide |= (tl.gather(reached, left, 1) >> last) | (tl.gather(reached, right, 1) << last)
        reached = (wide | tl.gather(wide, above, 0) | tl.gather(wide, below, 0)) & allowed
    own = there & (i >= ROUNDS)[:, None] & (i < ROWS - ROUNDS)[:, None]
    own = own & (j >= 1)[None, :] & (j < WORDS - 1)[None, :]
    tl.store(out + at, reached.to(tl.int64, bitcast=True), mask=own)


@triton.jit
def _bytes_kernel(bits, out, area, width, words, BLOCK: tl.constexpr):
    """One byte a pixel again, 0 or 1."""
    frame = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    x = pixel % width
    at = (frame * (area // width) + pixel // width) * words + x // 64
    word = tl.load(bits + at, mask=inside, other=0)
    tl.store(out + frame * area + pixel, ((word >> (x % 64).to(tl.int64)) & 1).to(tl.uint8), mask=inside)


def canny(image: Tensor, thresholds: Tensor, taps: Tensor | None, rounds: int) -> Tensor:
    """RGB ``[F, 3, H, W]`` in 0..1 -> its edges, uint8 ``[F, 1, H, W]`` of 0 and 1.

    ``thresholds`` (low, high) are edge heights, ``taps`` the Gaussian to blur with before, if any.
    """
    plane = luma(image)
    if taps is not None:
        plane = blur(plane, taps)
    width = int(image.shape[-1])
    return unpacked(grow(*edges(plane, thresholds), rounds), width).unsqueeze(1)


def luma(image: Tensor) -> Tensor:
    """``[F, 3, H, W]`` -> whole numbers 0..255, float32 ``[F, H, W]``."""
    image = image.float()
    frames, _, height, width = image.shape
    plane = torch.empty(frames, height, width, dtype=torch.float32, device=image.device)
    area = height * width
    _luma_kernel[(triton.cdiv(area, 512), frames)](
        image, plane, area, width, *image.stride(), BLOCK=512, num_warps=4, enable_fp_fusion=False
    )
    return plane


def blur(plane: Tensor, taps: Tensor) -> Tensor:
    """``[F, H, W]`` blurred across and down with the odd number of ``taps``."""
    frames, height, width = plane.shape
    area, radius = height * width, taps.numel() // 2
    for down in (False, True):
        out = torch.empty_like(plane)
        _blur_kernel[(triton.cdiv(area, 512), frames)](
            plane, taps, out, area, height, width, RADIUS=radius, DOWN=down, BLOCK=512, num_warps=4
        )
        plane = out
    return plane


def edges(plane: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """``[F, H, W]`` -> strong and weak edges as bits, int64 ``[F, H, ceil(W / 64)]``."""
    frames, height, width = plane.shape
    words = triton.cdiv(width, _WORD)
    strong = torch.empty(frames, height, words, dtype=torch.int64, device=plane.device)
    weak = torch.empty_like(strong)
    _edges_kernel[(words, triton.cdiv(height, 4), frames)](
        plane, thresholds, strong, weak, height, width, words, ROWS=4, num_warps=4, enable_fp_fusion=False
    )
    return strong, weak


def grow(strong: Tensor, weak: Tensor, rounds: int) -> Tensor:
    """All bits of ``weak`` that hang together with a bit of ``strong``, up to ``rounds`` pixels away."""
    frames, height, words = strong.shape
    out, most = torch.empty_like(strong), min(_WORD, GROW_ROWS // 4)
    while rounds > 0:
        now = min(rounds, most)
        tiles = (triton.cdiv(words, GROW_WORDS - 2), triton.cdiv(height, GROW_ROWS - 2 * now), frames)
        _grow_kernel[tiles](
            strong, weak, out, height, words, ROUNDS=now, ROWS=GROW_ROWS, WORDS=GROW_WORDS, num_warps=8
        )
        rounds -= now
        if rounds:  # neighbours read what a program wrote only in the next launch
            strong, out = out, torch.empty_like(out)
    return out


def unpacked(bits: Tensor, width: int) -> Tensor:
    """Bits ``[F, H, words]`` -> bytes ``[F, H, width]``."""
    frames, height, words = bits.shape
    out = torch.empty(frames, height, width, dtype=torch.uint8, device=bits.device)
    area = height * width
    _bytes_kernel[(triton.cdiv(area, 1024), frames)](bits, out, area, width, words, BLOCK=1024, num_warps=4)
    return out
