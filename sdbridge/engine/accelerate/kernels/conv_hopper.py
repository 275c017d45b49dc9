"""The 3x3 convolution of stride 1 for Hopper: each input row read once, into shared memory, and walked.

A program does BW columns of ROWS rows. Input rows arrive by the bulk copy engine, with one column
more on each side (what lies outside the picture arrives as zeros). For each of them nine products
run on the tensor cores at once: three kernel columns, which are the same rows of shared memory
started one pixel further, times three kernel rows, which belong to three output rows. While they
run, the output row that the step before has completed is written.
"""

from __future__ import annotations

import logging
import math
import time
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

log = logging.getLogger(__name__)

#: Pixels of the second copy of a row: the halo's two, rounded up to the period of the swizzle.
EDGE = gl.constexpr(8)


@gluon.jit
def _fetch(rows, edges, space, bar, slot, batch, y, x, C: gl.constexpr, BW: gl.constexpr, wide: gl.constexpr):
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
        _fetch(rows, edges, space, bars.index(slot), slot, batch, first - 1 + step + STAGES, x, C, BW, wide)


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
        _fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
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
def _described(pointer: int, shape: tuple[int, ...], block: tuple[int, ...]) -> TensorDescriptor:
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


def proven(channels: int) -> bool:
    """Whether this card and this Triton compute small layers right; asked once, before the first frame.

    The kernel starts its factors at any row of a swizzled tile, which Triton's compiler does not promise.
    """
    try:
        error = _error(channels)
    except (RuntimeError, ValueError, TypeError, AttributeError) as why:  # an older or newer Triton
        log.warning("the Hopper convolution does not run here (%s)", str(why).strip().splitlines()[:1])
        return False
    if not error < 2e-3:
        log.warning("the Hopper convolution is wrong here (relative error %s)", error)
        return False
    return True


def _error(channels: int) -> float:
    """The relative error of small layers, the worst of three; infinite where they do not end."""
    draw = torch.Generator(device="cuda").manual_seed(5)
    source = torch.randn(1, 9, 67, channels, device="cuda", generator=draw).half()
    weight = torch.randn(9, channels, channels, device="cuda", generator=draw).half()
    bias = torch.randn(channels, device="cuda", generator=draw)
    factors = torch.randn(16, channels, channels, device="cuda", generator=draw).half()
    outs = [torch.full_like(source, float("nan")) for _ in range(2)]
    large = source.new_full((1, 18, 134, channels), float("nan"))
    for rows, out in zip((2, 9), outs, strict=True):
        run_halo(source, weight, bias, out, Config(rows, 64, 4, 3), False, None, False)
    run_double(source, factors, large, Config(5, 64, 4, 4), False)
    ended = torch.cuda.Event()
    ended.record()
    until = time.monotonic() + 5.0
    while not ended.query():  # a wait that could not end would hold the frame loop
        if time.monotonic() > until:
            return math.inf
        time.sleep(0.001)
    planes = source.permute(0, 3, 1, 2).float()
    wanted = [(out, _convolved(planes, weight, bias)) for out in outs]
    for which in range(4):  # the 2x2 convolution of each parity
        down, right = which // 2, which % 2
        shifted = torch.nn.functional.pad(planes, (1 - right, right, 1 - down, down))
        wanted.append((large[:, down::2, right::2], _convolved(shifted, factors[which * 4 : which * 4 + 4])))
    return max(float((out.permute(0, 3, 1, 2) - want).norm() / want.norm()) for out, want in wanted)


def _convolved(planes: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float32, by PyTorch: 3x3 with padding, or 2x2 without."""
    side = {9: 3, 4: 2}[packed.shape[0]]
    kernel = packed.float().view(side, side, *packed.shape[1:]).permute(3, 2, 0, 1)
    with torch.backends.cudnn.flags(allow_tf32=False):
        return torch.nn.functional.conv2d(planes, kernel, bias, padding=1 if side == 3 else 0)


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
    rows = _described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = _described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    flat = (9 * channels, channels)
    factors = _described(weight.data_ptr(), flat, (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    halo_kernel[(programs, frames)](
        rows, edges, factors, bias, source if skip is None else skip, out, height, width, C=channels,
        N=channels, SKIP=skip is not None, RELU=relu, ROWS=config.rows, BW=config.columns,
        STAGES=min(config.stages, config.rows + 2), num_warps=config.warps,
        CHAIN=chained, **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip


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
def double_kernel(rows, edges, weight, out, height, width,
                  C: gl.constexpr, ROWS: gl.constexpr, BW: gl.constexpr, STAGES: gl.constexpr,
                  CHAIN: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """3x3 after a nearest doubling: ROWS small rows of BW columns, each large pixel from 2x2 small ones."""
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, C, 16])
    flat: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=2)
    wide: gl.constexpr = gl.NVMMASharedLayout(C * 2, 16, rank=4)
    plain: gl.constexpr = gl.BlockedLayout([1, 8], [256 // C, C // 8], [num_warps, 1], [1, 0])
    strips = gl.cdiv(width, BW)
    x = gl.program_id(0) % strips * BW
    first = gl.program_id(0) // strips * ROWS
    batch = gl.program_id(1)
    space = gl.allocate_shared_memory(gl.float16, [STAGES * (BW // EDGE + 1), EDGE, C], flat)
    factors = gl.allocate_shared_memory(gl.float16, [16, C, C], flat)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for each in gl.static_range(STAGES + 1):
        mbarrier.init(bars.index(each), count=1)
    gl.thread_barrier()
    mbarrier.expect(bars.index(STAGES), 16 * C * C * 2)
    for tap in gl.static_range(16):
        tma.async_copy_global_to_shared(weight, [tap * C, 0], bars.index(STAGES), factors.index(tap))
    if CHAIN:
        gdc_wait()  # from here on what the kernel before wrote is read
        gdc_launch_dependents()
    for early in gl.static_range(min(STAGES, ROWS + 2)):
        _fetch(rows, edges, space, bars.index(early), early, batch, first - 1 + early, x, C, BW, wide)
    mbarrier.wait(bars.index(STAGES), 0)
    mbarrier.wait(bars.index(0), 0)
    mbarrier.wait(bars.index(1), 0)
    for step in range(ROWS):  # reads input rows step, step + 1 and step + 2, counted from first - 1
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
        gl.thread_barrier()
        if step + STAGES < ROWS + 2:
            _fetch(
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
    rows = _described(source.data_ptr(), shape, (1, 1, config.columns, channels))
    edges = _described(source.data_ptr(), shape, (1, 1, EDGE.value, channels))
    factors = _described(weight.data_ptr(), (16 * channels, channels), (channels, channels))
    programs = triton.cdiv(width, config.columns) * triton.cdiv(height, config.rows)
    double_kernel[(programs, frames)](
        rows, edges, factors, out, height, width, C=channels, ROWS=config.rows, BW=config.columns,
        STAGES=max(3, min(config.stages, config.rows + 2)), num_warps=config.warps, CHAIN=chained,
        **({"launch_pdl": True} if chained else {}),
    )  # fmt: skip
