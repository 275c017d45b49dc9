"""The UNet's 3x3 convolution for Hopper: the picture's rows fetched once for three taps, the sum streamed.

A tile is ``PIXELS`` pixels (whole lines of the picture) of ``CHANNELS`` channels. Its sum goes over units: 64
input channels and one kernel column. A unit's lines, one more above and below, arrive by the bulk copy
engine, already shifted by the kernel column (what lies outside arrives as zeros); its three kernel rows are
the same shared memory read one line further each. The weights are the left factor of the product.

As many programs as the card holds have an equal share of all tiles' units each (stream-K): a share begins
and ends inside tiles, and the last to arrive at a shared tile adds the parts. Nobody waits for another.

After a nearest 2x upsampling, the output pixels of one parity see a box of the small picture in each tap.
"""

# mypy: ignore-errors
# (Gluon, like Triton's language, is Python only by its syntax; sizes and compile-time values are large.)

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sdbridge.engine.accelerate.kernels.conv_hopper import barrier, copy_in
from sdbridge.engine.accelerate.kernels.tiles import Tile
from sdbridge.engine.accelerate.kernels.unet_conv import lines_of

#: Input channels of a unit: 128 bytes, the widest line the tensor cores read without a conflict.
DEEP = gl.constexpr(64)


@gluon.jit
def _corner(tile, tiles_m, height, width, HIGH: gl.constexpr, WIDE: gl.constexpr, UP: gl.constexpr):
    """Where a tile lies: picture, line and column of its first pixel, its parity, its first channel tile."""
    tile_m = tile % tiles_m
    parity = 0
    if UP:
        parity = tile_m % 4
        tile_m = tile_m // 4
    across = width // WIDE
    each = across * (height // HIGH)
    picture = tile_m // each
    place = tile_m - picture * each
    return picture, place // across * HIGH, place % across * WIDE, parity, tile // tiles_m


@gluon.jit
def _fetch(lines, edges, weight, space, factors, bars, at, unit, units, tiles_m, height, width, C,
           HIGH: gl.constexpr, WIDE: gl.constexpr, CHANNELS: gl.constexpr, UP: gl.constexpr,
           STAGES: gl.constexpr, boxed: gl.constexpr, wanted):  # fmt: skip
    """Ask for ``unit``, the program's unit number ``at``, if ``wanted``: its lines and three weights.

    Predicates instead of a branch: registers of products under way must not cross one.
    """
    tile = unit // units
    step = unit - tile * units
    picture, y, x, parity, tile_n = _corner(tile, tiles_m, height, width, HIGH, WIDE, UP)
    channel = step // 3 * DEEP
    column = step % 3
    slot = at % STAGES
    bar = bars.index(slot)
    mbarrier.expect(bar, ((HIGH + 2) * WIDE + 3 * CHANNELS) * DEEP * 2, pred=wanted)
    top = y - 1
    left = x + column - 1
    if UP:
        top = y - 1 + parity // 2
        left = x - 1 + parity % 2 + (column + 1 - parity % 2) // 2
    body = space.index(slot * (HIGH + 2))._reinterpret(gl.float16, [1, HIGH, WIDE, DEEP], boxed)
    copy_in(lines, [picture, top, left, channel], bar, body, pred=wanted)
    rest = space.index(slot * (HIGH + 2) + HIGH)._reinterpret(gl.float16, [1, 2, WIDE, DEEP], boxed)
    copy_in(edges, [picture, top + HIGH, left, channel], bar, rest, pred=wanted)
    for row in gl.static_range(3):
        where = (row * 3 + column) * C + channel
        copy_in(weight, [tile_n * CHANNELS, where], bar, factors.index(slot * 3 + row), pred=wanted)


@gluon.jit
def _fetch_ahead(weights, first, stop, units, tiles_m, N, C, CHANNELS: gl.constexpr,
                 num_warps: gl.constexpr):  # fmt: skip
    """Ask for the share's weights into the L2 cache while the kernel before this one still runs."""
    each: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    for unit in range(first, stop):
        tile = unit // units
        step = unit - tile * units
        row = gl.minimum(tile // tiles_m * CHANNELS + gl.arange(0, CHANNELS, each), N - 1)
        line = weights + row * (9 * C) + step % 3 * C + step // 3 * DEEP
        for tap in gl.static_range(3):
            gl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                "=r,l",
                [(line + tap * 3 * C).to(gl.int64)],
                dtype=gl.int32,
                is_pure=False,
                pack=1,
            )


@gluon.jit
def _emit(acc, out, picture, y, x, parity, tile_n, height, width, N, PIXELS: gl.constexpr,
          CHANNELS: gl.constexpr, WIDE: gl.constexpr, UP: gl.constexpr, plain: gl.constexpr):  # fmt: skip
    """Write a finished tile, ``[channels, pixels]``, as rows."""
    value = gl.convert_layout(acc.to(gl.float16), plain)
    channel = tile_n * CHANNELS + gl.arange(0, CHANNELS, gl.SliceLayout(1, plain))
    pixel = gl.arange(0, PIXELS, gl.SliceLayout(0, plain))
    line = y + pixel // WIDE
    place = x + pixel % WIDE
    if UP:
        row = (picture * height * 2 + line * 2 + parity // 2) * width * 2 + place * 2 + parity % 2
    else:
        row = (picture * height + line) * width + place
    keep = (channel < N)[:, None] & (row >= 0)[None, :]
    gl.store(out + row[None, :] * N + channel[:, None], value, mask=keep)


@gluon.jit(do_not_specialize=["height", "width", "units", "tiles_m", "total", "share"])
def halo_stream(lines, edges, weight, weights, out, partials, arrivals, height, width, N, C, units, tiles_m,
                total, share, HIGH: gl.constexpr, WIDE: gl.constexpr, CHANNELS: gl.constexpr,
                UP: gl.constexpr, STAGES: gl.constexpr, CHAIN: gl.constexpr,
                num_warps: gl.constexpr):  # fmt: skip
    """``share`` of ``total`` units; ``units`` make a tile."""
    PIXELS: gl.constexpr = HIGH * WIDE
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, PIXELS, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    boxed: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=4)
    plain: gl.constexpr = gl.BlockedLayout([8, 1], [CHANNELS // 8, 256 // CHANNELS], [1, num_warps], [0, 1])
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (HIGH + 2), WIDE, DEEP], flat)
    factors = gl.allocate_shared_memory(gl.float16, [STAGES * 3, CHANNELS, DEEP], flat)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES):
        mbarrier.init(bars.index(each), count=1)
    barrier()
    program = gl.program_id(0)
    first = program * share
    stop = gl.minimum(first + share, total)
    if CHAIN:
        gdc_launch_dependents()
        _fetch_ahead(weights, first, stop, units, tiles_m, N, C, CHANNELS, num_warps)
        gdc_wait()  # from here on what the kernel before wrote is read
    for early in gl.static_range(STAGES - 1):
        _fetch(lines, edges, weight, space, factors, bars, early, first + early, units, tiles_m, height,
               width, C, HIGH, WIDE, CHANNELS, UP, STAGES, boxed, first + early < stop)  # fmt: skip
    inside = (
        gl.arange(0, CHANNELS, gl.SliceLayout(1, sums))[:, None] * PIXELS
        + gl.arange(0, PIXELS, gl.SliceLayout(0, sums))[None, :]
    )
    at = first
    while at < stop:
        tile = at // units
        here = gl.minimum((tile + 1) * units, stop) - at
        picture, y, x, parity, tile_n = _corner(tile, tiles_m, height, width, HIGH, WIDE, UP)
        acc = gl.zeros([CHANNELS, PIXELS], gl.float32, sums)
        for step in range(here):
            number = at + step - first
            slot = number % STAGES
            mbarrier.wait(bars.index(slot), (number // STAGES) & 1)
            for row in gl.static_range(3):
                line = row
                if UP:
                    line = (row + 1 - parity // 2) // 2
                seen = space.index(slot * (HIGH + 2) + line)._reinterpret(gl.float16, [PIXELS, DEEP], flat)
                acc = warpgroup_mma(factors.index(slot * 3 + row), seen.permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(3, deps=[acc])  # the unit before is done: its place is free
            barrier()
            ahead = at + step + STAGES - 1
            _fetch(lines, edges, weight, space, factors, bars, number + STAGES - 1, ahead, units, tiles_m,
                   height, width, C, HIGH, WIDE, CHANNELS, UP, STAGES, boxed, ahead < stop)  # fmt: skip
        acc = warpgroup_mma_wait(0, deps=[acc])
        complete = here == units
        if here < units:
            slot = program * 2 + (at != first).to(gl.int32)
            gl.store(partials + slot.to(gl.int64) * (CHANNELS * PIXELS) + inside, acc)
            barrier()  # every thread's part lies in memory before the one that counts arrives
            owner = (tile * units) // share
            last = (tile * units + units - 1) // share
            if gl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == last - owner:
                barrier()
                acc = gl.zeros([CHANNELS, PIXELS], gl.float32, sums)
                while owner <= last:  # in a fixed order, so that frames repeat bit by bit
                    slot = owner * 2 + ((owner * share) // units != tile).to(gl.int32)
                    part = partials + slot.to(gl.int64) * (CHANNELS * PIXELS) + inside
                    acc += gl.load(part, cache_modifier=".cg")
                    owner += 1
                gl.store(arrivals + tile, 0)
                complete = True
        if complete:
            _emit(acc, out, picture, y, x, parity, tile_n, height, width, N, PIXELS, CHANNELS, WIDE, UP,
                  plain)  # fmt: skip
        at += here
    space._keep_alive()
    factors._keep_alive()
    for each in gl.static_range(STAGES):
        mbarrier.invalidate(bars.index(each))


def launch_halo(tile: Tile, rows, weight, out, batch, size, *, upsample=False, workspace=None):
    """Launch ``halo_stream``; ``size`` (height, width) of the input; ``workspace`` (partials, arrivals)."""
    (m, n), c, stride = out.shape, rows.shape[1], rows.stride(0)
    height, width = size
    high, wide = lines_of(tile.m, width)
    units = 3 * (c // DEEP.value)
    tiles_m = m // tile.m
    total = tiles_m * triton.cdiv(n, tile.n) * units
    share = triton.cdiv(total, min(tile.stream, total))
    boxed = gl.NVMMASharedLayout(128, 16, rank=4)
    picture = [batch, height, width, c], [height * width * stride, width * stride, stride, 1]
    lines = TensorDescriptor(rows, *picture, [1, high, wide, DEEP.value], boxed)
    edges = TensorDescriptor(rows, *picture, [1, 2, wide, DEEP.value], boxed)
    flat = gl.NVMMASharedLayout(128, 16, rank=2)
    factors = TensorDescriptor(weight, [n, 9 * c], [9 * c, 1], [tile.n, DEEP.value], flat)
    halo_stream[(triton.cdiv(total, share),)](
        lines, edges, factors, weight, out, *workspace, height, width, n, c, units, tiles_m, total, share,
        HIGH=high, WIDE=wide, CHANNELS=tile.n, UP=upsample, STAGES=tile.stages, CHAIN=tile.chained,
        num_warps=tile.warps, **({"launch_pdl": True} if tile.chained else {}),
    )  # fmt: skip
