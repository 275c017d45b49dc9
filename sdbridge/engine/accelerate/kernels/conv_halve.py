"""The 3x3 convolution of stride 2 for Hopper: even and odd columns as two tiles, each input row read once.

Two neighbouring pixels of a row are seen as one of twice the channels, so the copy engine brings the
even columns of a row to one tile and the odd ones, from one further left on, to another. The three
kernel columns are then the odd tile, the even tile, and the odd tile started one pixel further.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.conv_hopper import EDGE, barrier, copy_in, described


@gluon.jit
def _fetch_pairs(rows, edges, space, bar, slot, batch, y, x, C: gl.constexpr, BW: gl.constexpr,
                 wide: gl.constexpr):  # fmt: skip
    """Input row ``y``: its even columns from ``2 * x`` on, then its odd ones from ``2 * x - 1`` on."""
    mbarrier.expect(bar, (2 * BW + EDGE) * C * 2)
    at = slot * (2 * BW // EDGE + 1)
    even = space.index(at)._reinterpret(gl.float16, [1, 1, BW, C], wide)
    copy_in(rows, [batch, y, x, 0], bar, even)
    odd = space.index(at + BW // EDGE)._reinterpret(gl.float16, [1, 1, BW, C], wide)
    copy_in(rows, [batch, y, x - 1, C], bar, odd)
    rest = space.index(at + 2 * BW // EDGE)._reinterpret(gl.float16, [1, 1, EDGE, C], wide)
    copy_in(edges, [batch, y, x - 1 + BW, C], bar, rest)


@gluon.jit
def _pair_row(space, slot, factors, acc, row: gl.constexpr, fresh: gl.constexpr, C: gl.constexpr,
              BW: gl.constexpr, STAGES: gl.constexpr, flat: gl.constexpr):  # fmt: skip
    """The three products of one kernel row, not waited for."""
    pixels = space._reinterpret(gl.float16, [STAGES * (2 * BW + EDGE), 1, C], flat)
    base = slot * (2 * BW + EDGE)
    for column in gl.static_range(3):
        at = base + (BW + column // 2 if column != 1 else 0)
        given = pixels.index(at)._reinterpret(gl.float16, [BW, C], flat)
        acc = warpgroup_mma(given, factors.index(row * 3 + column), acc,
                            use_acc=not (fresh and column == 0), is_async=True)  # fmt: skip
    return acc


@gluon.jit
def _emit_plain(acc, out, batch, y, first, x, height, width, N: gl.constexpr, BW: gl.constexpr,
                layout: gl.constexpr):  # fmt: skip
    value = gl.convert_layout(acc.to(gl.float16), layout)
    pixel = x + gl.arange(0, BW, gl.SliceLayout(1, layout))
    column = gl.arange(0, N, gl.SliceLayout(0, layout))
    where = ((batch * height + y) * width + pixel)[:, None] * N + column[None, :]
    gl.store(out + where, value, mask=((pixel < width) & (y >= first) & (y < height))[:, None])


@gluon.jit
def halve_kernel(rows, edges, weight, out, height, width, count,
                 C: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
                 CHAIN: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """``count`` rows of BW columns of the small picture, ``height`` x ``width``."""
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, C, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // C, C // 8], [num_warps, 1], [1, 0])
    taken = 2 * count + 2  # input rows, from the pair above the first on
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * count
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (2 * BW // EDGE + 1), EDGE, C], flat)
    factors = gl.allocate_shared_memory(gl.float16, [9, C, C], flat)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 1):
        mbarrier.init(bars.index(each), count=1)
    barrier()
    mbarrier.expect(bars.index(STAGES), 9 * C * C * 2)
    for tap in gl.static_range(9):
        copy_in(weight, [tap * C, 0], bars.index(STAGES), factors.index(tap))
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    top = first * 2 - 2
    for early in gl.static_range(STAGES):
        if early < taken:
            _fetch_pairs(rows, edges, space, bars.index(early), early, batch, top + early, x, C, BW, wide)
    mbarrier.wait(bars.index(STAGES), 0)
    here = gl.zeros([BW, C], gl.float32, sums)
    done = here
    for step in range(count + 1):  # (an end unrolled made ptxas wait for every product)
        even = step * 2 % STAGES
        odd = (step * 2 + 1) % STAGES
        mbarrier.wait(bars.index(even), (step * 2 // STAGES) & 1)
        mbarrier.wait(bars.index(odd), ((step * 2 + 1) // STAGES) & 1)
        over = _pair_row(space, even, factors, here, 1, False, C, BW, STAGES, flat)
        over = _pair_row(space, odd, factors, over, 2, False, C, BW, STAGES, flat)
        below = _pair_row(
            space, odd, factors, gl.zeros([BW, C], gl.float32, sums), 0, True, C, BW, STAGES, flat
        )
        # Without a branch around it: registers of products under way must not cross one.
        _emit_plain(done, out, batch, first + step - 2, first, x, height, width, C, BW, layout)
        done, here = warpgroup_mma_wait(0, deps=[over, below])
        barrier()
        if step * 2 + STAGES < taken:
            _fetch_pairs(rows, edges, space, bars.index(even), even, batch, top + step * 2 + STAGES, x,
                         C, BW, wide)  # fmt: skip
        if step * 2 + 1 + STAGES < taken:
            _fetch_pairs(rows, edges, space, bars.index(odd), odd, batch, top + step * 2 + 1 + STAGES, x,
                         C, BW, wide)  # fmt: skip
    _emit_plain(done, out, batch, first + count - 1, first, x, height, width, C, BW, layout)
    space._keep_alive()
    factors._keep_alive()
    for each in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(each))


def run_halve(source: Tensor, weight: Tensor, out: Tensor, config: Config, chained: bool) -> None:
    """3x3, stride 2, padding 1, no bias: ``[F, H, W, C]`` with W even into ``out`` ``[F, H/2, W/2, C]``."""
    frames, tall, across, channels = source.shape
    height, width = out.shape[1:3]
    pairs = (frames, tall, across // 2, 2 * channels)
    rows = described(source.data_ptr(), pairs, (1, 1, config.columns, channels))
    edges = described(source.data_ptr(), pairs, (1, 1, EDGE.value, channels))
    factors = described(weight.data_ptr(), (9 * channels, channels), (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    halve_kernel[(programs, frames)](
        rows, edges, factors, out, height, width, config.rows, C=channels, BW=config.columns,
        STAGES=config.stages, num_warps=config.warps, CHAIN=chained,
        **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
