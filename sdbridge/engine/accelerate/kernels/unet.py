"""The packed UNet's operations with our kernels: for CUDA with Triton, replayable from a CUDA graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.accelerate.attention import Attend, pytorch_attention
from sdbridge.engine.accelerate.kernels import linear as products
from sdbridge.engine.accelerate.kernels import norm as kernels
from sdbridge.engine.accelerate.kernels.linear import Pick, Problem, Workspace, default_way
from sdbridge.engine.accelerate.kernels.unet_conv import Pick as ConvPick
from sdbridge.engine.accelerate.kernels.unet_conv import conv3x3
from sdbridge.engine.accelerate.unet_ops import Pending, Picture, PlainOps

_FEW_ROWS = 16  # a product of so few rows is a matter of reading the weights once, which cuBLAS does well
_ARENA = 1 << 17  # 64-bit sums for all group norms of one pass and batch entry


class TritonOps(PlainOps):
    """Convolutions and matrix products by the libraries; all that lies between them by our kernels."""

    def __init__(self, attend: Attend = pytorch_attention) -> None:
        super().__init__(attend)
        self._arena: Tensor | None = None
        self._used = 0

    def begin(self, batch: int, device: torch.device) -> None:
        """Before each pass: the sums start at zero."""
        wanted = batch * _ARENA
        if self._arena is None or self._arena.numel() < wanted:
            self._arena = torch.zeros(wanted, dtype=torch.int64, device=device)
        else:
            self._arena.zero_()
        self._used = 0

    def _sums(self, count: int, device: torch.device) -> Tensor:
        arena = self._arena
        if arena is None or self._used + count > arena.numel():
            return torch.zeros(count, dtype=torch.int64, device=device)
        taken = arena[self._used : self._used + count]
        self._used += count
        return taken

    def settle(
        self,
        pending: Pending,
        norm: Any | None,
        silu: bool = False,
        skip: Picture | None = None,
        skip_more: Picture | None = None,
    ) -> tuple[Picture, Picture]:
        raw = pending.raw
        residuals = tuple(residual.rows for residual in pending.residuals)
        beside = None if skip is None else skip.rows
        more = None if skip_more is None else skip_more.rows.contiguous()
        if norm is None:
            here = raw.like(kernels.join(raw.rows, pending.bias, residuals, beside, more))
            return here, here
        channels = raw.rows.shape[1] + (0 if beside is None else beside.shape[1])
        joined, normed = kernels.join_norm(
            raw.rows,
            pending.bias,
            residuals,
            beside,
            more,
            raw.batch,
            norm.num_groups,
            norm.weight,
            norm.bias,
            norm.eps,
            silu,
            self._sums(raw.batch * channels * 2, raw.rows.device),
        )
        return raw.like(joined), raw.like(normed)

    def group_norm_shifted(self, picture: Picture, bias: Tensor | None, shift: Tensor, norm: Any) -> Picture:
        sums = self._sums(picture.batch * picture.rows.shape[1] * 2, picture.rows.device)
        _, normed = kernels.join_norm(
            picture.rows,
            bias,
            (),
            None,
            None,
            picture.batch,
            norm.num_groups,
            norm.weight,
            norm.bias,
            norm.eps,
            True,
            sums,
            shift=shift,
            write=False,
        )
        return picture.like(normed)

    def layer_norm(self, rows: Tensor, norm: Any) -> Tensor:
        return kernels.layer_norm(rows, norm.weight, norm.bias, norm.eps)

    def residual_norm(
        self,
        hidden: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Any | None,
        ahead: Tensor | None = None,
    ) -> Tensor:
        hidden.addmm_(rows, weight.t())
        if norm is not None:
            return kernels.layer_norm(hidden, norm.weight, norm.bias, norm.eps, bias, ahead)
        if bias is not None or ahead is not None:
            kernels.layer_norm(hidden, weight, weight, 0.0, bias, ahead, norm=False)
        return hidden

    def geglu(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.gate(functional.linear(rows, weight), bias)


class FusedOps(TritonOps):
    """Matrix products and 3x3 convolutions by our own kernels too, where that was measured to be faster.

    Bias, GEGLU and residual are inside the products. An instance has buffers of its own: two graphs that
    may run at the same time, or one that runs while another is captured, need one each.
    """

    def __init__(
        self,
        device: torch.device,
        pick: Pick = default_way,
        pick_conv: ConvPick | None = None,
        attend: Attend = pytorch_attention,
    ) -> None:
        super().__init__(attend)
        self._pick = pick
        self._pick_conv = pick_conv
        self._workspace = Workspace(device)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if rows.shape[0] < _FEW_ROWS:
            return functional.linear(rows, weight, bias)
        return products.linear(rows, weight, bias, pick=self._pick, workspace=self._workspace)

    def conv(self, picture: Picture, conv: Any, doubled: bool = False) -> Picture:
        channels = picture.rows.shape[1]
        if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or channels % 32 or conv.groups != 1:
            return super().conv(picture, conv, doubled)
        rows = conv3x3(
            picture.rows,
            picture.batch,
            picture.height,
            picture.width,
            conv.weight,
            conv.stride[0],
            doubled,
            pick=self._pick_conv,
            workspace=self._workspace,
        )
        return resized(picture, rows, conv.stride[0], doubled)

    def residual_norm(
        self,
        hidden: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Any | None,
        ahead: Tensor | None = None,
    ) -> Tensor:
        space, pick = self._workspace, self._pick
        kind = str(rows.dtype).removeprefix("torch.")
        size = (hidden.shape[0], hidden.shape[1], rows.shape[1])
        # Asked without the bias: cuBLAS leaves it to the norm behind it, a tile adds it for nothing.
        way = pick(Problem(*size, kind, residual=True, in_place=True))
        if way == "library":
            return super().residual_norm(hidden, rows, weight, bias, norm, ahead)
        products.linear(rows, weight, bias, residual=hidden, out=hidden, pick=lambda _: way, workspace=space)
        if norm is not None:
            return kernels.layer_norm(hidden, norm.weight, norm.bias, norm.eps, None, ahead)
        return hidden if ahead is None else hidden.add_(ahead)

    def geglu(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return products.linear_geglu(rows, weight, bias, pick=self._pick, workspace=self._workspace)


def resized(picture: Picture, rows: Tensor, stride: int, doubled: bool) -> Picture:
    """``rows`` as what a 3x3 convolution with padding 1 makes of a picture of that size."""
    if doubled:
        return Picture(rows, picture.batch, 2 * picture.height, 2 * picture.width)
    height, width = (picture.height - 1) // stride + 1, (picture.width - 1) // stride + 1
    return Picture(rows, picture.batch, height, width)
