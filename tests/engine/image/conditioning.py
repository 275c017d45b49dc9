"""Shared by conditioning tests: a context as the engine gives it, a UNet call as the stream makes it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.seams import ExtensionContext, Rows, StreamExtension, UnetCall
from sdbridge.models.small import Family, build_small_checkpoint


@dataclass
class Parts:
    """What an extension sees of a model."""

    family: str
    prediction: str
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    latent_scale: float = 1.0
    pixels_per_latent: int = 8


@functools.cache
def small_folder(family: Family) -> Path:
    return build_small_checkpoint(Path(tempfile.mkdtemp(prefix=f"small-{family}-")), family)


def small_parts(family: Family = "sd15") -> Parts:
    """Fresh modules of the small checkpoint."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder = small_folder(family)
    encoders: list[Any] = [CLIPTextModel.from_pretrained(folder / "text_encoder")]
    if family == "sdxl":
        encoders.append(CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"))
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    parts = Parts(
        family="sd15" if family == "sd15-inpaint" else family,
        prediction="v_prediction" if family == "sd21" else "epsilon",
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        vae=vae,
        text_encoders=tuple(encoders),
        latent_scale=vae.config.scaling_factor,
    )
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        module.eval().requires_grad_(False)
    return parts


@dataclass
class Bench:
    """A context, and what extensions told it."""

    parts: Parts
    context: ExtensionContext
    reports: list[tuple[str, str]]
    weights_changed: list[int]
    prompts_changed: list[int]
    waiting: list[Callable[[], None]]

    def finish_loading(self) -> None:
        """Do what was asked for beside the loop, now."""
        while self.waiting:
            self.waiting.pop(0)()


def make_bench(family: Family = "sd15", **options: object) -> Bench:
    parts = small_parts(family)
    reports: list[tuple[str, str]] = []
    weights: list[int] = []
    prompts: list[int] = []
    waiting: list[Callable[[], None]] = []

    def beside(job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        waiting.append(run)
        return future

    def encode(image: Tensor) -> Tensor:
        return parts.vae.encode(image * 2 - 1).latent_dist.mode() * parts.latent_scale

    context = ExtensionContext(
        model=parts,
        beside=beside,
        weights_changed=lambda: weights.append(1),
        prompts_changed=lambda: prompts.append(1),
        report=lambda error: reports.append((error.code, str(error))),
        encode=encode,
        options=options,
    )
    return Bench(parts, context, reports, weights, prompts, waiting)


@torch.no_grad()
def predict(
    bench: Bench,
    extensions: Sequence[StreamExtension],
    luggage: Sequence[Sequence[Any]],
    sample: Tensor,
    timesteps: Sequence[int],
    embeds: Tensor,
    *,
    negative: Tensor | None = None,
    added: Mapping[str, Tensor] | None = None,
    source: Tensor | None = None,
) -> tuple[Tensor, Rows]:
    """One UNet call as the stream makes it: sample ``[R, 4, h, w]``, luggage per extension per row."""
    count = sample.shape[0]
    mirrors = tuple(range(count)) * (2 if negative is not None else 1)
    pick = torch.tensor(mirrors)
    hidden = embeds.expand(count, -1, -1)
    if negative is not None:
        hidden = torch.cat((hidden, negative.expand(count, -1, -1)))
    call = UnetCall(
        sample=sample[pick],
        timesteps=torch.tensor(timesteps)[pick],
        encoder_hidden_states=hidden,
        added_cond=dict(added or {}),
    )
    rows = Rows(
        latents=sample,
        timesteps=torch.tensor(timesteps),
        timesteps_host=tuple(timesteps),
        fraction=tuple(1 - (t + 1) / 1000 for t in timesteps),
        luggage=(None,) * count,
        source=torch.zeros_like(sample) if source is None else source,
        mirrors=mirrors,
        guidance_rows=len(mirrors) - count,
        alpha=torch.ones(count, 1, 1, 1),
        sigma=torch.ones(count, 1, 1, 1),
    )
    from dataclasses import replace

    for extension, mine in zip(extensions, luggage, strict=True):
        call = extension.unet_inputs(replace(rows, luggage=tuple(mine)), call)
    found = bench.parts.unet(
        call.sample,
        call.timesteps,
        encoder_hidden_states=call.encoder_hidden_states,
        added_cond_kwargs=dict(call.added_cond),
        down_block_additional_residuals=call.down_residuals,
        mid_block_additional_residual=call.mid_residual,
        down_intrablock_additional_residuals=(
            None if call.intrablock_residuals is None else list(call.intrablock_residuals)
        ),
        cross_attention_kwargs=dict(call.cross_attention) or None,
    ).sample
    return found, rows


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
