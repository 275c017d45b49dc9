"""How is a linear layer with everything around it computed in one CUDA kernel? (Triton source, launch.)

Imported only where Triton is installed; ``linear.py`` decides when. Weights are read as nn.Linear keeps
them, ``[N, K]`` rows, so a LoRA that writes in place needs nothing from here.
"""

# mypy: ignore-errors
# (Triton's language is Python only by its syntax; sizes and compile-time values are written large.)

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from sdbridge.engine.accelerate.kernels.tiles import Tile


@triton.jit
def _gelu(gate):
    """GELU within 1.5e-6 of the one by erf, which takes three times the instructions.

    gelu(g) = max(g, 0) - |g| * Q(|g|), and log2 of the normal tail Q is close to a polynomial.
    """
    a = tl.abs(gate)
    log = -0.0003857190895359963 * a + 0.006505559664219618
    log = log * a - 0.05047222226858139
    log = log * a - 0.46135663986206055
    log = log * a - 1.1502230167388916
    log = log * a - 1.0001087188720703
    return tl.maximum(gate, 0.0) - a * tl.exp2(log)


@triton.jit
def _finish(
    value, gate, bias, residual, out, rows, cols, M, N, residual_stride, out_stride, GEGLU: tl.constexpr
):  # fmt: skip
    """Bias, gate, residual; the store."""
    column = tl.minimum(cols, N - 1)
    if bias is not None:
        value += tl.load(bias + column).to(tl.float32)[None, :]
    if GEGLU:
        if bias is not None:
            gate += tl.load(bias + N + column).to(tl.float32)[None, :]
        value = value * _gelu(gate)
    here = (rows < M)[:, None] & (cols < N)[None, :]
    if residual is not None:
        at = residual + rows[:, None] * residual_stride + cols[None, :]
        value += tl.load(at, mask=here, other=0.0).to(tl.float32)
    tl.store(out + rows[:, None] * out_stride + cols[None, :], value.to(out.dtype.element_ty), mask=here)


