"""The normalisation kernels and the packed pass built on them, by Triton's interpreter where no GPU is."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed")

from sdbridge.engine.accelerate.kernels import norm as kernels
from sdbridge.engine.accelerate.kernels.unet import FusedOps, TritonOps
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.unet_ops import Pending, Picture, PlainOps
from sdbridge.engine.image.seams import UnetCall
from tests.engine.accelerate.test_packed_unet import KINDS, build, error, make_call, plainly

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def picture(channels: int, height: int = 6, width: int = 5, batch: int = 2) -> Picture:
    rows = torch.randn(batch * height * width, channels, device=DEVICE) * 2 + 0.5
    return Picture(rows, batch, height, width)


def norm(channels: int, groups: int = 4) -> torch.nn.GroupNorm:
    made = torch.nn.GroupNorm(groups, channels, eps=1e-5, device=DEVICE).requires_grad_(False)
    made.weight.copy_(torch.rand(channels) + 0.5)
    made.bias.copy_(torch.randn(channels))
    return made


LIMITS = [32768, 0]  # a group in registers, or two kernels


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("residuals", [0, 1, 2])
@pytest.mark.parametrize("beside", ["", "skip", "skip and more"])
def test_settle_joins_and_normalises(monkeypatch, limit: int, residuals: int, beside: str) -> None:
    torch.manual_seed(residuals)
    monkeypatch.setattr(kernels, "WHOLE_GROUP", limit)
    pending = Pending(
        picture(20), torch.randn(20, device=DEVICE), tuple(picture(20) for _ in range(residuals))
    )
    skip = picture(12) if beside else None
    more = picture(12) if "more" in beside else None
    module = norm(32 if beside else 20)
    ops = TritonOps()
    ops.begin(2, torch.device(DEVICE))
    for silu in (True, False):
        found = ops.settle(pending, module, silu, skip, more)
        wanted = PlainOps().settle(pending, module, silu, skip, more)
        for mine, theirs in zip(found, wanted, strict=True):
            assert error(mine.rows, theirs.rows) < 2e-6
    joined, same = ops.settle(pending, None, False, skip, more)
    assert joined is same
    assert error(joined.rows, PlainOps().settle(pending, None, False, skip, more)[0].rows) < 1e-6


@pytest.mark.parametrize("limit", LIMITS)
def test_the_time_projection_is_added_before_the_norm(monkeypatch, limit: int) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(kernels, "WHOLE_GROUP", limit)
    wide = torch.randn(2, 50, device=DEVICE)
    given = picture(20)
    bias = torch.randn(20, device=DEVICE)
    ops = TritonOps()
    ops.begin(2, torch.device(DEVICE))
    found = ops.group_norm_shifted(given, bias, wide[:, 7:27], norm(20))
    torch.manual_seed(1)
    wide = torch.randn(2, 50, device=DEVICE)
    given, bias = picture(20), torch.randn(20, device=DEVICE)
    wanted = PlainOps().group_norm_shifted(given, bias, wide[:, 7:27], norm(20))
    assert error(found.rows, wanted.rows) < 2e-6


def test_a_residual_product_is_normalised_and_kept() -> None:
    torch.manual_seed(2)
    module = torch.nn.LayerNorm(24, device=DEVICE).requires_grad_(False)
    module.weight.copy_(torch.rand(24))
    hidden, rows = torch.randn(13, 24, device=DEVICE), torch.randn(13, 40, device=DEVICE)
    weight, bias = torch.randn(24, 40, device=DEVICE), torch.randn(24, device=DEVICE)
    ahead = torch.randn(24, device=DEVICE)
    cases = [
        (module, bias, None),
        (module, bias, ahead),
        (None, None, None),
        (None, bias, ahead),
        (module, None, ahead),
    ]
    for last, first, later in cases:
        mine, theirs = hidden.clone(), hidden.clone()
        found = TritonOps().residual_norm(mine, rows, weight, first, last, later)
        wanted = PlainOps().residual_norm(theirs, rows, weight, first, last, later)
        assert error(found, wanted) < 1e-5 and error(mine, theirs) < 1e-5


def test_geglu_is_that_of_diffusers() -> None:
    torch.manual_seed(3)
    rows = torch.randn(9, 16, device=DEVICE)
    weight, bias = torch.randn(44, 16, device=DEVICE), torch.randn(44, device=DEVICE)
    assert error(TritonOps().geglu(rows, weight, bias), PlainOps().geglu(rows, weight, bias)) < 1e-5


def in_dtype(call: UnetCall, dtype: torch.dtype) -> UnetCall:
    return UnetCall(
        sample=call.sample.to(DEVICE, dtype),
        timesteps=call.timesteps.to(DEVICE),
        encoder_hidden_states=call.encoder_hidden_states.to(DEVICE, dtype),
        added_cond={name: value.to(DEVICE, dtype) for name, value in call.added_cond.items()},
        timestep_cond=None if call.timestep_cond is None else call.timestep_cond.to(DEVICE, dtype),
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_packed_pass_on_kernels_is_the_module(kind: str) -> None:
    unet = build(kind).float().to(DEVICE)
    call = in_dtype(make_call(kind, unet, size=8), torch.float32)
    wanted = plainly(unet, call)
    assert error(PackedUnet(unet, TritonOps()).run(call), wanted) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_packed_pass_on_our_own_products_is_as_near_as_the_module_in_half(kind: str) -> None:
    call = make_call(kind, build(kind), size=16)
    exact = plainly(build(kind).to(DEVICE), in_dtype(call, torch.float64))
    unet = build(kind).half().to(DEVICE)
    small = in_dtype(call, torch.half)
    theirs = error(plainly(unet, small).double(), exact)
    ours = error(PackedUnet(unet, FusedOps(torch.device(DEVICE))).run(small).double(), exact)
    assert ours < max(2 * theirs, 1e-3)
