"""What only a CUDA device can show: precision in fp16, no hidden waits, memory given back."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.engine.image.rig import Rig, frame

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VALUES = {"prompt.1.text": "a fox", "scheduler": "lcm", "guidance_mode": "none"}


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error by norm."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("indices", ["0", "16", "16,32", "45"])
def test_fp16_on_the_gpu_stays_near_float32_on_the_cpu(checkpoint, indices: str) -> None:
    """The predicted noise within 2e-3 and the clean latent within 2e-3 x max(1, b/a)."""
    exact = Rig(checkpoint(), {**VALUES, "step_indices": indices}, dtype="float32")
    half = Rig(checkpoint(), {**VALUES, "step_indices": indices}, dtype="float16", device="cuda")
    for k in range(4):
        wanted, found = exact.latent_of(frame(k)), half.latent_of(frame(k)).cpu()
        noises = [rig.engine.painter._stream._next_predicted.cpu() for rig in (exact, half)]
        assert apart(noises[1], noises[0]) <= 2e-3
        plan = exact.engine.painter.settings.plan
        assert apart(found, wanted) <= 2e-3 * max(1.0, plan.sigma[-1] / plan.alpha[-1])


def test_a_tick_waits_for_the_device_only_to_hand_the_frame_out(checkpoint) -> None:
    rig = Rig(checkpoint(), {**VALUES, "steps": 2}, dtype="float16", device="cuda", acceleration="eager")
    rig.tick(frame(0))
    rig.set(seed_mode="random", strength=0.4, feature_bank__enabled=True)
    rig.tick(frame(1))
    torch.cuda.set_sync_debug_mode("error")  # any implicit wait raises; ours is explicit
    try:
        for k in range(2, 12):
            rig.tick(frame(k))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_unload_gives_the_memory_back(checkpoint) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        rig = Rig(checkpoint(), VALUES, dtype="float16", device="cuda")
        rig.tick(frame(0))
        rig.engine.unload()
        del rig
    gc.collect()  # the rig that watches an engine and the engine refer to each other
    assert torch.cuda.memory_allocated() - before < 2**20
