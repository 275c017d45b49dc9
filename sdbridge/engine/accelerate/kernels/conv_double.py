"""The 3x3 convolution after a nearest doubling, for Hopper: from the small picture, each row read once.

Each of the four parities of the large picture's pixels is a 2x2 convolution of the small one; all four
are made from the three small rows that lie in shared memory, which the next step shifts by one.
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
from sdbridge.engine.accelerate.kernels.conv_hopper import EDGE, barrier, copy_in, described, fetch


@gluon.jit
def _parity(space, slot, next_slot, factors, which: gl.constexpr, C: gl.constexpr, BW: gl.constexpr,
            STAGES: gl.constexpr, flat: gl.constexpr, sums: gl.constexpr):  # fmt: skip
    """The four products of one parity of the large picture's pixels, not waited for."""
    pixels = space._reinterpret(gl.float16, [STAGES * (BW + EDGE), 1, C], flat)
    acc = gl.zeros([BW, C], gl.float32, sums)
    for tap in gl.static_range(4):
        at = slot * (BW + EDGE)
        if tap >= 2:
            at = next_slot * (BW + EDGE)
        given = pixels.index(at + tap % 2 + which % 2)._reinterpret(gl.float16, [BW, C], flat)
        acc = warpgroup_mma(given, factors.index(which * 4 + tap), acc, use_acc=tap > 0, is_async=True)
    return acc


@gluon.jit
def _emit_doubled(acc, out, batch, y, x, height, width, which: gl.constexpr, N: gl.constexpr,
                  BW: gl.constexpr, plain: gl.constexpr):  # fmt: skip
    """Write the pixels of one parity of a large row."""
    value = gl.convert_layout(acc.to(gl.float16), plain)
    pixel = x + gl.arange(0, BW, gl.SliceLayout(1, plain))
    column = gl.arange(0, N, gl.SliceLayout(0, plain))
    row = (batch * height + y) * 2 + which // 2
    where = (row * width * 2 + pixel * 2 + which % 2)[:, None] * N + column[None, :]
    gl.store(out + where, value, mask=((pixel < width) & (y < height))[:, None])


@gluon.jit
def double_kernel(rows, edges, weight, out, height, width, count,
                  C: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
                  CHAIN: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """3x3 after a nearest doubling: ``count`` small rows of BW columns, from 2x2 each."""
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, C, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    plain: gl.constexpr = gl.BlockedLayout([1, 8], [256 // C, C // 8], [num_warps, 1], [1, 0])
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * count
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (BW // EDGE + 1), EDGE, C], flat)
    factors = gl.allocate_shared_memory(gl.float16, [16, C, C], flat)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 1):
        mbarrier.init(bars.index(each), count=1)
    barrier()
    mbarrier.expect(bars.index(STAGES), 16 * C * C * 2)
    for tap in gl.static_range(16):
        copy_in(weight, [tap * C, 0], bars.index(STAGES), factors.index(tap))
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    for early in gl.static_range(STAGES):
        if early < count + 2:
            fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
    mbarrier.wait(bars.index(STAGES), 0)
    mbarrier.wait(bars.index(0), 0)
    mbarrier.wait(bars.index(1), 0)
    for step in range(count):  # reads input rows step, step + 1 and step + 2, counted from first - 1
        above = step % STAGES
        at = (step + 1) % STAGES
        below = (step + 2) % STAGES
        mbarrier.wait(bars.index(below), ((step + 2) // STAGES) & 1)
        a = _parity(space, above, at, factors, 0, C, BW, STAGES, flat, sums)
        b = _parity(space, above, at, factors, 1, C, BW, STAGES, flat, sums)
        c = _parity(space, at, below, factors, 2, C, BW, STAGES, flat, sums)
        d = _parity(space, at, below, factors, 3, C, BW, STAGES, flat, sums)
        a = warpgroup_mma_wait(12, deps=[a])
        _emit_doubled(a, out, batch, first + step, x, height, width, 0, C, BW, plain)
        b = warpgroup_mma_wait(8, deps=[b])
        _emit_doubled(b, out, batch, first + step, x, height, width, 1, C, BW, plain)
        c = warpgroup_mma_wait(4, deps=[c])
        _emit_doubled(c, out, batch, first + step, x, height, width, 2, C, BW, plain)
        d = warpgroup_mma_wait(0, deps=[d])
        barrier()
        if step + STAGES < count + 2:
            fetch(
                rows, edges, space, bars.index(above), above, batch, first - 1 + step + STAGES, x, C, BW, wide
            )
        _emit_doubled(d, out, batch, first + step, x, height, width, 3, C, BW, plain)
    space._keep_alive()
    factors._keep_alive()
    for each in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(each))


def run_double(source: Tensor, weight: Tensor, out: Tensor, config: Config, chained: bool) -> None:
    """3x3 after a nearest doubling of ``[F, h, w, C]`` into ``out`` ``[F, 2h, 2w, C]``."""
    frames, height, width, channels = source.shape
    shape = tuple(source.shape)
    rows = described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    factors = described(weight.data_ptr(), (16 * channels, channels), (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    double_kernel[(programs, frames)](
        rows, edges, factors, out, height, width, config.rows, C=channels, BW=config.columns,
        STAGES=config.stages, num_warps=config.warps, CHAIN=chained,
        **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
