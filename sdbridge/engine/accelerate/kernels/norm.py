"""Normalisation with what comes before it: bias, residuals, skip and statistics in one pass over a picture.

Pictures are channels-last rows ``[batch * hw, C]`` in fp16 or fp32, contiguous. Sums are taken in fp32 and,
where several programs share a group, added as 64-bit fixed-point integers, whose sum does not depend on
the order: a replay gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Fixed point: sums are exact to 2**-20; sums of squares may reach 8.8e12 (rms 14,000 over 40,960 values).
_SCALE = tl.constexpr(1048576.0)
#: Values of one group (rows times channels, both rounded up to a power of two) that one program holds.
WHOLE_GROUP = 32768
WHOLE_ROWS = 256  # with more of them, programs that share a group are faster (measured on an H200)
WHOLE_WARP = 1024  # values of each of its warps


@triton.jit
def _joined(
    raw, bias, shift, res1, res2, skip, skip_more, row, channel, batch, c1, c2, shift_stride, mask,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RES1: tl.constexpr, HAS_RES2: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_MORE: tl.constexpr,
):  # fmt: skip
    """raw + bias + shift + residuals in the first c1 channels, skip (+ more) in the other c2; fp32."""
    own = mask & (channel < c1)
    at = row * c1 + channel
    x = tl.load(raw + at, mask=own, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias + channel, mask=own, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        x += tl.load(shift + batch * shift_stride + channel, mask=own, other=0.0).to(tl.float32)
    if HAS_RES1:
        x += tl.load(res1 + at, mask=own, other=0.0).to(tl.float32)
    if HAS_RES2:
        x += tl.load(res2 + at, mask=own, other=0.0).to(tl.float32)
    if HAS_SKIP:
        beside = mask & (channel >= c1)
        there = row * c2 + channel - c1
        y = tl.load(skip + there, mask=beside, other=0.0).to(tl.float32)
        if HAS_MORE:
            y += tl.load(skip_more + there, mask=beside, other=0.0).to(tl.float32)
        x = tl.where(channel < c1, x, y)
    return x


@triton.jit
def _settle_kernel(
    raw, bias, shift, res1, res2, skip, skip_more, out, sums, hw, c1, c2, shift_stride,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RES1: tl.constexpr, HAS_RES2: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_MORE: tl.constexpr, WRITE: tl.constexpr, STATS: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2)
    inside = tl.program_id(0) * BR + tl.arange(0, BR)
    channels = c1 + c2
    channel = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    row = (batch * hw + inside)[:, None]
    mask = (inside[:, None] < hw) & (channel < channels)
    x = _joined(
        raw, bias, shift, res1, res2, skip, skip_more, row, channel, batch, c1, c2, shift_stride, mask,
        HAS_BIAS, HAS_SHIFT, HAS_RES1, HAS_RES2, HAS_SKIP, HAS_MORE,
    )  # fmt: skip
    if WRITE:
        tl.store(out + row * channels + channel, x.to(out.dtype.element_ty), mask=mask)
        x = x.to(out.dtype.element_ty).to(tl.float32)
    if STATS:
        x = tl.where(mask, x, 0.0)
        total = (tl.sum(x, 0) * _SCALE).to(tl.int64)
        squares = (tl.sum(x * x, 0) * _SCALE).to(tl.int64)
        flat = tl.program_id(1) * BC + tl.arange(0, BC)
        place = sums + (batch * channels + flat) * 2
        tl.atomic_add(place, total, mask=flat < channels, sem="relaxed")
        tl.atomic_add(place + 1, squares, mask=flat < channels, sem="relaxed")


@triton.jit
def _apply_kernel(
    x, shift_bias, shift, sums, gamma, beta, y, hw, channels, eps, shift_stride, group: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2)
    inside = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    good = channel < channels
    first = channel // group * group
    total = tl.zeros([BC], tl.int64)
    squares = tl.zeros([BC], tl.int64)
    for j in range(group):
        place = sums + (batch * channels + first + j) * 2
        total += tl.load(place, mask=good, other=0)
        squares += tl.load(place + 1, mask=good, other=0)
    count = hw * group * _SCALE
    mean = total.to(tl.float32) / count
    variance = tl.maximum(squares.to(tl.float32) / count - mean * mean, 0.0)
    scale = tl.load(gamma + channel, mask=good, other=0.0).to(tl.float32) * tl.rsqrt(variance + eps)
    offset = tl.load(beta + channel, mask=good, other=0.0).to(tl.float32) - mean * scale
    if HAS_BIAS:
        offset += tl.load(shift_bias + channel, mask=good, other=0.0).to(tl.float32) * scale
    if HAS_SHIFT:
        offset += tl.load(shift + batch * shift_stride + channel, mask=good, other=0.0).to(tl.float32) * scale
    at = (batch * hw + inside)[:, None] * channels + channel[None, :]
    mask = (inside[:, None] < hw) & good[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _whole_kernel(
    raw, bias, shift, res1, res2, skip, skip_more, out, gamma, beta, y, c1, c2, eps, shift_stride,
    hw: tl.constexpr, group: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_RES1: tl.constexpr, HAS_RES2: tl.constexpr,
    HAS_SKIP: tl.constexpr, HAS_MORE: tl.constexpr, WRITE: tl.constexpr, SILU: tl.constexpr,
    BR: tl.constexpr, GP: tl.constexpr,
):  # fmt: skip
    """One program: a whole group of one batch entry in registers, read once, all loads in flight together."""
    batch = tl.program_id(1)
    lane = tl.arange(0, GP)[None, :]
    channel = tl.program_id(0) * group + lane
    channels = c1 + c2
    inside = tl.arange(0, BR)[:, None]
    row = batch * hw + inside
    mask = (inside < hw) & (lane < group)
    x = _joined(
        raw, bias, shift, res1, res2, skip, skip_more, row, channel, batch, c1, c2, shift_stride, mask,
        HAS_BIAS, HAS_SHIFT, HAS_RES1, HAS_RES2, HAS_SKIP, HAS_MORE,
    )  # fmt: skip
    if WRITE:
        tl.store(out + row * channels + channel, x.to(out.dtype.element_ty), mask=mask)
    x = tl.where(mask, x.to(y.dtype.element_ty).to(tl.float32), 0.0)
    count = hw * group
    mean = tl.sum(tl.sum(x, 1), 0) / count
    centred = tl.where(mask, x - mean, 0.0)
    variance = tl.sum(tl.sum(centred * centred, 1), 0) / count
    real = lane < group
    scale = tl.load(gamma + channel, mask=real, other=0.0).to(tl.float32) * tl.rsqrt(variance + eps)
    value = centred * scale + tl.load(beta + channel, mask=real, other=0.0).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + row * channels + channel, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm_kernel(
    hidden, bias, ahead, gamma, beta, y, rows, width, eps,
    HAS_BIAS: tl.constexpr, HAS_AHEAD: tl.constexpr, NORM: tl.constexpr, BR: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BR + tl.arange(0, BR))[:, None]
    lane = tl.arange(0, CP)[None, :]
    mask = (row < rows) & (lane < width)
    at = row * width + lane
    x = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)
    if HAS_AHEAD:
        later = x + tl.load(ahead + lane, mask=lane < width, other=0.0).to(tl.float32)
        tl.store(hidden + at, later.to(hidden.dtype.element_ty), mask=mask)
    elif HAS_BIAS:
        tl.store(hidden + at, x.to(hidden.dtype.element_ty), mask=mask)
    if NORM:
        mean = tl.sum(x, 1)[:, None] / width
        centred = tl.where(lane < width, x - mean, 0.0)
        variance = tl.sum(centred * centred, 1)[:, None] / width
        scale = tl.load(gamma + lane, mask=lane < width, other=0.0).to(tl.float32)
        offset = tl.load(beta + lane, mask=lane < width, other=0.0).to(tl.float32)
        value = centred * tl.rsqrt(variance + eps) * scale + offset
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _geglu_kernel(wide, bias, y, rows, width, HAS_BIAS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    row = (tl.program_id(0) * BR + tl.arange(0, BR))[:, None].to(tl.int64)
    lane = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (row < rows) & (lane < width)
    value = tl.load(wide + row * 2 * width + lane, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(wide + row * 2 * width + width + lane, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + lane, mask=lane < width, other=0.0).to(tl.float32)
        gate += tl.load(bias + width + lane, mask=lane < width, other=0.0).to(tl.float32)
    gated = value * 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * width + lane, gated.to(y.dtype.element_ty), mask=mask)


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _tile(rows: int, channels: int) -> tuple[int, int, int]:
    """Rows, channels and warps of one program: few programs share a channel's sums (``lab/norm_lab.py``)."""
    return (128 if rows >= 512 else 32), min(_power(channels), 32), 4


