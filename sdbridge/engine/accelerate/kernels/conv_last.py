"""The decoder's last 3x3 convolution for Hopper: three channels, straight to planes or to RGBA bytes."""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.conv_hopper import EDGE, barrier, copy_in, described, fetch
from sdbridge.engine.accelerate.kernels.conv_ring import products

#: Output channels as the tensor cores take them; three are used, a fourth is alpha.
WIDE = gl.constexpr(16)


@gluon.jit
def _emit_pixels(acc, offset, out, batch, y, first, x, height, width, RGBA: gl.constexpr, BW: gl.constexpr,
                 sums: gl.constexpr):  # fmt: skip
    """Write row ``y`` if it is one of this program's, from ``first`` on."""
    acc = acc + offset[None, :]
    pixel = x + gl.arange(0, BW, gl.SliceLayout(1, sums))
    channel = gl.arange(0, WIDE, gl.SliceLayout(0, sums))
    inside = (pixel < width) & (y >= first) & (y < height)
    if RGBA:
        level = gl.minimum(gl.maximum(acc * 255.0 + 0.5, 0.0), 255.0).to(gl.int32)
        level = gl.where((channel == 3)[None, :], 255, level)
        level = gl.where((channel < 4)[None, :], level << (8 * (channel & 3))[None, :], 0)
        gl.store(out + (batch * height + y) * width + pixel, gl.sum(level, 1), mask=inside)
    else:
        where = ((batch * 3 + channel[None, :]) * height + y) * width + pixel[:, None]
        value = (acc * 2.0 - 1.0).to(out.dtype.element_ty)
        gl.store(out + where, value, mask=inside[:, None] & (channel < 3)[None, :])


@gluon.jit
def last_kernel(rows, edges, weight, bias, out, height, width, count,
                C: gl.constexpr, RGBA: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
                CHAIN: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """``count`` rows of BW columns, as the ring's kernel walks them."""
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, WIDE, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    narrow: gl.constexpr = gl.NVMMASharedLayout(32, 16, rank=2)
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * count
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (BW // EDGE + 1), EDGE, C], flat)
    factors = gl.allocate_shared_memory(gl.float16, [9, C, WIDE], narrow)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 1):
        mbarrier.init(bars.index(each), count=1)
    barrier()
    mbarrier.expect(bars.index(STAGES), 9 * C * WIDE * 2)
    for tap in gl.static_range(9):
        copy_in(weight, [tap * C, 0], bars.index(STAGES), factors.index(tap))
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    for early in gl.static_range(STAGES):
        if early < count + 2:
            fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
    offset = gl.load(bias + gl.arange(0, WIDE, gl.SliceLayout(0, sums)))
    done = gl.zeros([BW, WIDE], gl.float32, sums)
    mbarrier.wait(bars.index(STAGES), 0)
    mbarrier.wait(bars.index(0), 0)
    mbarrier.wait(bars.index(1), 0)
    for step in range(count):
        top = step % STAGES
        at = (step + 1) % STAGES
        low = (step + 2) % STAGES
        mbarrier.wait(bars.index(low), ((step + 2) // STAGES) & 1)
        acc = products(space, factors, top, at, low, C, WIDE, BW, STAGES, flat, sums)
        _emit_pixels(done, offset, out, batch, first + step - 1, first, x, height, width, RGBA, BW, sums)
        done = warpgroup_mma_wait(0, deps=[acc])
        barrier()  # all have read the row that the next copy overwrites
        if step + STAGES < count + 2:
            fetch(rows, edges, space, bars.index(top), top, batch, first - 1 + step + STAGES, x, C, BW, wide)
    _emit_pixels(done, offset, out, batch, first + count - 1, first, x, height, width, RGBA, BW, sums)
    space._keep_alive()
    factors._keep_alive()
    for each in gl.static_range(STAGES + 1):
        mbarrier.invalidate(bars.index(each))


def run_last(
    source: Tensor, weight: Tensor, bias: Tensor, out: Tensor, config: Config, rgba: bool, chained: bool
) -> None:
    """``[F, H, W, C]`` to planes ``[F, 3, H, W]`` or RGBA as int32 ``[F, H, W]``; weights ``[9, C, 16]``."""
    frames, height, width, channels = source.shape
    shape = tuple(source.shape)
    rows = described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    factors = described(weight.data_ptr(), (9 * channels, WIDE.value), (channels, WIDE.value))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    last_kernel[(programs, frames)](
        rows, edges, factors, bias, out, height, width, config.rows, C=channels, RGBA=rgba,
        BW=config.columns, STAGES=config.stages, num_warps=config.columns // 16, CHAIN=chained,
        **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
