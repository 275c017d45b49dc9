"""The 3x3 convolution of stride 1 for Hopper: each input row read once, into shared memory, and walked.

A program does BW columns of ROWS rows. Input rows arrive by the bulk copy engine, with one column
more on each side (what lies outside the picture arrives as zeros). For each of them nine products
run on the tensor cores at once: three kernel columns, which are the same rows of shared memory
started one pixel further, times three kernel rows, which belong to three output rows. While they
run, the output row that the step before has completed is written.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sdbridge.engine.accelerate.kernels.choice import Config

#: Pixels of the second copy of a row: the halo's two, rounded up to the period of the swizzle.
EDGE = gl.constexpr(8)


@gluon.jit
def fetch(rows, edges, space, bar, slot, batch, y, x, C: gl.constexpr, BW: gl.constexpr, wide: gl.constexpr):
    """Input row ``y`` from column ``x - 1`` on into ``slot``."""
    mbarrier.expect(bar, (BW + EDGE) * C * 2)
    at = slot * (BW // EDGE + 1)
    body = space.index(at)._reinterpret(gl.float16, [1, 1, BW, C], wide)
    tma.async_copy_global_to_shared(rows, [batch, y, x - 1, 0], bar, body)
    rest = space.index(at + BW // EDGE)._reinterpret(gl.float16, [1, 1, EDGE, C], wide)
    tma.async_copy_global_to_shared(edges, [batch, y, x - 1 + BW, 0], bar, rest)


@gluon.jit
def _kernel_row(space, slot, factors, acc, row: gl.constexpr, fresh: gl.constexpr, C: gl.constexpr,
                BW: gl.constexpr, flat: gl.constexpr, TALL: gl.constexpr):  # fmt: skip
    """The three products of one kernel row, not waited for."""
    pixels = space._reinterpret(gl.float16, [TALL, 1, C], flat)
    for column in gl.static_range(3):
        given = pixels.index(slot * (BW + EDGE) + column)._reinterpret(gl.float16, [BW, C], flat)
        acc = warpgroup_mma(given, factors.index(row * 3 + column), acc,
                            use_acc=not (fresh and column == 0), is_async=True)  # fmt: skip
    return acc


@gluon.jit
def _step(step, space, bars, factors, above, here, low: gl.constexpr, high: gl.constexpr, C: gl.constexpr,
          BW: gl.constexpr, STAGES: gl.constexpr, flat: gl.constexpr, sums: gl.constexpr):  # fmt: skip
    """The products of input row ``step`` with the kernel rows ``low`` to ``high``, not waited for."""
    slot = step % STAGES
    mbarrier.wait(bars.index(slot), (step // STAGES) & 1)
    below = gl.zeros([BW, C], gl.float32, sums)
    if low == 0:
        below = _kernel_row(space, slot, factors, below, 0, True, C, BW, flat, STAGES * (BW + EDGE))
    if low <= 1 and high >= 1:
        here = _kernel_row(space, slot, factors, here, 1, False, C, BW, flat, STAGES * (BW + EDGE))
    if high == 2:
        above = _kernel_row(space, slot, factors, above, 2, False, C, BW, flat, STAGES * (BW + EDGE))
    return above, here, below


@gluon.jit
def _refill(rows, edges, space, bars, step, batch, first, x, C: gl.constexpr, BW: gl.constexpr,
            ROWS: gl.constexpr, STAGES: gl.constexpr, wide: gl.constexpr):  # fmt: skip
    """The place of input row ``step``, which all have read, for a row further on."""
    gl.thread_barrier()
    if step + STAGES < ROWS + 2:
        slot = step % STAGES
        fetch(rows, edges, space, bars.index(slot), slot, batch, first - 1 + step + STAGES, x, C, BW, wide)


@gluon.jit
def _emit(acc, offset, out, skip, batch, y, first, x, height, width, N: gl.constexpr, BW: gl.constexpr,
          SKIP: gl.constexpr, RELU: gl.constexpr, plain: gl.constexpr):  # fmt: skip
    """Write row ``y`` if it is one of this program's, from ``first`` on."""
    acc = acc + offset[None, :]
    if RELU and not SKIP:
        acc = gl.maximum(acc, 0.0)
    value = gl.convert_layout(acc.to(gl.float16), plain)
    pixel = x + gl.arange(0, BW, gl.SliceLayout(1, plain))
    column = gl.arange(0, N, gl.SliceLayout(0, plain))
    where = ((batch * height + y) * width + pixel)[:, None] * N + column[None, :]
    inside = ((pixel < width) & (y >= first) & (y < height))[:, None]
    if SKIP:
        value = value.to(gl.float32) + gl.load(skip + where, mask=inside, other=0.0).to(gl.float32)
        if RELU:
            value = gl.maximum(value, 0.0)
        value = value.to(gl.float16)
    gl.store(out + where, value, mask=inside)


