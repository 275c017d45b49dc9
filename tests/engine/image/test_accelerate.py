"""Choosing an acceleration, packing calls for graphs, and (on a GPU) that graphs give eager's numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from sdbridge.engine.accelerate import build_acceleration, choose_acceleration
from sdbridge.engine.accelerate.compile import _flat, _unflat
from sdbridge.engine.image.seams import UnetCall
from sdbridge.errors import SdbridgeError
from tests.engine.image.rig import Rig, frame, relative


def test_auto_takes_compile_on_cuda_and_eager_elsewhere_with_a_reason() -> None:
    assert choose_acceleration("auto", torch.device("cuda"))[0] == "compile"
    for device in ("cpu", "mps"):
        for choice in ("auto", "compile", "eager"):
            name, why = choose_acceleration(choice, torch.device(device))
            assert name == "eager" and why
    with pytest.raises(SdbridgeError, match="SDB-ENGINE-ACCELERATION"):
        build_acceleration("warp", None)  # type: ignore[arg-type]


def test_a_call_is_packed_and_unpacked_whole() -> None:
    def tensor() -> torch.Tensor:
        return torch.randn(2)

    call = UnetCall(
        tensor(),
        tensor(),
        tensor(),
        {"time_ids": tensor(), "text_embeds": tensor()},
        tuple(tensor() for _ in range(12)),
        tensor(),
        (tensor(), tensor()),
        timestep_cond=tensor(),
    )
    names, tensors = _flat(call)
    empty = UnetCall(*(torch.zeros(0),) * 3)
    back = _unflat(empty, names, tensors)
    for field in fields(UnetCall):
        ours, theirs = getattr(call, field.name), getattr(back, field.name)
        if isinstance(ours, tuple):
            assert all(a is b for a, b in zip(ours, theirs, strict=True)), field.name
        elif isinstance(ours, torch.Tensor):
            assert ours is theirs, field.name
        else:
            assert dict(ours) == dict(theirs), field.name
    plain = UnetCall(tensor(), tensor(), tensor())
    assert _unflat(plain, *_flat(plain)) == plain


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_graphs_give_the_numbers_of_eager_through_live_changes(checkpoint, family: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = {}
    for acceleration in ("eager", "compile"):
        rig = Rig(
            checkpoint(family),
            {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2},
            dtype="float32",
            device="cuda",
            acceleration=acceleration,
        )
        latents = []
        for k in range(12):
            if k == 4:
                rig.set(steps=3, guidance_mode="full", guidance_scale=2.0)
            if k == 8:
                rig.set(width=128, prompt__1__text="(ice:1.3)")
            latents.append(rig.latent_of(frame(k)).clone().cpu())
        found[acceleration] = latents
        rig.engine.unload()
    for a, b in zip(found["eager"], found["compile"], strict=True):
        assert relative(b, a) < 1e-3
