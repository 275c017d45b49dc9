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

#: Where the LayerNorm of the A operand comes from.
NO_NORM, NORM_INSIDE, NORM_GIVEN = 0, 1, 2


@triton.jit
def _own_moments(x, rows, x_stride, K, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Mean and 1/deviation of the tile's rows, chunk by chunk merged (Chan), so no cancellation."""
    mean = tl.zeros((BLOCK_M,), tl.float32)
    spread = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        here = k[None, :] < K
        part = tl.load(x + rows[:, None] * x_stride + k[None, :], mask=here, other=0.0).to(tl.float32)
        count = tl.minimum(K - start, BLOCK_K) + 0.0
        part_mean = tl.sum(part, 1) / count
        off = tl.where(here, part - part_mean[:, None], 0.0)
        before = start + 0.0
        delta = part_mean - mean
        share = count / (before + count)
        spread += tl.sum(off * off, 1) + delta * delta * before * share
        mean += delta * share
    return mean, tl.rsqrt(spread / K + eps)


@triton.jit
def _given_moments(moments, rows, M, K, count, width, eps, BLOCK_M: tl.constexpr, COUNT_POW2: tl.constexpr):
    """The same from (mean, spread) of column groups that a previous epilogue left: ``[2, M, count]``."""
    group = tl.arange(0, COUNT_POW2)
    at = rows[:, None] * count + group[None, :]
    here = (group < count)[None, :]
    means = tl.load(moments + at, mask=here, other=0.0)
    spreads = tl.load(moments + M * count + at, mask=here, other=0.0)
    columns = tl.where(group < count, tl.minimum(K - group * width, width), 0).to(tl.float32)
    mean = tl.sum(means * columns[None, :], 1) / K
    off = means - mean[:, None]
    spread = tl.sum(spreads + columns[None, :] * off * off, 1)
    return mean, tl.rsqrt(spread / K + eps)


@triton.jit
def _leave_moments(value, moments, rows, cols, group, M, N, groups, WIDTH: tl.constexpr):
    """Mean and spread of these columns of each row, of the values as stored."""
    here = (cols < N)[None, :]
    columns = tl.minimum(N - group * WIDTH, WIDTH).to(tl.float32)
    mean = tl.sum(tl.where(here, value, 0.0), 1) / columns
    off = tl.where(here, value - mean[:, None], 0.0)
    at = rows * groups + group
    tl.store(moments + at, mean, mask=rows < M)
    tl.store(moments + M * groups + at, tl.sum(off * off, 1), mask=rows < M)


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
    value, gate, bias, residual, out, moments_out, rows, cols, tile_n, M, N, residual_stride, out_stride,
    moments_groups, GEGLU: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bias, gate, residual; the store; the moments for a LayerNorm that follows."""
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
    stored = value.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_stride + cols[None, :], stored, mask=here)
    if moments_out is not None:
        seen = stored.to(tl.float32)
        _leave_moments(seen, moments_out, rows, cols, tile_n, M, N, moments_groups, BLOCK_N)


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
    x, weight, x_tma, weight_tma, norm_weight, norm_bias, moments_in, first_row, first_column, row, column,
    begin, end, M, N, K, x_stride, weight_stride, moments_count, moments_width, eps, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GEGLU: tl.constexpr, NORM: tl.constexpr, COUNT_POW2:
    tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """One tile's sum over ``begin..end`` of K: the value, and the gate's (the value again without GEGLU)."""
    if NORM == 1:
        mean, scale = _own_moments(x, row, x_stride, K, eps, BLOCK_M, BLOCK_K)
    if NORM == 2:
        mean, scale = _given_moments(
            moments_in, row, M, K, moments_count, moments_width, eps, BLOCK_M, COUNT_POW2
        )
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
        if NORM > 0:
            if EVEN_K:
                g = tl.load(norm_weight + k).to(tl.float32)
                h = tl.load(norm_bias + k).to(tl.float32)
            else:
                g = tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
                h = tl.load(norm_bias + k, mask=k < K, other=0.0).to(tl.float32)
            normal = (a.to(tl.float32) - mean[:, None]) * scale[:, None]
            a = (normal * g[None, :] + h[None, :]).to(x.dtype.element_ty)
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
    x, weight, x_tma, weight_tma, bias, residual, out, norm_weight, norm_bias, moments_in, moments_out,
    partials, arrivals, M, N, K, x_stride, weight_stride, residual_stride, out_stride,
    moments_count, moments_width, moments_groups, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, GEGLU: tl.constexpr, NORM: tl.constexpr, COUNT_POW2: tl.constexpr,
    EVEN_K: tl.constexpr, CHAINED: tl.constexpr,
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
        x, weight, x_tma, weight_tma, norm_weight, norm_bias, moments_in, tile_m * BLOCK_M, tile_n * BLOCK_N,
        row, column, begin, end, M, N, K, x_stride, weight_stride, moments_count, moments_width, eps,
        BLOCK_M, BLOCK_N, BLOCK_K, GEGLU, NORM, COUNT_POW2, EVEN_K,
    )  # fmt: skip
    if SPLIT == 1:
        _finish(
            value, gate, bias, residual, out, moments_out, rows, cols, tile_n, M, N, residual_stride,
            out_stride, moments_groups, GEGLU, BLOCK_N,
        )  # fmt: skip
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
            _finish(
                value, gate, bias, residual, out, moments_out, rows, cols, tile_n, M, N,
                residual_stride, out_stride, moments_groups, GEGLU, BLOCK_N,
            )  # fmt: skip
            tl.store(arrivals + program, 0)  # ready for the next replay


@triton.jit
def gemm_stream(
    x, weight, x_tma, weight_tma, bias, residual, out, norm_weight, norm_bias, moments_in, moments_out,
    partials, arrivals, M, N, K, x_stride, weight_stride, residual_stride, out_stride,
    moments_count, moments_width, moments_groups, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    SPLIT: tl.constexpr, GEGLU: tl.constexpr, NORM: tl.constexpr, COUNT_POW2: tl.constexpr,
    EVEN_K: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Stream-K: as many programs as the card holds, each with an equal share of all tiles' K steps.

    A program's share is one run of steps, so at most its first and its last tile are shared with others;
    the last to arrive at a tile adds the parts and finishes it. Nobody waits.
    """
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    steps = tl.cdiv(K, BLOCK_K)
    total = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) * steps
    share = tl.cdiv(total, tl.num_programs(0))
    first = program * share
    at = first
    stop = tl.minimum(first + share, total)
    while at < stop:
        tile = at // steps
        step = at - tile * steps
        here = tl.minimum(steps - step, stop - at)
        tile_m, tile_n = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.minimum(rows, M - 1)
        column = tl.minimum(cols, N - 1)
        begin = step * BLOCK_K
        end = tl.minimum(begin + here * BLOCK_K, K)
        value, gate = _product(
            x, weight, x_tma, weight_tma, norm_weight, norm_bias, moments_in, tile_m * BLOCK_M, tile_n *
            BLOCK_N, row, column, begin, end, M, N, K, x_stride, weight_stride, moments_count, moments_width,
            eps, BLOCK_M, BLOCK_N, BLOCK_K, GEGLU, NORM, COUNT_POW2, EVEN_K,
        )  # fmt: skip
        complete = here == steps
        if here < steps:
            _leave_part(
                partials, program * 2 + (at != first).to(tl.int32), value, gate, BLOCK_M, BLOCK_N, GEGLU
            )
            tl.debug_barrier()
            owner = (tile * steps) // share
            last = (tile * steps + steps - 1) // share
            if tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == last - owner:
                tl.debug_barrier()
                value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                while owner <= last:
                    slot = owner * 2 + ((owner * share) // steps != tile).to(tl.int32)
                    value, gate = _add_part(partials, slot, value, gate, BLOCK_M, BLOCK_N, GEGLU)
                    owner += 1
                tl.store(arrivals + tile, 0)
                complete = True
        if complete:
            _finish(
                value, gate, bias, residual, out, moments_out, rows, cols, tile_n, M, N, residual_stride,
                out_stride, moments_groups, GEGLU, BLOCK_N,
            )  # fmt: skip
        at += here


@triton.jit
def finish_rows(
    product, bias, residual, out, moments_out, M, N, product_stride, residual_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GEGLU: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """What a library's matrix product lacks: bias, gate, residual, moments (then COLUMNS covers the row)."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = (rows < M)[:, None] & (cols < N)[None, :]
    at = product + rows[:, None] * product_stride + cols[None, :]
    value = tl.load(at, mask=here, other=0.0).to(tl.float32)
    gate = value
    if GEGLU:
        gate = tl.load(at + N, mask=here, other=0.0).to(tl.float32)
    _finish(
        value, gate, bias, residual, out, moments_out, rows, cols, 0, M, N, residual_stride, out_stride, 1,
        GEGLU, COLUMNS,
    )  # fmt: skip


@triton.jit
def norm_rows(
    x, norm_weight, norm_bias, out, M, K, x_stride, out_stride, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """LayerNorm alone, ROWS whole rows a program."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLUMNS)
    inside = (cols < K)[None, :]
    here = (rows < M)[:, None] & inside
    value = tl.load(x + rows[:, None] * x_stride + cols[None, :], mask=here, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / K
    off = tl.where(inside, value - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(off * off, 1) / K + eps)
    g = tl.load(norm_weight + cols, mask=cols < K, other=0.0).to(tl.float32)
    h = tl.load(norm_bias + cols, mask=cols < K, other=0.0).to(tl.float32)
    value = off * scale[:, None] * g[None, :] + h[None, :]
    tl.store(out + rows[:, None] * out_stride + cols[None, :], value.to(out.dtype.element_ty), mask=here)


def launch_gemm(
    tile: Tile, x, weight, out, *, bias=None, residual=None, geglu=False, norm=None, moments_in=None,
    moments_out=None, workspace=None, compile_only=False,
):  # fmt: skip
    """Launch ``gemm``. ``norm`` is (weight, bias, eps); ``moments_in`` (values, groups, width);
    ``moments_out`` a float32 ``[2, M, groups of tile.n]``; ``workspace`` (partials, arrivals) for a split."""
    (m, k), n = x.shape, out.shape[1]
    values, count, width = moments_in or (None, 1, k)
    partials, arrivals = workspace or (None, None)
    norm_weight, norm_bias, eps = norm or (None, None, 0.0)
    kind = NO_NORM if norm is None else NORM_INSIDE if values is None else NORM_GIVEN
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    kernel = gemm_stream if tile.stream else gemm
    grid = (min(tile.stream, tiles * triton.cdiv(k, tile.k)),) if tile.stream else (tiles, tile.split)
    run = kernel.warmup if compile_only else kernel[grid]
    options = {"grid": grid} if compile_only else {}
    return run(
        x, weight, *_copy_engine(tile, x, weight), bias, residual, out, norm_weight, norm_bias, values,
        moments_out, partials, arrivals, m, n, k, x.stride(0), weight.stride(0), residual.stride(0) if
        residual is not None else 0, out.stride(0), count, width, triton.cdiv(n, tile.n), float(eps),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=tile.group, SPLIT=tile.split, GEGLU=geglu,
        NORM=kind, COUNT_POW2=triton.next_power_of_2(count), EVEN_K=k % tile.k == 0, CHAINED=tile.chained,
        num_warps=tile.warps, num_stages=tile.stages, **_chain(tile.chained), **options,
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


def launch_finish(product, out, *, bias=None, residual=None, geglu=False, moments_out=None, chained=False):
    """Launch ``finish_rows`` on a library's product ``[M, N]`` (``[M, 2N]`` for GEGLU)."""
    m, n = out.shape
    whole = triton.next_power_of_2(n)
    columns = whole if moments_out is not None else min(whole, 1024)
    rows = max(1, 2048 // columns)
    finish_rows[(triton.cdiv(m, rows), triton.cdiv(n, columns))](
        product, bias, residual, out, moments_out, m, n, product.stride(0),
        residual.stride(0) if residual is not None else 0, out.stride(0),
        ROWS=rows, COLUMNS=columns, GEGLU=geglu, CHAINED=chained, num_warps=8 if columns > 2048 else 4,
        **_chain(chained),
    )  # fmt: skip


def launch_norm(x, norm_weight, norm_bias, eps, out, chained=False):
    """Launch ``norm_rows``."""
    m, k = x.shape
    columns = triton.next_power_of_2(k)
    rows = max(1, 2048 // columns)
    norm_rows[(triton.cdiv(m, rows),)](
        x, norm_weight, norm_bias, out, m, k, x.stride(0), out.stride(0), float(eps),
        ROWS=rows, COLUMNS=columns, CHAINED=chained, num_warps=4, **_chain(chained),
    )  # fmt: skip


def _chain(chained: bool) -> dict[str, bool]:
    # The interpreter knows no launch options; on CUDA a chained kernel starts while the last one ends.
    return {"launch_pdl": True} if chained else {}
