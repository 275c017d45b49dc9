"""What a packed UNet is made of: the operations, plainly in PyTorch; ``kernels/`` has the faster ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.accelerate.attention import Attend, pytorch_attention


@dataclass(frozen=True)
class Picture:
    """``batch`` maps of ``height`` x ``width`` as channels-last rows ``[batch * height * width, C]``."""

    rows: Tensor
    batch: int
    height: int
    width: int

    @staticmethod
    def of(tensor: Tensor) -> Picture:
        """From ``[B, C, h, w]``: without a copy where it lies channels-last."""
        batch, channels, height, width = tensor.shape
        return Picture(tensor.permute(0, 2, 3, 1).reshape(-1, channels), batch, height, width)

    def like(self, rows: Tensor) -> Picture:
        return replace(self, rows=rows)

    def tensor(self) -> Tensor:
        """``[B, C, h, w]``, a channels-last view."""
        return self.rows.view(self.batch, self.height, self.width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Pending:
    """A layer's raw product and what is still to be added: bias per channel, and residuals."""

    raw: Picture
    bias: Tensor | None
    residuals: tuple[Picture, ...] = ()

    def plus(self, residual: Picture) -> Pending:
        return replace(self, residuals=(*self.residuals, residual))


class UnetOps(Protocol):
    """The operations. ``norm`` is the module whose numbers are used, a GroupNorm or LayerNorm."""

    def begin(self, batch: int, device: torch.device) -> None:
        """Before each pass."""

    def conv(self, picture: Picture, conv: Any, doubled: bool = False) -> Picture:
        """The convolution without its bias; of the picture at twice its size where ``doubled``."""
        ...

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...

    def settle(
        self,
        pending: Pending,
        norm: Any | None,
        silu: bool = False,
        skip: Picture | None = None,
        skip_more: Picture | None = None,
    ) -> tuple[Picture, Picture]:
        """raw + bias + residuals, ``skip (+ skip_more)`` beside it in the channels; and its group norm."""
        ...

    def group_norm_shifted(self, picture: Picture, bias: Tensor | None, shift: Tensor, norm: Any) -> Picture:
        """silu(norm(picture + bias + shift)); ``shift`` ``[B, C]`` is the time projection."""
        ...

    def layer_norm(self, rows: Tensor, norm: Any) -> Tensor: ...

    def residual_norm(
        self,
        hidden: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Any | None,
        ahead: Tensor | None = None,
    ) -> Tensor:
        """hidden += rows weight^T + bias, in place; gives the layer norm of it (hidden itself for None).

        ``ahead`` is a bias that hidden will want later: it is added after the norm has been taken.
        """
        ...

    def geglu(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor: ...

    def attention(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        """Rows ``[batch * tokens, C]`` (views with a larger stride are fine) -> rows of the queries."""
        ...

    def upsample(self, picture: Picture, height: int, width: int) -> Picture:
        """To another size by the nearest pixel."""
        ...


class PlainOps:
    """Everything by PyTorch's own functions: any device, any dtype. The others are measured against it."""

    def __init__(self, attend: Attend = pytorch_attention) -> None:
        self._attend = attend

    def begin(self, batch: int, device: torch.device) -> None:
        """Nothing is kept between passes."""

    def conv(self, picture: Picture, conv: Any, doubled: bool = False) -> Picture:
        if doubled:
            picture = self.upsample(picture, 2 * picture.height, 2 * picture.width)
        out = functional.conv2d(picture.tensor(), conv.weight, None, conv.stride, conv.padding)
        return Picture.of(out)

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(rows, weight, bias)

    def settle(
        self,
        pending: Pending,
        norm: Any | None,
        silu: bool = False,
        skip: Picture | None = None,
        skip_more: Picture | None = None,
    ) -> tuple[Picture, Picture]:
        rows = pending.raw.rows
        if pending.bias is not None:
            rows = rows + pending.bias
        for residual in pending.residuals:
            rows = rows + residual.rows
        if skip is not None:
            beside = skip.rows if skip_more is None else skip.rows + skip_more.rows
            rows = torch.cat([rows, beside], dim=1)
        here = pending.raw.like(rows)
        if norm is None:
            return here, here
        out = functional.group_norm(here.tensor(), norm.num_groups, norm.weight, norm.bias, norm.eps)
        return here, Picture.of(functional.silu(out) if silu else out)

    def group_norm_shifted(self, picture: Picture, bias: Tensor | None, shift: Tensor, norm: Any) -> Picture:
        moved = picture.tensor() + (shift if bias is None else shift + bias)[:, :, None, None]
        out = functional.group_norm(moved, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return Picture.of(functional.silu(out))

    def layer_norm(self, rows: Tensor, norm: Any) -> Tensor:
        return functional.layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def residual_norm(
        self,
        hidden: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Any | None,
        ahead: Tensor | None = None,
    ) -> Tensor:
        hidden.add_(functional.linear(rows, weight, bias))
        normed = hidden if norm is None else self.layer_norm(hidden, norm)
        if ahead is not None:
            hidden.add_(ahead)
        return normed

    def geglu(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        value, gate = functional.linear(rows, weight, bias).chunk(2, dim=-1)
        return value * functional.gelu(gate)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int) -> Tensor:
        def split(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (batch, -1)).unflatten(-1, (heads, -1))

        return self._attend(split(query), split(key), split(value)).flatten(2).flatten(0, 1)

    def upsample(self, picture: Picture, height: int, width: int) -> Picture:
        return Picture.of(functional.interpolate(picture.tensor(), size=(height, width), mode="nearest"))
