"""Numbers against outsiders: diffusers' pipelines and schedulers, and the published RCFG recursion."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sdbridge.engine.image.guidance import Guidance
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.schedule import noise_schedule, plan_steps
from sdbridge.engine.image.stream import StreamBatch
from sdbridge.engine.image.text import TextEmbedding
from sdbridge.engine.image.travellers import Entering, FrameTag
from tests.engine.image.rig import Rig, frame, relative

TIGHT = {"float64": 1e-9, "float32": 1e-5}


def double_precision(scheduler):
    """diffusers keeps its table in float32; the oracle shall not be what limits the comparison."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    scalings = getattr(scheduler, "get_scalings_for_boundary_condition_discrete", None)
    if scalings is not None:
        scheduler.get_scalings_for_boundary_condition_discrete = lambda t: scalings(int(t))
    return scheduler


def scheduler_for(kind: str, prediction: str):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler

    common = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": prediction,
    }
    if kind == "lcm":
        return LCMScheduler(**common, clip_sample=False)
    if kind == "tcd":
        return TCDScheduler(**common, clip_sample=False)
    if kind == "ddim":
        return DDIMScheduler(**common, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    return EulerDiscreteScheduler(**common, timestep_spacing="trailing")


CASES = (("none", 1.0, "ddim"), ("full", 3.0, "ddim"), ("none", 1.0, "lcm"), ("none", 1.0, "turbo"))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd15", "float64"), ("sd21", "float64"), ("sdxl", "float64"), ("sd15", "float32"), ("sdxl", "float32")],
)
def test_one_step_equals_the_image_to_image_pipeline(
    checkpoint, monkeypatch, family: str, dtype: str
) -> None:
    from diffusers import AutoencoderTiny, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline

    rig = Rig(
        checkpoint(family),
        {
            "prompt.1.text": "a red fox",
            "negative_prompt": "blurry",
            "schedule_steps": 2,
            "step_indices": "1",
        },
        dtype=dtype,
    )
    given = frame(5)
    kind_of_pipe = StableDiffusionXLImg2ImgPipeline if family == "sdxl" else StableDiffusionImg2ImgPipeline
    torch_dtype = getattr(torch, dtype)
    pipe = kind_of_pipe.from_pretrained(checkpoint(family), torch_dtype=torch_dtype, local_files_only=True)
    pipe.vae = AutoencoderTiny.from_pretrained(
        checkpoint(family) / "vae_tiny", torch_dtype=torch_dtype, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    module = sys.modules[kind_of_pipe.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: rig.noise(1))
    image = torch.from_numpy(given.main.pixels[..., :3].copy()).permute(2, 0, 1)[None].float() / 255
    for mode, scale, kind in CASES:
        if kind == "turbo" and dtype == "float64":
            continue  # diffusers' Euler scheduler works in float32 whatever the dtype
        rig.set(scheduler=kind, guidance_mode=mode, guidance_scale=scale)
        ours = rig.latent_of(given)
        pipe.scheduler = scheduler_for(kind, rig.model.prediction)
        if dtype == "float64":
            double_precision(pipe.scheduler)
        theirs = pipe(
            "a red fox",
            negative_prompt="blurry",
            image=image,
            strength=0.5,
            num_inference_steps=2,
            guidance_scale=scale,
            output_type="latent",
        ).images
        assert relative(ours, theirs) <= TIGHT[dtype], (mode, kind)


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_the_stream_batch_equals_the_same_steps_one_frame_at_a_time(
    checkpoint, monkeypatch, family: str
) -> None:
    """n frames at n different steps in one call, against diffusers' scheduler walking one frame."""
    rig = Rig(
        checkpoint(family),
        {"prompt.1.text": "waves", "schedule_steps": 4, "guidance_mode": "none", "tcd_gamma": 0.3},
    )
    chunks = [frame(k) for k in range(6)]
    text = rig.engine.painter._mixer.at_frame_edge(0.0).positive.tokens

    def one_by_one(kind: str, source: Tensor, noise: Tensor) -> Tensor:
        steps = noise.shape[0]
        scheduler = double_precision(scheduler_for(kind, rig.model.prediction))
        scheduler.set_timesteps(4)
        timesteps = scheduler.timesteps[4 - steps :]
        drawn = iter(noise[1:])
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(drawn)[None])
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(4 - steps)
        latent = scheduler.add_noise(source, noise[:1], timesteps[:1])
        for t in timesteps:
            scaled = scheduler.scale_model_input(latent, t).double()
            out = rig.model.unet(scaled, t, encoder_hidden_states=text, return_dict=False)[0]
            extra = {"eta": 0.3} if kind == "tcd" else {}
            step = scheduler.step(out, t, latent, return_dict=False, **extra)
            latent = step[0]
        return step[1] if kind == "lcm" else latent

    for kind in ("lcm", "tcd", "ddim", "turbo"):
        for steps in (2, 4):
            rig.engine.reset("hard")
            rig.set(scheduler=kind, step_indices=",".join(str(i) for i in range(4 - steps, 4)))
            ours = [rig.latent_of(chunk).clone() for chunk in chunks][steps - 1 :]
            noise = rig.noise(steps)
            with torch.inference_mode():
                for chunk, found in zip(chunks, ours, strict=False):
                    theirs = one_by_one(kind, rig.source_of(chunk), noise)
                    # diffusers' Euler step is float32 inside whatever it is given
                    assert relative(found, theirs) <= (1e-5 if kind == "turbo" else 1e-9), (kind, steps)


