"""Stage: make one step sharp. A critic judges single-step pictures against drawn ones, in latent space.

Squared error alone gives the mean of all fitting pictures at much noise, which is a blur. Here the
low frequencies are still held to the wanted picture, so that the layout and the colours stay, and a
critic that also reads the caption's label sees to the texture. A third of the examples start from the
model's own earlier picture, noised again, as in sampling by several steps.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from scripts.demo_model.networks import (
    Critic,
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
from sdbridge.models.embedded_model import MATERIALS, PALETTES

OWN_SHARE = 0.3  # examples that go on from the model's own picture
JUDGED_FROM = 250  # below this t the squared error alone decides
BLANK_SHARE = 0.6  # of the examples at pure noise: no source at all, as in making a picture from nothing
BLANK_HOLD = 0.15  # how firmly those are held to the drawn picture, which they cannot know
CRITIC_RATE = 4e-4
CRITIC_SHARE = 1.5  # the critic's pull on a picture, as a share of the squared error's
NAMING_WEIGHT = 0.5  # of the names beside the critic's verdict
TEXTURE_WEIGHT = 2.0  # of the likeness of textures, likewise
BLUR_NOISE = 0.05  # on what the critic sees, so that it cannot live by the last decimals
POOL = 4
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
    critic = Critic(s.latent_channels, len(MATERIALS), len(PALETTES)).to(
        s.device, memory_format=torch.channels_last
    )
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
    judge = Progress(s, "critic", {"critic": critic}, s.distill_steps, CRITIC_RATE, 0.0, betas=(0.0, 0.99))
    torch.manual_seed(s.seed * 104729 + maker.step)
    side = scenes.latents.shape[-1]

    def step(count: int, crop: int) -> Losses:
        batch = draw_pairs(scenes, bank, count, crop)
        return train_once(unet, text, critic, batch, maker, judge, s)

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
    critic: Critic,
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
    coarse = (F.avg_pool2d(clean, POOL) - F.avg_pool2d(wanted, POOL)).square().mean((1, 2, 3))
    held = torch.where(judged, coarse + 0.25 * whole * (1 - share * 0.95), whole) * weight
    pull = torch.autograd.grad(held.mean(), clean, retain_graph=True)[0]
    critic.requires_grad_(False)
    push = torch.autograd.grad(displeasure(critic, clean, batch, judged, s), clean, retain_graph=True)[0]
    critic.requires_grad_(True)
    # both measured where the critic looks, so that neither drowns the other as training goes on
    mask = judged.view(-1, 1, 1, 1)
    ratio = (pull * mask).norm() / (push * mask).norm().clamp(min=1e-12)
    pull = pull + CRITIC_SHARE * ratio * push * mask
    # a loss whose gradient at the picture is the sum above
    maker.descend((clean * pull).sum())
    judging = critic_loss(critic, batch, clean.detach(), judged, s)
    judge.descend(judging)
    return {"held": held.mean().detach(), "whole": whole.mean().detach(), "judging": judging.detach()}


def mean_of(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean over the chosen rows, at a fixed shape; 0 if there are none."""
    rows = values.float().flatten(1).mean(1) if values.dim() > 1 else values.float()
    return (rows * chosen).sum() / chosen.sum().clamp(min=1)


def displeasure(
    critic: Critic, clean: torch.Tensor, batch: PairBatch, judged: torch.Tensor, s: Settings
) -> torch.Tensor:
    """What the critic has against the judged pictures: not real, not of that material and palette, or of
    another texture than the drawn picture of the same layout."""
    with autocast(s):
        shown = clean + torch.randn_like(clean) * BLUR_NOISE
        kept = critic.features(shown)
        fine, deep, material, palette = critic.verdict(kept, batch.label)
        with torch.no_grad():
            drawn = critic.features(batch.target)
    naming = misnaming(material, palette, batch.label)
    texture = sum(unlike(a, b) for a, b in zip(kept, drawn, strict=True)) / len(kept)
    unreal = -fine.float().mean((1, 2)) - deep.float().mean((1, 2))
    return mean_of(NAMING_WEIGHT * naming + TEXTURE_WEIGHT * texture + unreal, judged)


def misnaming(material: torch.Tensor, palette: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """For each picture, how far its material and palette are from being named."""
    palettes = len(PALETTES) + 1
    wrong = F.cross_entropy(material.float(), label // palettes, reduction="none")
    return wrong + F.cross_entropy(palette.float(), label % palettes, reduction="none")


def unlike(made: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """For each picture, how far the features' products, which do not know places, lie apart: 0 for equal
    textures."""
    a, b = made.float().flatten(2), drawn.float().flatten(2)
    products_a, products_b = a @ a.transpose(1, 2), b @ b.transpose(1, 2)
    apart = (products_a - products_b).square().sum((1, 2))
    return (apart / products_b.square().sum((1, 2)).clamp(min=1e-8)).clamp(max=10)


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


def critic_loss(
    critic: Critic, batch: PairBatch, made: torch.Tensor, judged: torch.Tensor, s: Settings
) -> torch.Tensor:
    """Hinge loss on drawn against made, and the names of the drawn ones' material and palette."""
    known, count = ~batch.unconditional, len(made)
    both = torch.cat([batch.target, made])
    with autocast(s):
        shown = both + torch.randn_like(both) * BLUR_NOISE
        fine, deep, material, palette = critic(shown, torch.cat([batch.label, batch.label]))
    loss = mean_of(misnaming(material[:count], palette[:count], batch.label), known)
    for verdict in (fine.float(), deep.float()):
        loss = loss + mean_of(F.relu(1 - verdict[:count]), known)
        loss = loss + mean_of(F.relu(1 + verdict[count:]), judged)
    return loss


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
