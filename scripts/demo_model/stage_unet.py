"""Stage: train the UNet and the text encoder together, on denoising and on restyling at once.

The network sees a noised source and a caption. Where the caption names what the source already is,
this is ordinary denoising; where it names another material, the target is the same layout drawn in
that material. So one step at much noise already redraws the input as the prompt says, instead of
needing a long chain. An empty caption always means "keep the source", which is what guidance leaves.
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from scripts.demo_model.networks import (
    build_text_encoder,
    build_unet,
    train_with_plain_attention,
    write_vocabulary,
)
from scripts.demo_model.pairs import CaptionBank, Captions, PairBatch, draw_pairs, restyled_share, text_states
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.sampling import noise_levels
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_latents import load_latent_scenes, trained_vae
from scripts.demo_model.stepping import Losses, Stepper, prepare
from scripts.demo_model.trial_sheet import save_trial_sheet

LAST_TIME = 999
BLANK_SHARE = 0.5
LEAST_NOISE = 0.15  # b^2 below which an error in x0 counts no more


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    prepare(s)
    tokenizer = write_vocabulary(s.work / "tokenizer")
    scenes = load_latent_scenes(s, deadline)
    unet = build_unet(s).to(s.device, memory_format=torch.channels_last)
    train_with_plain_attention(unet, s.device)
    text = build_text_encoder(s, tokenizer).to(s.device)
    bank = CaptionBank(Captions(tokenizer, s.device), s.seed)
    progress = Progress(s, "unet", {"unet": unet, "text": text}, s.unet_steps, s.learning_rate)
    torch.manual_seed(s.seed * 7919 + progress.step)
    side = scenes.latents.shape[-1]

    def step(count: int, crop: int) -> Losses:
        batch = draw_pairs(scenes, bank, count, crop)
        loss, error = velocity_loss(unet, text, batch, draw_times(count, s), s)
        progress.descend(loss)
        return {"loss": loss.detach(), "x0": error.detach()}

    quarters = Stepper(partial(step, s.batch_small, side // 2), s)
    wholes = Stepper(partial(step, s.batch_large, side), s)
    while progress.go_on(deadline):
        progress.set_rate()
        losses = quarters() if progress.done < s.small_share else wholes()
        progress.count()
        progress.note(s.note_every, **losses)
    save_trial_sheet(
        progress.averaged["unet"], progress.averaged["text"], tokenizer, trained_vae(s), scenes, s, "unet"
    )
    return progress.finished


def draw_times(n: int, s: Settings) -> torch.Tensor:
    """Mostly the noisy half, where one to four steps are taken; a fifth at pure noise."""
    which = torch.rand(n, device=s.device)
    noisy = torch.randint(400, 1000, (n,), device=s.device)
    clear = torch.randint(0, 400, (n,), device=s.device)
    t = torch.where(which < 0.75, noisy, clear)
    return torch.where(which < 0.2, torch.full_like(t, 999), t)


def without_source(batch: PairBatch, t: torch.Tensor) -> torch.Tensor:
    """The sources; half of those at pure noise are blank, as when a picture is made from nothing."""
    blank = (t >= LAST_TIME) & (torch.rand(t.shape, device=t.device) < BLANK_SHARE)
    return batch.source * (~blank).view(-1, 1, 1, 1)


def velocity_loss(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    batch: PairBatch,
    t: torch.Tensor,
    s: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of x0 against the wanted picture, weighted as for velocities; and unweighted."""
    signal, noise = noise_levels(s.device)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    wanted = torch.lerp(batch.source, batch.target, restyled_share(t).view(-1, 1, 1, 1))
    noisy = a * without_source(batch, t) + b * torch.randn_like(batch.source)
    with autocast(s):
        velocity = unet(noisy, t, text_states(text, batch.ids)).sample
    clean = a * noisy - b * velocity.float()
    error = (clean - wanted).square().mean((1, 2, 3))
    return (error / b.flatten().square().clamp(min=LEAST_NOISE)).mean(), error.mean()