@triton.jit
def _fetch_ahead(weight, column, weight_stride, begin, end):
    """Ask for the tile's weights into the L2 cache while the kernel before this one still runs."""
    line: tl.constexpr = 64  # float16 values of 128 bytes
    for start in range(begin, end, 8 * line):
        at = start + tl.arange(0, 8) * line
        address = weight + column[:, None] * weight_stride + tl.minimum(at, end - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [address.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def _place(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Which tile the program makes: GROUP tiles below one another first, so that they share weights in L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    in_group = GROUP * tl.cdiv(N, BLOCK_N)
    first_m = (program // in_group) * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + (program % in_group) % height, (program % in_group) // height


@triton.jit
def _product(
    x, weight, x_tma, weight_tma, first_row, first_column, row, column, begin, end, N, K, x_stride,
    weight_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GEGLU: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """One tile's sum over ``begin..end`` of K: the value, and with GEGLU the gate's."""
    offset = tl.arange(0, BLOCK_K)
    x_at = x + row[:, None] * x_stride + offset[None, :]
    weight_at = weight + column[None, :] * weight_stride + offset[:, None]
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_K):
        k = start + offset
        if x_tma is not None:  # the copy engine; beyond the edges it reads zeros
            a = x_tma.load([first_row, start])
            b = weight_tma.load([first_column, start]).T
        elif EVEN_K:
            a = tl.load(x_at + start)
            b = tl.load(weight_at + start)
        else:
            a = tl.load(x_at + start, mask=(k < K)[None, :], other=0.0)
            b = tl.load(weight_at + start, mask=(k < K)[:, None], other=0.0)
        value = tl.dot(a, b, value)
        if GEGLU:
            if x_tma is not None:
                c = weight_tma.load([N + first_column, start]).T
            elif EVEN_K:
                c = tl.load(weight_at + start + N * weight_stride)
            else:
                c = tl.load(weight_at + start + N * weight_stride, mask=(k < K)[:, None], other=0.0)
            gate = tl.dot(a, c, gate)
    return value, gate


@triton.jit
def _leave_part(
    partials, slot, value, gate, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GEGLU: tl.constexpr
):
    """Write a tile's part where the last to arrive finds it."""
    halves: tl.constexpr = 2 if GEGLU else 1
    size: tl.constexpr = BLOCK_M * BLOCK_N
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    at = partials + slot.to(tl.int64) * (halves * size) + inside
    tl.store(at, value)
    if GEGLU:
        tl.store(at + size, gate)


@triton.jit
def _add_part(partials, slot, value, gate, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GEGLU: tl.constexpr):
    """Add a part that another program left; ``.cg``, since this one's L1 may hold what lay there before."""
    halves: tl.constexpr = 2 if GEGLU else 1
    size: tl.constexpr = BLOCK_M * BLOCK_N
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    at = partials + slot.to(tl.int64) * (halves * size) + inside
    value += tl.load(at, cache_modifier=".cg")
    if GEGLU:
        gate += tl.load(at + size, cache_modifier=".cg")
    return value, gate


@triton.jit
def gemm(
    x, weight, x_tma, weight_tma, bias, residual, out, partials, arrivals, M, N, K, x_stride, weight_stride,
    residual_stride, out_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, SPLIT: tl.constexpr, GEGLU: tl.constexpr, EVEN_K: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One ``[BLOCK_M, BLOCK_N]`` tile of the result; with SPLIT > 1 the last arriving part finishes it."""
    program = tl.program_id(0)
    part = tl.program_id(1)
    tile_m, tile_n = _place(program, M, N, BLOCK_M, BLOCK_N, GROUP)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(rows, M - 1)  # tiles over the edge compute a neighbour twice, and store nothing
    column = tl.minimum(cols, N - 1)
    per_part = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT) * BLOCK_K
    begin = part * per_part
    end = tl.minimum(begin + per_part, K)
    if CHAINED:
        gdc_launch_dependents()
        tiles_m = tl.cdiv(M, BLOCK_M)  # the tiles of one column share the asking
        asked = begin + (end - begin) * tile_m // tiles_m
        enough = begin + (end - begin) * (tile_m + 1) // tiles_m
        _fetch_ahead(weight, column, weight_stride, asked, enough)
        if GEGLU:
            _fetch_ahead(weight + N * weight_stride, column, weight_stride, asked, enough)
        gdc_wait()  # from here on what other kernels wrote is read
    value, gate = _product(
        x, weight, x_tma, weight_tma, tile_m * BLOCK_M, tile_n * BLOCK_N, row, column, begin, end, N, K,
        x_stride, weight_stride, BLOCK_M, BLOCK_N, BLOCK_K, GEGLU, EVEN_K,
    )  # fmt: skip
    if SPLIT == 1:
        _finish(value, gate, bias, residual, out, rows, cols, M, N, residual_stride, out_stride, GEGLU)
    else:
        _leave_part(partials, program * SPLIT + part, value, gate, BLOCK_M, BLOCK_N, GEGLU)
        tl.debug_barrier()  # every thread's part lies in memory before the one that counts arrives
        if tl.atomic_add(arrivals + program, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.debug_barrier()
            value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in tl.static_range(SPLIT):  # in a fixed order, so that frames repeat bit by bit
                value, gate = _add_part(
                    partials, program * SPLIT + other, value, gate, BLOCK_M, BLOCK_N, GEGLU
                )
            _finish(value, gate, bias, residual, out, rows, cols, M, N, residual_stride, out_stride, GEGLU)
            tl.store(arrivals + program, 0)  # ready for the next replay


@triton.jit
def finish_rows(
    product, bias, residual, out, M, N, product_stride, residual_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GEGLU: tl.constexpr,
):  # fmt: skip
    """What a library's matrix product lacks: bias, gate, residual."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = (rows < M)[:, None] & (cols < N)[None, :]
    at = product + rows[:, None] * product_stride + cols[None, :]
    value = tl.load(at, mask=here, other=0.0).to(tl.float32)
    gate = value
    if GEGLU:
        gate = tl.load(at + N, mask=here, other=0.0).to(tl.float32)
    _finish(value, gate, bias, residual, out, rows, cols, M, N, residual_stride, out_stride, GEGLU)


def launch_gemm(tile: Tile, x, weight, out, *, bias=None, residual=None, geglu=False, workspace=None):
    """Launch ``gemm``; ``workspace`` is (partials, arrivals), for a split."""
    (m, k), n = x.shape, out.shape[1]
    partials, arrivals = workspace or (None, None)
    beside = residual.stride(0) if residual is not None else 0
    gemm[(triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n), tile.split)](
        x, weight, *_copy_engine(tile, x, weight), bias, residual, out, partials, arrivals, m, n, k,
        x.stride(0), weight.stride(0), beside, out.stride(0), BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k,
        GROUP=tile.group, SPLIT=tile.split, GEGLU=geglu, EVEN_K=k % tile.k == 0, CHAINED=tile.chained,
        num_warps=tile.warps, num_stages=tile.stages, **_chain(tile.chained),
    )  # fmt: skip


def _copy_engine(tile: Tile, x, weight):
    """Descriptors for Hopper's copy engine, where the tile asks for it and the rows are 16-byte aligned."""
    aligned = all(t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 for t in (x, weight))
    if not tile.tma or not aligned:
        return None, None
    return (
        TensorDescriptor.from_tensor(x, [tile.m, tile.k]),
        TensorDescriptor.from_tensor(weight, [tile.n, tile.k]),
    )


def launch_finish(product, out, *, bias=None, residual=None, geglu=False):
    """Launch ``finish_rows`` on a library's product ``[M, N]`` (``[M, 2N]`` for GEGLU)."""
    m, n = out.shape
    columns = min(triton.next_power_of_2(n), 1024)
    rows = 2048 // columns
    beside = residual.stride(0) if residual is not None else 0
    finish_rows[(triton.cdiv(m, rows), triton.cdiv(n, columns))](
        product, bias, residual, out, m, n, product.stride(0), beside, out.stride(0), ROWS=rows,
        COLUMNS=columns, GEGLU=geglu, num_warps=4,
    )  # fmt: skip


def _chain(chained: bool) -> dict[str, bool]:
    # The interpreter knows no launch options; on CUDA a chained kernel starts while the last one ends.
    return {"launch_pdl": True} if chained else {}