@gluon.jit
def halo_kernel(rows, edges, weight, bias, skip, out, height, width,
                C: gl.constexpr, N: gl.constexpr, SKIP: gl.constexpr, RELU: gl.constexpr,
                ROWS: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr, CHAIN: gl.constexpr,
                num_warps: gl.constexpr):  # fmt: skip
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, N, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    right: gl.constexpr = gl.NVMMASharedLayout(N * 2, 16, rank=2)
    plain: gl.constexpr = gl.BlockedLayout([1, 8], [256 // N, N // 8], [num_warps, 1], [1, 0])
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * ROWS
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (BW // EDGE + 1), EDGE, C], flat)
    factors = gl.allocate_shared_memory(gl.float16, [9, C, N], right)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 1):
        mbarrier.init(bars.index(each), count=1)
    gl.thread_barrier()
    mbarrier.expect(bars.index(STAGES), 9 * C * N * 2)
    for tap in gl.static_range(9):
        tma.async_copy_global_to_shared(weight, [tap * C, 0], bars.index(STAGES), factors.index(tap))
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    for early in gl.static_range(STAGES):
        fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
    offset = gl.load(bias + gl.arange(0, N, gl.SliceLayout(0, sums)))
    above = gl.zeros([BW, N], gl.float32, sums)
    here = above
    done = above
    mbarrier.wait(bars.index(STAGES), 0)
    if ROWS > 8:
        for step in range(ROWS + 2):  # (unrolled ends made ptxas wait for every product)
            over, at, below = _step(step, space, bars, factors, above, here, 0, 2, C, BW, STAGES, flat, sums)
            # Without a branch around it: registers of products under way must not cross one.
            _emit(
                done,
                offset,
                out,
                skip,
                batch,
                first + step - 3,
                first,
                x,
                height,
                width,
                N,
                BW,
                SKIP,
                RELU,
                plain,
            )
            done, above, here = warpgroup_mma_wait(0, deps=[over, at, below])
            _refill(rows, edges, space, bars, step, batch, first, x, C, BW, ROWS, STAGES, wide)
    else:  # the first and the last two input rows belong to fewer output rows: only what is needed
        for step in gl.static_range(ROWS + 2):
            over, at, below = _step(step, space, bars, factors, above, here,
                                    0 if step < ROWS else step - ROWS + 1, step if step < 2 else 2,
                                    C, BW, STAGES, flat, sums)  # fmt: skip
            if step >= 3:
                _emit(done, offset, out, skip, batch, first + step - 3, first, x, height, width,
                      N, BW, SKIP, RELU, plain)  # fmt: skip
            done, above, here = warpgroup_mma_wait(0, deps=[over, at, below])
            if step + STAGES < ROWS + 2:
                _refill(rows, edges, space, bars, step, batch, first, x, C, BW, ROWS, STAGES, wide)
    _emit(done, offset, out, skip, batch, first + ROWS - 1, first, x, height, width, N, BW, SKIP, RELU, plain)
    space._keep_alive()  # products under way read both while rows are written through other shared memory
    factors._keep_alive()
    for each in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(each))


@lru_cache(maxsize=512)
def described(pointer: int, shape: tuple[int, ...], block: tuple[int, ...]) -> TensorDescriptor:
    """How the copy engine sees an fp16 tensor; made once for each address."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    layout = gl.NVMMASharedLayout(block[-1] * 2, 16, rank=len(shape))
    return TensorDescriptor(_Address(pointer), list(shape), strides, list(block), layout)


class _Address:
    """An fp16 tensor's address, so that remembering a descriptor does not keep the tensor."""

    dtype = torch.float16

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def data_ptr(self) -> int:
        return self._pointer


def run_halo(
    source: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    config: Config,
    relu: bool,
    skip: Tensor | None,
    chained: bool,
) -> None:
    """3x3, stride 1, of ``[F, H, W, C]`` into ``out`` of the same shape."""
    frames, height, width, channels = source.shape
    shape = tuple(source.shape)
    rows = described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    flat = (9 * channels, channels)
    factors = described(weight.data_ptr(), flat, (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    halo_kernel[(programs, frames)](
        rows, edges, factors, bias, source if skip is None else skip, out, height, width, C=channels,
        N=channels, SKIP=skip is not None, RELU=relu, ROWS=config.rows, BW=config.columns,
        STAGES=min(config.stages, config.rows + 2), num_warps=config.warps,
        CHAIN=chained, **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
