"""The 3x3 convolution of stride 1 for Hopper, three input rows at a time from a ring in shared memory.

A program walks down BW columns. Each output row is nine products on the tensor cores, issued at once:
three kernel rows times three kernel columns, which are the same row of shared memory started one pixel
further. While they run, the output row before is written and the input row after next arrives by the bulk
copy engine, with one column more on each side (what lies outside the picture arrives as zeros).
"""

from __future__ import annotations

from typing import Any

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


@gluon.constexpr_function
def near_layout(channels: int, columns: int) -> Any:
    """Eight channels a thread, each warp the same 16 pixels as in the sums: turned by shuffles alone."""
    registers = [[0, 1], [0, 2], [0, 4]]
    lanes = [[0, bit] for bit in (8, 16, 32) if bit < channels]
    pixels = [[bit, 0] for bit in (1, 2, 4, 8)]
    free = 5 - len(lanes)
    warps = [[bit, 0] for bit in (16, 32, 64) if bit < columns]
    return gl.DistributedLinearLayout(
        registers + pixels[free:], lanes + pixels[:free], warps, [], [columns, channels]
    )


@gluon.jit
def products(space, factors, top, at, low, C: gl.constexpr, N: gl.constexpr, BW: gl.constexpr,
             STAGES: gl.constexpr, flat: gl.constexpr, sums: gl.constexpr):  # fmt: skip
    """The nine products of one output row, not waited for."""
    pixels = space._reinterpret(gl.float16, [STAGES * (BW + EDGE), 1, C], flat)
    acc = gl.zeros([BW, N], gl.float32, sums)
    for tap in gl.static_range(9):
        slot = top
        if tap // 3 == 1:
            slot = at
        if tap // 3 == 2:
            slot = low
        given = pixels.index(slot * (BW + EDGE) + tap % 3)._reinterpret(gl.float16, [BW, C], flat)
        acc = warpgroup_mma(given, factors.index(tap), acc, use_acc=tap > 0, is_async=True)
    return acc


@gluon.jit
def _places(batch, y, first, x, height, width, N: gl.constexpr, BW: gl.constexpr, near: gl.constexpr):
    """Where row ``y`` lies, and what of it is this program's, from ``first`` on."""
    pixel = x + gl.arange(0, BW, gl.SliceLayout(1, near))
    column = gl.arange(0, N, gl.SliceLayout(0, near))
    where = ((batch * height + y) * width + pixel)[:, None] * N + column[None, :]
    return where, ((pixel < width) & (y >= first) & (y < height))[:, None]


@gluon.jit
def _emit(acc, kept, offset, out, batch, y, first, x, height, width, N: gl.constexpr, BW: gl.constexpr,
          SKIP: gl.constexpr, RELU: gl.constexpr, near: gl.constexpr):  # fmt: skip
    """Write row ``y`` with what was kept of the block's input."""
    acc = acc + offset[None, :]
    if RELU and not SKIP:
        acc = gl.maximum(acc, 0.0)
    value = gl.convert_layout(acc.to(gl.float16), near)
    if SKIP:
        both = value.to(gl.float32) + kept.to(gl.float32)
        if RELU:
            both = gl.maximum(both, 0.0)
        value = both.to(gl.float16)
    where, inside = _places(batch, y, first, x, height, width, N, BW, near)
    gl.store(out + where, value, mask=inside)


@gluon.jit
def ring_kernel(rows, edges, weight, bias, skip, out, height, width, count,
                C: gl.constexpr, SKIP: gl.constexpr, RELU: gl.constexpr, BW: gl.constexpr,
                STAGES: gl.constexpr, CHAIN: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """``count`` rows of BW columns."""
    # made here: Triton cannot write a layout down, so no kernel is given one
    near: gl.constexpr = near_layout(C, BW)
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, C, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * count
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (BW // EDGE + 1), EDGE, C], flat)
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
    for early in gl.static_range(STAGES):
        if early < count + 2:
            fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
    offset = gl.load(bias + gl.arange(0, C, gl.SliceLayout(0, sums)))
    done = gl.zeros([BW, C], gl.float32, sums)
    kept = gl.zeros([BW, C], gl.float16, near)
    mbarrier.wait(bars.index(STAGES), 0)
    mbarrier.wait(bars.index(0), 0)
    mbarrier.wait(bars.index(1), 0)
    for step in range(count):  # reads input rows step, step + 1 and step + 2, counted from first - 1
        top = step % STAGES
        coming = kept
        if SKIP:  # asked for a step before it is needed
            where, inside = _places(batch, first + step, first, x, height, width, C, BW, near)
            coming = gl.load(skip + where, mask=inside, other=0.0)
        mbarrier.wait(bars.index((step + 2) % STAGES), ((step + 2) // STAGES) & 1)
        acc = products(space, factors, top, (step + 1) % STAGES, (step + 2) % STAGES,
                       C, C, BW, STAGES, flat, sums)  # fmt: skip
        # Without a branch around it: registers of products under way must not cross one.
        _emit(
            done, kept, offset, out, batch, first + step - 1, first, x, height, width, C, BW, SKIP, RELU, near
        )
        done = warpgroup_mma_wait(0, deps=[acc])
        kept = coming
        barrier()  # all have read the row that the next copy overwrites
        if step + STAGES < count + 2:
            fetch(rows, edges, space, bars.index(top), top, batch, first - 1 + step + STAGES, x, C, BW, wide)
    _emit(done, kept, offset, out, batch, first + count - 1, first, x, height, width, C, BW, SKIP, RELU, near)
    space._keep_alive()  # products under way read both while rows are written through other shared memory
    factors._keep_alive()
    for each in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(each))


def run_ring(
    source: Tensor, weight: Tensor, bias: Tensor, out: Tensor, config: Config,
    relu: bool, skip: Tensor | None, chained: bool,
) -> None:  # fmt: skip
    """3x3, stride 1, of ``[F, H, W, C]`` into ``out`` of the same shape; 16 columns for each warp."""
    frames, height, width, channels = source.shape
    shape = tuple(source.shape)
    rows = described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    factors = described(weight.data_ptr(), (9 * channels, channels), (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    ring_kernel[(programs, frames)](
        rows, edges, factors, bias, source if skip is None else skip, out, height, width, config.rows,
        C=channels, SKIP=skip is not None, RELU=relu, BW=config.columns, STAGES=config.stages,
        num_warps=config.columns // 16, CHAIN=chained,
        **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