def test_two_frames_a_step_give_the_pictures_of_one_frame_a_step(checkpoint) -> None:
    values = {"prompt.1.text": "waves", "step_indices": "10,30", "scheduler": "lcm", "guidance_mode": "none"}
    chunks = [frame(k) for k in range(8)]
    one = Rig(checkpoint(), values)
    wanted = [one.latent_of(chunk) for chunk in chunks][1:]
    two = Rig(checkpoint(), {**values, "frame_batch": 2})
    found = []
    for chunk in chunks:
        made = two.tick(chunk)
        if made is not None:
            found += [entry["generated"].frame_id for entry in made.frames]
    assert found == [0, 0, 0, 1, 2, 3, 4, 5]
    latents = torch.cat(two.latents[1:])  # the first pair is the filled row
    assert relative(latents[:6], torch.cat(wanted)[:6]) <= 1e-9


class LinearUnet:
    """A UNet whose answer is a fixed mix of its input: enough to follow a recursion."""

    device = torch.device("cpu")
    dtype = torch.float64
    prediction = "epsilon"

    def __init__(self) -> None:
        self.weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def __call__(self, sample: Tensor, text: Tensor) -> Tensor:
        return (
            torch.einsum("oc,bchw->bohw", self.weights, sample).tanh()
            + 0.1 * text.mean((1, 2))[:, None, None, None]
        )


