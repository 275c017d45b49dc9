"""The packed UNet's operations with our kernels: for CUDA with Triton, replayable from a CUDA graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.accelerate.kernels import linear as products
from sdbridge.engine.accelerate.kernels import norm as kernels
from sdbridge.engine.accelerate.kernels.linear import Pick
from sdbridge.engine.accelerate.unet_ops import Pending, Picture, PlainOps

_FEW_ROWS = 16  # a product of so few rows is a matter of reading the weights once, which cuBLAS does well
_ARENA = 1 << 17  # 64-bit sums for all group norms of one pass and batch entry


class TritonOps(PlainOps):
    """Convolutions and matrix products by the libraries; all that lies between them by our kernels."""

    def __init__(self) -> None:
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
    """Matrix products by our own kernels too, bias, GEGLU and residual inside; ``pick`` names the way."""

    def __init__(self, pick: Pick | None = None) -> None:
        super().__init__()
        self._pick = pick

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if rows.shape[0] < _FEW_ROWS:
            return functional.linear(rows, weight, bias)
        return products.linear(rows, weight, bias, pick=self._pick)

    def residual_norm(
        self,
        hidden: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Any | None,
        ahead: Tensor | None = None,
    ) -> Tensor:
        bare = products.Problem(
            rows.shape[0], weight.shape[0], rows.shape[1], str(rows.dtype)[6:], residual=True, in_place=True
        )
        way = (self._pick or products.default_way)(bare)
        if way == "library":  # cuBLAS adds in place, and the norm behind it brings the bias for nothing
            return super().residual_norm(hidden, rows, weight, bias, norm, ahead)
        products.linear(rows, weight, bias, residual=hidden, out=hidden, pick=lambda _: way)
        if norm is not None:
            return kernels.layer_norm(hidden, norm.weight, norm.bias, norm.eps, None, ahead)
        return hidden if ahead is None else hidden.add_(ahead)

    def geglu(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return products.linear_geglu(rows, weight, bias, pick=self._pick)
