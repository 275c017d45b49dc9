"""Half precision stays as near to float32 as issue 3 asks: predicted noise and clean latent.

The bounds are held from picture to latent on weights that were trained, and at SD-Turbo's true size with
random ones from the clean latent on. With random weights a small net magnifies every rounding (diffusers'
own half form is 1.5e-3 to 2.5e-3 away on it), so there ours must be about as near as diffusers' own form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdbridge.engine.image.pictures import to_tensor
from sdbridge.models import embedded_model, random_weights
from tests.engine.image.rig import Rig, frame

VALUES = {"prompt.1.text": "fire", "scheduler": "lcm", "guidance_mode": "none"}
INDICES = ["0", "16", "16,32", "45"]
BOUND = 2e-3
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error by norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def worst(rig: Rig, exact: Rig, size: int = 64) -> tuple[float, float]:
    """How far noise and latent of ``rig`` are from ``exact``'s over some frames, at the most."""
    settled = getattr(rig.engine.painter.acceleration, "settled", None)
    if settled is not None:  # the first form is in the first frame, the fastest in those after it
        for each in (rig, exact):
            each.tick(frame(0, size))
        settled(300.0)
    noise = latent = 0.0
    for k in range(1, 4):
        wanted, found = exact.latent_of(frame(k, size)).cpu(), rig.latent_of(frame(k, size)).cpu()
        noises = [each.engine.painter._stream._next_predicted().cpu() for each in (rig, exact)]
        noise, latent = max(noise, apart(*noises)), max(latent, apart(found, wanted))
    return noise, latent


def latent_bound(rig: Rig) -> float:
    """The issue's ``2e-3 x max(1, b / a)``: where little signal is left, dividing by it magnifies."""
    plan = rig.engine.painter.settings.plan
    return BOUND * max(1.0, plan.sigma[-1] / plan.alpha[-1])


def check(folder: Path, indices: str, device: str) -> None:
    values = {**VALUES, "step_indices": indices}
    exact = Rig(folder, values, dtype="float32")
    half = Rig(folder, values, dtype="float16", device=device)
    noise, latent = worst(half, exact)
    assert noise <= BOUND and latent <= latent_bound(exact), (noise, latent)


@pytest.mark.parametrize("indices", ["16,32", "45"])
def test_half_on_the_cpu_stays_near_float32_with_trained_weights(indices: str) -> None:
    check(embedded_model.EMBEDDED_DIR, indices, "cpu")


@pytest.mark.parametrize("indices", INDICES, ids=str)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
def test_half_on_the_gpu_stays_near_float32_on_the_cpu(indices: str, device: str) -> None:
    check(embedded_model.EMBEDDED_DIR, indices, device)


@pytest.fixture
def exact_floats() -> Iterator[None]:
    """No TensorFloat-32, whose mantissa is a half's."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
def test_half_stays_near_float32_at_sd_turbos_true_size(tmp_path: Path, exact_floats, device: str) -> None:
    """From the same clean latent; encoding it in half is held to diffusers' own half form.

    Diffusers' half UNet with these weights is 1.4e-3 to 1.6e-3 away from float32 at every index (on the
    CPU, each operation's result rounded to half). A random tiny VAE magnifies rounding as no trained one
    does: the latent is 2.2e-3 away (the embedded model's: 6e-4), which at index 45, where the UNet's input
    is nearly all latent, is 2.3e-3 of the noise before the UNet has rounded anything.
    """
    folder = random_weights.build_random_checkpoint(tmp_path / "sd-turbo", "sd-turbo")
    check_from_the_same_latent(folder, device, 512)


def check_from_the_same_latent(folder: Path, device: str, size: int) -> None:
    for indices in INDICES:
        values = {**VALUES, "step_indices": indices}
        exact = Rig(folder, values, dtype="float32", device=device, acceleration="eager", size=size)
        half = Rig(folder, values, dtype="float16", device=device, size=size)
        mine, library = encoders_apart(half, exact, size)
        assert mine <= 1.25 * library, (mine, library)
        half.engine.painter._encode_input = exact.engine.painter._encode_input  # type: ignore[method-assign]
        noise, latent = worst(half, exact, size)
        assert noise <= BOUND and latent <= latent_bound(exact), (indices, noise, latent)
        exact.engine.unload()
        half.engine.unload()


@torch.inference_mode()
def encoders_apart(half: Rig, exact: Rig, size: int) -> tuple[float, float]:
    """How far half's latent of a picture is from ``exact``'s: as the stream encodes it, and by diffusers."""
    pixels = frame(1, size).main.pixels
    image = to_tensor(pixels, half.model.device, size, size)[:, :3]
    wanted = exact.engine.painter.encode(image)
    library = half.model.vae.encode((image * 2 - 1).half(), return_dict=False)[0]
    return apart(half.engine.painter.encode(image), wanted), apart(library, wanted)


def test_half_on_the_cpu_stays_near_float32_from_the_same_latent() -> None:
    check_from_the_same_latent(embedded_model.EMBEDDED_DIR, "cpu", 64)


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
def test_on_a_small_random_net_ours_is_as_near_as_diffusers_own_half(checkpoint, indices, device) -> None:
    values = {**VALUES, "step_indices": indices}
    exact = Rig(checkpoint(), values, dtype="float32")
    theirs = Rig(checkpoint(), values, dtype="float16", device=device, acceleration="eager")
    theirs_far = worst(theirs, exact)
    exact.engine.reset("hard")
    ours = Rig(checkpoint(), values, dtype="float16", device=device)
    for mine, library in zip(worst(ours, exact), theirs_far, strict=True):
        assert mine <= 1.25 * library, (mine, library)