@pytest.mark.parametrize("mode", ["self", "initialize"])
@pytest.mark.parametrize("indices", [(16,), (16, 32), (0, 16, 32, 45)])
@pytest.mark.parametrize("boundary", [False, True])
def test_the_closed_form_equals_the_published_recursion(mode: str, indices, boundary: bool) -> None:
    """StreamDiffusion's recursion for the virtual noise S, step by step, against (X - a z) / b.

    The recursion in its published form knows c_skip and c_out; the closed form leaves them out, which is
    exact without them and 1e-5 with them (section 2.1: at every usable index they are 0 and 1).
    """
    gamma, delta = 1.4, 0.7
    plan = plan_steps(noise_schedule({}), "lcm", 50, indices)
    count = len(indices)
    if not boundary:
        plan = replace(plan, c_skip=(0.0,) * count, c_out=(1.0,) * count)
    model = LinearUnet()
    stream = StreamBatch(model)
    stream.prepare(plan, 1, (4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(count, 4, 8, 8, generator=generator, dtype=torch.float64)
    stream.set_noise(eps)
    positive, negative = torch.full((1, 3, 5), 0.5), torch.full((1, 3, 5), -0.5)
    conditioning = Conditioning(TextEmbedding(positive.double()), TextEmbedding(negative.double()))
    a, b, c_out, c_skip = (
        torch.tensor(row, dtype=torch.float64)[:, None, None, None]
        for row in (plan.alpha, plan.sigma, plan.c_out, plan.c_skip)
    )
    buffer = stock = None
    for k in range(12):
        z = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
        leaving = stream.run(
            Entering(z, z, (FrameTag(k, 0),)),
            Guidance(mode, gamma, delta),
            conditioning,
            lambda call: model(call.sample, call.encoder_hidden_states),
        )
        # the recursion, section 2.4; both start pre-filled from the first frame
        if buffer is None:
            x, stock_now = a * z + b * eps, eps.clone()
        else:
            x = torch.cat([a[:1] * z + b[:1] * eps[:1], buffer])
            stock_now = torch.cat([eps[:1], stock])
        conditioned = model(x, positive.double().expand(count, -1, -1))
        if mode == "initialize":
            stock_now[:1] = model(x[:1], negative.double())
        guided = delta * stock_now + gamma * (conditioned - delta * stock_now)
        x0 = c_out * (x - b * guided) / a + c_skip * x
        assert leaving is not None
        tight = 1e-9 if not boundary else 1e-5
        if k >= count or mode == "self" or count == 1:  # the fill of initialize has no negative row yet
            assert relative(leaving.latent, x0[-1:]) <= tight
        change = c_out * (b * stock_now - b * guided) / a + c_skip * b * stock_now
        buffer = (a[1:] * x0[:-1] + b[1:] * eps[1:]) if count > 1 else x[:0]
        stock = eps[1:] + (a[1:] / b[1:]) * change[:-1]


def test_self_guidance_at_one_step_stays_finite_where_the_recursion_explodes(checkpoint) -> None:
    """Defect 1: at index 0, S grew to NaN within 40 frames."""
    rig = Rig(
        checkpoint(),
        {
            "prompt.1.text": "x",
            "scheduler": "lcm",
            "step_indices": "0",
            "guidance_mode": "self",
            "guidance_scale": 1.2,
        },
        dtype="float32",
    )
    sizes = [float(rig.latent_of(frame(k)).std()) for k in range(60)]
    assert max(sizes) < 3 * min(sizes)


def test_full_and_initialize_use_the_negative_prompt_and_the_others_say_they_do_not(checkpoint) -> None:
    rig = Rig(checkpoint(), {"prompt.1.text": "x", "guidance_scale": 2.0, "scheduler": "lcm"})
    for mode, uses in (("full", True), ("initialize", True), ("self", False), ("none", False)):
        rig.set(guidance_mode=mode, negative_prompt="")
        plain = rig.latent_of(frame(1))
        rig.set(negative_prompt="something else entirely")
        other = rig.latent_of(frame(1))
        assert (relative(plain, other) > 1e-6) is uses, mode
        assert ("negative_prompt" in rig.engine.stats().unused) is not uses, mode


@pytest.mark.parametrize("mode", ["full", "self", "initialize"])
def test_guidance_goes_through_one_without_a_jump(checkpoint, mode: str) -> None:
    rig = Rig(
        checkpoint(),
        {"prompt.1.text": "x", "negative_prompt": "y", "guidance_mode": mode, "scheduler": "lcm", "steps": 2},
    )
    rig.tick(frame(0))
    latents = []
    for scale in (0.0, 0.99, 1.0, 1.0000001, 1.001):
        rig.set(guidance_scale=scale)
        for _ in range(2):
            found = rig.latent_of(frame(0))
        latents.append(found)
    assert relative(latents[1], latents[0]) == 0 and relative(latents[2], latents[0]) == 0
    assert 0 < relative(latents[3], latents[2]) < 1e-4 and relative(latents[4], latents[2]) < 1e-1


def test_a_fully_distilled_model_gets_its_guidance_as_an_input_and_not_twice(checkpoint, tmp_path) -> None:
    from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel

    folder = tmp_path / "lcm"
    shutil.copytree(checkpoint("sd15", "lcm"), folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": 32}).save_pretrained(folder / "unet")
    rig = Rig(folder, {"prompt.1.text": "x", "guidance_mode": "full", "guidance_scale": 8.0, "steps": 2})
    assert rig.model.sampler == "lcm"
    rig.tick(frame(0))
    call = rig.calls[-1]
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([7.0]), 32)
    assert call.timestep_cond is not None and call.timestep_cond.shape == (2, 32)
    assert relative(call.timestep_cond[:1], theirs) <= 1e-5
    first = rig.latent_of(frame(0))
    rig.set(guidance_scale=2.0)
    assert relative(rig.latent_of(frame(0)), first) > 1e-9
