"""How is a UNet's 3x3 convolution computed as one matrix product over gathered pixels? (Triton, launch.)

Imported only where Triton is installed; ``unet_conv.py`` decides when. The product is ``[pixels, 9 C] x
[9 C, N]``: its left factor is gathered from the channels-last rows, one kernel position ("tap") and
``BLOCK_K`` channels at a time; its right factor is the weight as channels-last memory has it, ``[N, 9 C]``.
"""

# mypy: ignore-errors
# (Triton's language is Python only by its syntax; sizes and compile-time values are written large.)

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from sdbridge.engine.accelerate.kernels.linear_triton import _chain, _fetch_ahead
from sdbridge.engine.accelerate.kernels.tiles import Tile


@triton.jit
def _store(value, bias, out, rows, cols, M, N, SWAP: tl.constexpr):
    """Bias, and the store; ``value`` lies ``[channels, pixels]`` for SWAP."""
    column = tl.minimum(cols, N - 1)
    if SWAP:
        if bias is not None:
            value += tl.load(bias + column).to(tl.float32)[:, None]
        at = out + rows[None, :] * N + cols[:, None]
        here = (rows < M)[None, :] & (cols < N)[:, None]
    else:
        if bias is not None:
            value += tl.load(bias + column).to(tl.float32)[None, :]
        at = out + rows[:, None] * N + cols[None, :]
        here = (rows < M)[:, None] & (cols < N)[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=here)


