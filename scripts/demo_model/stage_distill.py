"""Stage: make one step sharp. A critic judges single-step pictures against drawn ones, in latent space.

Squared error alone gives the mean of all fitting pictures at much noise, which is a blur. Here the
low frequencies are still held to the wanted picture, so that the layout and the colours stay, and a
critic that also reads the caption's label sees to the texture. A third of the examples start from the
model's own earlier picture, noised again, as in sampling by several steps.
"""

from __future__ import annotations

from functools import partial

import torch

from scripts.demo_model.critique import Drawn, build_critic, coarse_error, descend_judged, judge_of
from scripts.demo_model.networks import (
    build_text_encoder,
    build_unet,
    train_with_plain_attention,
    write_vocabulary,
)
from scripts.demo_model.pairs import CaptionBank, Captions, PairBatch, draw_pairs, restyled_share, text_states
from scripts.demo_model.progress import Progress, autocast, load_averaged
from scripts.demo_model.sampling import FOUR_STEPS, noise_levels
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_latents import load_latent_scenes, trained_vae
from scripts.demo_model.stepping import Losses, Stepper, prepare
from scripts.demo_model.trial_score import Trial
from scripts.demo_model.trial_sheet import save_trial_sheet

OWN_SHARE = 0.3  # examples that go on from the model's own picture
JUDGED_FROM = 250  # below this t the squared error alone decides
BLANK_SHARE = 0.6  # of the examples at pure noise: no source at all, as in making a picture from nothing
BLANK_HOLD = 0.15  # how firmly those are held to the drawn picture, which they cannot know
TRIAL_EVERY_S = 45.0


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    prepare(s)
    tokenizer = write_vocabulary(s.work / "tokenizer")
    scenes = load_latent_scenes(s, deadline)
    unet = build_unet(s).to(s.device, memory_format=torch.channels_last)
    train_with_plain_attention(unet, s.device)
    text = build_text_encoder(s, tokenizer).to(s.device)
    begun = (s.checkpoints / "distill.averaged.pt").exists()  # then the stage's own files are taken
    if not begun and not (load_averaged(s, "unet", "unet", unet) and load_averaged(s, "unet", "text", text)):
        raise SystemExit("no trained UNet in the work folder: run the unet stage first")
    bank = CaptionBank(Captions(tokenizer, s.device), s.seed)
    maker = Progress(
        s,
        "distill",
        {"unet": unet, "text": text},
        s.distill_steps,
        s.learning_rate / 3,
        average=s.distill_average,
        betas=(0.5, 0.99),
    )
    judge = judge_of(s, "critic", build_critic(s), s.distill_steps)
    torch.manual_seed(s.seed * 104729 + maker.step)
    side = scenes.latents.shape[-1]

    def step(count: int, crop: int) -> Losses:
        batch = draw_pairs(scenes, bank, count, crop)
        return train_once(unet, text, batch, maker, judge, s)

    quarters = Stepper(partial(step, s.batch_small, side // 2), s)
    wholes = Stepper(partial(step, s.batch_large, side), s)
    trial = Trial(s, trained_vae(s), Captions(tokenizer, s.device), TRIAL_EVERY_S)
    while maker.go_on(deadline):
        judge.go_on(deadline)
        maker.set_rate()
        judge.set_rate()
        losses = quarters() if maker.done < s.small_share else wholes()
        maker.count()
        judge.count()
        maker.note(s.note_every, **losses)
        trial.now_and_then(maker)
    judge.save()
    trial.write(maker)
    save_trial_sheet(
        maker.averaged["unet"], maker.averaged["text"], tokenizer, trained_vae(s), scenes, s, "distill"
    )
    return maker.finished


def train_once(
    unet: torch.nn.Module,
    text: torch.nn.Module,
    batch: PairBatch,
    maker: Progress,
    judge: Progress,
    s: Settings,
) -> Losses:
    """One step of the maker, then one of the critic on the same pictures."""
    signal, noise = noise_levels(s.device)
    t, blank = draw_judged_times(batch, s)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    share = restyled_share(t)
    with autocast(s):
        embedded = text_states(text, batch.ids)
    start, wanted = own_pictures(unet, embedded.detach(), batch, s)
    wanted = torch.lerp(start, wanted, share.view(-1, 1, 1, 1))
    noisy = a * start * (~blank).view(-1, 1, 1, 1) + b * torch.randn_like(start)
    with autocast(s):
        velocity = unet(noisy, t, embedded).sample
    clean = a * noisy - b * velocity.float()
    judged = (t >= JUDGED_FROM) & ~batch.unconditional
    weight = 1 / b.flatten().square().clamp(min=0.15)
    weight = torch.where(blank & judged, weight * BLANK_HOLD, weight)
    whole = (clean - wanted).square().mean((1, 2, 3))
    coarse = coarse_error(clean, wanted)
    held = torch.where(judged, coarse + 0.25 * whole * (1 - share * 0.95), whole) * weight
    drawn = Drawn(batch.target, batch.label, ~batch.unconditional, judged)
    return descend_judged(maker, judge, clean, held, drawn, s) | {"whole": whole.mean().detach()}


def own_count(n: int) -> int:
    """How many examples, the first ones, go on from the model's own picture."""
    return max(1, round(n * OWN_SHARE))


@torch.no_grad()
def own_pictures(
    unet: torch.nn.Module, embedded: torch.Tensor, batch: PairBatch, s: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """For a share of the batch, start and coarse aim are the model's own picture of one or two steps."""
    count = own_count(len(batch.source))
    signal, noise = noise_levels(s.device)
    blank = torch.rand(count, 1, 1, 1, device=s.device) < BLANK_SHARE
    own = batch.source[:count] * ~blank
    for number, time in enumerate(FOUR_STEPS[:2]):
        t = torch.full((count,), time, device=s.device)
        a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
        noisy = a * own + b * torch.randn_like(own)
        with autocast(s):
            velocity = unet(noisy, t, embedded[:count]).sample.float()
        made = a * noisy - b * velocity
        again = torch.rand(count, 1, 1, 1, device=s.device) < 0.5
        own = made if number == 0 else torch.where(again, made, own)
    keep = (~batch.unconditional[:count]).view(-1, 1, 1, 1)
    start = torch.cat([torch.where(keep, own, batch.source[:count]), batch.source[count:]])
    wanted = torch.cat([torch.where(keep, own, batch.target[:count]), batch.target[count:]])
    return start, wanted


def draw_judged_times(batch: PairBatch, s: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid that one- to four-step sampling uses: half in 330..800, a quarter at pure noise; and which of
    those have no source. The model's own pictures go on at 240..800."""
    n, own = len(batch.source), own_count(len(batch.source))
    which = torch.rand(n, device=s.device)
    middle = torch.randint(330, 820, (n,), device=s.device)
    anywhere = torch.randint(0, 1000, (n,), device=s.device)
    t = torch.where(which < 0.75, middle, anywhere)
    t = torch.where(which < 0.3, torch.full_like(t, FOUR_STEPS[0]), t)
    t = torch.cat([torch.randint(240, 820, (own,), device=s.device), t[own:]])
    blank = (t >= FOUR_STEPS[0]) & (torch.rand(n, device=s.device) < BLANK_SHARE)
    return t, blank