def join_norm(
    raw: Tensor,
    bias: Tensor | None,
    residuals: tuple[Tensor, ...],
    skip: Tensor | None,
    skip_more: Tensor | None,
    batch: int,
    groups: int,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    silu: bool,
    sums: Tensor,
    *,
    shift: Tensor | None = None,
    write: bool = True,
) -> tuple[Tensor, Tensor]:
    """(joined, normalised): joined is raw + bias + shift + residuals with skip (+ skip_more) beside it.

    ``raw`` ``[batch * hw, C1]``, ``skip`` ``[batch * hw, C2]``, ``shift`` ``[batch, C1]`` (rows may be
    further apart). Up to two residuals. ``sums`` int64, zeroed, ``>= batch * C * 2`` values, used where
    several programs share a group. Without ``write`` joined is not kept and ``raw`` comes back in its place.
    """
    rows, c1 = raw.shape
    hw = rows // batch
    c2 = 0 if skip is None else skip.shape[1]
    channels = c1 + c2
    group = channels // groups
    first = residuals[0] if residuals else raw
    second = residuals[1] if len(residuals) > 1 else raw
    shift_given = raw if shift is None else shift
    stride = 0 if shift is None else shift.stride(0)
    given = (raw, raw if bias is None else bias, shift_given, first, second)
    flags = {
        "HAS_BIAS": bias is not None,
        "HAS_SHIFT": shift is not None,
        "HAS_RES1": len(residuals) > 0,
        "HAS_RES2": len(residuals) > 1,
        "HAS_SKIP": skip is not None,
        "HAS_MORE": skip_more is not None,
        "WRITE": write,
    }
    beside = (raw if skip is None else skip, raw if skip_more is None else skip_more)
    out = torch.empty(rows, channels, dtype=raw.dtype, device=raw.device) if write else raw
    y = torch.empty(rows, channels, dtype=raw.dtype, device=raw.device)
    lanes, whole = _power(group), _power(hw) * _power(group)
    if hw <= WHOLE_ROWS and whole <= WHOLE_GROUP:
        _whole_kernel[(groups, batch)](
            *given, *beside, out, gamma, beta, y, c1, c2, eps, stride, hw=hw, group=group,
            **flags, SILU=silu, BR=_power(hw), GP=lanes, num_warps=max(4, min(16, whole // WHOLE_WARP)),
        )  # fmt: skip
        return out, y
    height, columns, warps = _tile(hw, channels)
    grid = (triton.cdiv(hw, height), triton.cdiv(channels, columns), batch)
    _settle_kernel[grid](
        *given, *beside, out, sums, hw, c1, c2, stride, **flags, STATS=True, BR=height, BC=columns,
        num_warps=warps,
    )  # fmt: skip
    joined_here = not write  # the second pass adds bias and shift again where they were not written
    _apply_kernel[grid](
        out, given[1], shift_given, sums, gamma, beta, y, hw, channels, eps, stride, group=group,
        HAS_BIAS=joined_here and bias is not None, HAS_SHIFT=joined_here and shift is not None, SILU=silu,
        BR=height, BC=columns, num_warps=warps,
    )  # fmt: skip
    return out, y


def join(
    raw: Tensor,
    bias: Tensor | None,
    residuals: tuple[Tensor, ...],
    skip: Tensor | None = None,
    skip_more: Tensor | None = None,
) -> Tensor:
    """raw + bias + residuals with skip (+ skip_more) beside it, in one pass and without statistics."""
    rows, c1 = raw.shape
    c2 = 0 if skip is None else skip.shape[1]
    out = torch.empty(rows, c1 + c2, dtype=raw.dtype, device=raw.device)
    first = residuals[0] if residuals else raw
    second = residuals[1] if len(residuals) > 1 else raw
    height, columns, warps = _tile(rows, c1 + c2)
    _settle_kernel[(triton.cdiv(rows, height), triton.cdiv(c1 + c2, columns), 1)](
        raw, raw if bias is None else bias, raw, first, second, raw if skip is None else skip,
        raw if skip_more is None else skip_more, out, out, rows, c1, c2, 0,
        HAS_BIAS=bias is not None, HAS_SHIFT=False, HAS_RES1=len(residuals) > 0, HAS_RES2=len(residuals) > 1,
        HAS_SKIP=skip is not None, HAS_MORE=skip_more is not None, WRITE=True, STATS=False,
        BR=height, BC=columns, num_warps=warps,
    )  # fmt: skip
    return out


def layer_norm(
    hidden: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    bias: Tensor | None = None,
    ahead: Tensor | None = None,
    norm: bool = True,
) -> Tensor:
    """The layer norm of ``hidden`` ``[rows, C]`` + ``bias``; hidden becomes hidden + bias + ahead, in place.

    Without ``norm`` only the biases are added and hidden comes back.
    """
    rows, width = hidden.shape
    lanes = _power(width)
    height = max(1, min(8, 2048 // lanes))
    y = torch.empty_like(hidden) if norm else hidden
    _layer_norm_kernel[(triton.cdiv(rows, height),)](
        hidden, hidden if bias is None else bias, hidden if ahead is None else ahead, gamma, beta, y, rows,
        width, eps, HAS_BIAS=bias is not None, HAS_AHEAD=ahead is not None, NORM=norm, BR=height, CP=lanes,
        num_warps=4,
    )  # fmt: skip
    return y


def gate(wide: Tensor, bias: Tensor | None) -> Tensor:
    """``[M, 2N]`` (+ bias) -> first half times gelu of the second, ``[M, N]``."""
    rows, double = wide.shape
    width = double // 2
    y = torch.empty(rows, width, dtype=wide.dtype, device=wide.device)
    columns = min(_power(width), 256)
    height = max(1, 2048 // columns)
    _geglu_kernel[(triton.cdiv(rows, height), triton.cdiv(width, columns))](
        wide, wide if bias is None else bias, y, rows, width,
        HAS_BIAS=bias is not None, BR=height, BC=columns, num_warps=4,
    )  # fmt: skip
    return y