@triton.jit
def _inside(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit(do_not_specialize=["in_height", "in_width", "out_height", "out_width"])
def conv_taps(
    x, weight, x_tma, weight_tma, bias, out, partials, arrivals,
    M, N, C, x_stride, in_height, in_width, out_height, out_width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, STRIDE: tl.constexpr, UP: tl.constexpr, EVEN_C: tl.constexpr,
    SWAP: tl.constexpr, WIDE: tl.constexpr, APART: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """``BLOCK_M`` pixels of ``BLOCK_N`` (WIDE: and a quarter more) channels.

    With the copy engine (``x_tma``, SWAP only) a tile is a box of the picture; what lies outside it
    arrives as zeros. With SPLIT > 1 the last arriving part finishes the tile, or, APART, another kernel does.
    """
    WIDTH: tl.constexpr = BLOCK_N + BLOCK_N // 4 if WIDE else BLOCK_N
    ROWS: tl.constexpr = BLOCK_N if SWAP else BLOCK_M
    COLUMNS: tl.constexpr = BLOCK_M if SWAP else BLOCK_N
    MORE: tl.constexpr = BLOCK_N // 4
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, WIDTH)
    program = tl.program_id(0)
    part = tl.program_id(1)
    in_group = GROUP * tiles_n
    first_m = (program // in_group) * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    tile_m = first_m + (program % in_group) % height
    tile_n = (program % in_group) // height
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * WIDTH + tl.arange(0, BLOCK_N)
    more_cols = tile_n * WIDTH + BLOCK_N + tl.arange(0, MORE)
    row = tl.minimum(rows, M - 1)  # tiles over the edge compute a neighbour twice, and store nothing
    column = tl.minimum(cols, N - 1)
    more_column = tl.minimum(more_cols, N - 1)

    chunks = tl.cdiv(C, BLOCK_K)
    K = 9 * C
    per_part = tl.cdiv(9 * chunks, SPLIT)
    begin = part * per_part
    end = tl.minimum(begin + per_part, 9 * chunks)
    tap = begin // chunks
    channel = (begin - tap * chunks) * BLOCK_K
    if CHAINED:
        gdc_launch_dependents()
        if tile_m == 0:
            ahead = tl.minimum(end * BLOCK_K, K)
            _fetch_ahead(weight, column, K, tl.minimum(begin * BLOCK_K, ahead), ahead)
            if WIDE:
                _fetch_ahead(weight, more_column, K, tl.minimum(begin * BLOCK_K, ahead), ahead)
        gdc_wait()  # from here on what other kernels wrote is read

    area = out_height * out_width
    picture = row // area
    place = row - picture * area
    top = (place // out_width) * STRIDE - 1
    left = (place % out_width) * STRIDE - 1
    first = picture * (in_height * in_width)
    reach_y = in_height
    reach_x = in_width
    if UP:
        reach_y = in_height * 2
        reach_x = in_width * 2

    box_picture = (tile_m * BLOCK_M) // area
    box_place = tile_m * BLOCK_M - box_picture * area
    box_y = box_place // out_width - 1
    box_x = box_place % out_width - 1

    offset = tl.arange(0, BLOCK_K)
    weight_at = weight + column * K
    more_at = weight + more_column * K
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    more = tl.zeros((BLOCK_M, MORE), tl.float32)
    for _ in range(begin, end):
        channel = tl.multiple_of(channel, BLOCK_K)
        y = top + tap // 3
        x_ = left + tap % 3
        there = (y >= 0) & (y < reach_y) & (x_ >= 0) & (x_ < reach_x)
        if UP:
            pixel = first + (y >> 1) * in_width + (x_ >> 1)
        else:
            pixel = first + y * in_width + x_
        k = channel + offset
        keep = there[:, None]
        if not EVEN_C:
            keep = keep & (k < C)[None, :]
        w = tap * C + k
        if x_tma is not None:
            a = x_tma.load([box_picture, box_y + tap // 3, box_x + tap % 3, channel])
            b = weight_tma.load([tile_n * BLOCK_N, tap * C + channel])
            value = tl.dot(b, tl.reshape(a, (BLOCK_M, BLOCK_K)).T, value)
        else:
            a = tl.load(x + pixel[:, None] * x_stride + k[None, :], mask=keep, other=0.0)
        if x_tma is not None:
            pass
        elif SWAP:
            if EVEN_C:
                b = tl.load(weight_at[:, None] + w[None, :])
            else:
                b = tl.load(weight_at[:, None] + w[None, :], mask=(k < C)[None, :], other=0.0)
            value = tl.dot(b, tl.trans(a), value)
        else:
            if EVEN_C:
                b = tl.load(weight_at[None, :] + w[:, None])
            else:
                b = tl.load(weight_at[None, :] + w[:, None], mask=(k < C)[:, None], other=0.0)
            value = tl.dot(a, b, value)
            if WIDE:
                if EVEN_C:
                    d = tl.load(more_at[None, :] + w[:, None])
                else:
                    d = tl.load(more_at[None, :] + w[:, None], mask=(k < C)[:, None], other=0.0)
                more = tl.dot(a, d, more)
        channel += BLOCK_K
        turn = channel >= C
        tap = tl.where(turn, tap + 1, tap)
        channel = tl.where(turn, 0, channel)

    if SPLIT == 1:
        _store(value, bias, out, rows, cols, M, N, SWAP)
        if WIDE:
            _store(more, bias, out, rows, more_cols, M, N, False)
    elif APART:  # each part is a whole picture in float32, [part, M, N]
        mine = partials + part.to(tl.int64) * M * N
        _store(value, None, mine, rows, cols, M, N, SWAP)
        if WIDE:
            _store(more, None, mine, rows, more_cols, M, N, False)
    else:
        size: tl.constexpr = BLOCK_M * WIDTH
        slot = partials + (program * SPLIT).to(tl.int64) * size
        at = slot + _inside(ROWS, COLUMNS)
        more_slot = slot + BLOCK_M * BLOCK_N + _inside(BLOCK_M, MORE)
        tl.store(at + part * size, value)
        if WIDE:
            tl.store(more_slot + part * size, more)
        tl.debug_barrier()  # every thread's part lies in memory before the one that counts arrives
        seen = tl.atomic_add(arrivals + program, 1, sem="acq_rel", scope="gpu")
        if seen == SPLIT - 1:
            tl.debug_barrier()
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            for other in tl.static_range(SPLIT):  # in a fixed order, so that frames repeat bit by bit
                total += tl.load(at + other * size, cache_modifier=".cg")
            _store(total, bias, out, rows, cols, M, N, SWAP)
            if WIDE:
                total_more = tl.zeros((BLOCK_M, MORE), tl.float32)
                for other in tl.static_range(SPLIT):
                    total_more += tl.load(more_slot + other * size, cache_modifier=".cg")
                _store(total_more, bias, out, rows, more_cols, M, N, False)
            tl.store(arrivals + program, 0)  # ready for the next replay


@triton.jit
def _shifted(total, value, place, cols_zero, height, width, TAP: tl.constexpr):
    """``total`` plus the tap's products, moved to the pixels that they belong to."""
    y = place // width + (TAP // 3 - 1)
    x = place % width + (TAP % 3 - 1)
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    source = tl.where(there, y * width + x, 0)
    moved = tl.gather(value, source[:, None] + cols_zero[None, :], 0)
    return total + tl.where(there[:, None], moved, 0.0)


@triton.jit(do_not_specialize=["height", "width"])
def conv_whole(
    x, weight, bias, out, partials, arrivals, M, N, C, x_stride, height, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_C: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """A whole small picture (``BLOCK_M`` pixels): each pixel is read once and meets all nine taps.

    The nine products are kept apart and moved to their pixels at the end, so a picture's channels are
    fetched once instead of nine times and the weights' streaming is all that takes time.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    part = tl.program_id(1)
    picture = program // tiles_n
    tile_n = program % tiles_n
    place = tl.arange(0, BLOCK_M)
    rows = picture * BLOCK_M + place
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.minimum(cols, N - 1)
    chunks = tl.cdiv(C, BLOCK_K)
    per_part = tl.cdiv(chunks, SPLIT)
    begin = part * per_part * BLOCK_K
    end = tl.minimum(begin + per_part * BLOCK_K, C)
    K = 9 * C
    if CHAINED:
        gdc_launch_dependents()
        if picture == 0:
            for tap in tl.static_range(9):
                _fetch_ahead(weight, column, K, tap * C + tl.minimum(begin, end), tap * C + end)
        gdc_wait()

    offset = tl.arange(0, BLOCK_K)
    x_at = x + rows[:, None] * x_stride + offset[None, :]
    weight_at = weight + column[None, :] * K + offset[:, None]
    v0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    v1 = v0
    v2 = v0
    v3 = v0
    v4 = v0
    v5 = v0
    v6 = v0
    v7 = v0
    v8 = v0
    for start in range(begin, end, BLOCK_K):
        if EVEN_C:
            a = tl.load(x_at + start)
            b0 = tl.load(weight_at + start)
            b1 = tl.load(weight_at + (start + C))
            b2 = tl.load(weight_at + (start + 2 * C))
            b3 = tl.load(weight_at + (start + 3 * C))
            b4 = tl.load(weight_at + (start + 4 * C))
            b5 = tl.load(weight_at + (start + 5 * C))
            b6 = tl.load(weight_at + (start + 6 * C))
            b7 = tl.load(weight_at + (start + 7 * C))
            b8 = tl.load(weight_at + (start + 8 * C))
        else:
            keep = (start + offset < C)[:, None]
            a = tl.load(x_at + start, mask=(start + offset < C)[None, :], other=0.0)
            b0 = tl.load(weight_at + start, mask=keep, other=0.0)
            b1 = tl.load(weight_at + (start + C), mask=keep, other=0.0)
            b2 = tl.load(weight_at + (start + 2 * C), mask=keep, other=0.0)
            b3 = tl.load(weight_at + (start + 3 * C), mask=keep, other=0.0)
            b4 = tl.load(weight_at + (start + 4 * C), mask=keep, other=0.0)
            b5 = tl.load(weight_at + (start + 5 * C), mask=keep, other=0.0)
            b6 = tl.load(weight_at + (start + 6 * C), mask=keep, other=0.0)
            b7 = tl.load(weight_at + (start + 7 * C), mask=keep, other=0.0)
            b8 = tl.load(weight_at + (start + 8 * C), mask=keep, other=0.0)
        v0 = tl.dot(a, b0, v0)
        v1 = tl.dot(a, b1, v1)
        v2 = tl.dot(a, b2, v2)
        v3 = tl.dot(a, b3, v3)
        v4 = tl.dot(a, b4, v4)
        v5 = tl.dot(a, b5, v5)
        v6 = tl.dot(a, b6, v6)
        v7 = tl.dot(a, b7, v7)
        v8 = tl.dot(a, b8, v8)
    zero = tl.arange(0, BLOCK_N) * 0
    value = v4
    value = _shifted(value, v0, place, zero, height, width, 0)
    value = _shifted(value, v1, place, zero, height, width, 1)
    value = _shifted(value, v2, place, zero, height, width, 2)
    value = _shifted(value, v3, place, zero, height, width, 3)
    value = _shifted(value, v5, place, zero, height, width, 5)
    value = _shifted(value, v6, place, zero, height, width, 6)
    value = _shifted(value, v7, place, zero, height, width, 7)
    value = _shifted(value, v8, place, zero, height, width, 8)

    if SPLIT == 1:
        _store(value, bias, out, rows, cols, M, N, False)
    else:
        size: tl.constexpr = BLOCK_M * BLOCK_N
        slot = partials + (program * SPLIT).to(tl.int64) * size + _inside(BLOCK_M, BLOCK_N)
        tl.store(slot + part * size, value)
        tl.debug_barrier()
        seen = tl.atomic_add(arrivals + program, 1, sem="acq_rel", scope="gpu")
        if seen == SPLIT - 1:
            tl.debug_barrier()
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in tl.static_range(SPLIT):
                total += tl.load(slot + other * size, cache_modifier=".cg")
            _store(total, bias, out, rows, cols, M, N, False)
            tl.store(arrivals + program, 0)


@triton.jit
def sum_parts(
    partials, bias, out, total, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr
):  # fmt: skip
    """What ``conv_taps`` left APART: the parts' sum in a fixed order, and the bias."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < total
    value = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        one = partials + (part * total.to(tl.int64))
        value += tl.load(one + at, mask=here, other=0.0)
    if bias is not None:
        value += tl.load(bias + at % N, mask=here, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


def launch_taps(
    tile: Tile, form: str, rows, weight, out, sizes, *, stride=1, upsample=False, bias=None, workspace=None
):  # fmt: skip
    """Launch ``conv_taps``; ``sizes`` (height, width) of the input and of the output."""
    (m, n), c = out.shape, rows.shape[1]
    (in_height, in_width), (out_height, out_width) = sizes
    wide, apart = "wide" in form, "apart" in form
    width = tile.n * 5 // 4 if wide else tile.n
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, width)
    partials, arrivals = workspace or (None, None)
    x_tma, weight_tma = _boxes(tile, rows, weight, m // (out_height * out_width), in_height, in_width)
    conv_taps[(tiles, tile.split)](
        rows, weight, x_tma, weight_tma, None if apart else bias, out, partials, arrivals,
        m, n, c, rows.stride(0), in_height, in_width, out_height, out_width,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=tile.group, SPLIT=tile.split,
        STRIDE=stride, UP=upsample, EVEN_C=c % tile.k == 0, SWAP="swap" in form, WIDE=wide, APART=apart,
        CHAINED=tile.chained, num_warps=tile.warps, num_stages=tile.stages, **_chain(tile.chained),
    )  # fmt: skip
    if apart and tile.split > 1:
        block = 1024
        sum_parts[(triton.cdiv(m * n, block),)](
            partials, bias, out, m * n, n, SPLIT=tile.split, BLOCK=block, CHAINED=tile.chained, num_warps=4,
            **_chain(tile.chained),
        )  # fmt: skip


def _boxes(tile: Tile, rows, weight, batch, height, width):
    """What the copy engine is told: boxes of ``tile.m`` pixels of the picture, and rows of the weight."""
    if not tile.tma:
        return None, None
    c, stride = rows.shape[1], rows.stride(0)
    across = min(width, tile.m)
    picture = TensorDescriptor(
        rows,
        [batch, height, width, c],
        [height * width * stride, width * stride, stride, 1],
        [1, tile.m // across, across, tile.k],
    )
    n = weight.shape[0]
    return picture, TensorDescriptor(weight, [n, 9 * c], [9 * c, 1], [tile.n, tile.k])


def launch_whole(tile: Tile, rows, weight, out, size, *, bias=None, workspace=None):
    """Launch ``conv_whole``; ``size`` (height, width), whose product is ``tile.m``."""
    (m, n), c = out.shape, rows.shape[1]
    tiles = (m // tile.m) * triton.cdiv(n, tile.n)
    partials, arrivals = workspace or (None, None)
    conv_whole[(tiles, tile.split)](
        rows, weight, bias, out, partials, arrivals, m, n, c, rows.stride(0), *size,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, SPLIT=tile.split, EVEN_C=c % tile.k == 0,
        CHAINED=tile.chained, num_warps=tile.warps, num_stages=tile.stages, **_chain(tile.chained),
    )  # fmt: skip
