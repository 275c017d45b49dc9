"""Stage: make one step sharp. A critic judges single-step pictures against drawn ones, in latent space.

Squared error alone gives the mean of all fitting pictures at much noise, which is a blur. Here the
low frequencies are still held to the wanted picture, so that the layout and the colours stay, and a
critic that also reads the caption's label sees to the texture. A third of the examples start from the
model's own earlier picture, noised again, as in sampling by several steps.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from scripts.demo_model.networks import (
    Critic,
    build_text_encoder,
    build_unet,
    make_tokenizer,
    train_with_plain_attention,
)
from scripts.demo_model.pairs import Captions, PairBatch, draw_pairs, restyled_share
from scripts.demo_model.progress import Progress, autocast, load_averaged
from scripts.demo_model.sampling import FOUR_STEPS, noise_levels
from scripts.demo_model.settings import Settings
from scripts.demo_model.stage_latents import load_latent_scenes, trained_vae
from scripts.demo_model.trial_sheet import save_trial_sheet
from sdbridge.models.embedded_model import MATERIALS, PALETTES

OWN_SHARE = 0.3  # examples that go on from the model's own picture
JUDGED_FROM = 250  # below this t the squared error alone decides
CRITIC_RATE = 4e-4
CRITIC_SHARE = 1.5  # the critic's pull on a picture, as a share of the squared error's
NAMING_WEIGHT = 0.3  # of the names beside the critic's verdict
TEXTURE_WEIGHT = 2.0  # of the likeness of textures, likewise
BLUR_NOISE = 0.05  # on what the critic sees, so that it cannot live by the last decimals
POOL = 4


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    tokenizer = make_tokenizer(s.work / "tokenizer")
    scenes = load_latent_scenes(s, deadline)
    unet = build_unet(s).to(s.device, memory_format=torch.channels_last)
    train_with_plain_attention(unet, s.device)
    text = build_text_encoder(s, tokenizer).to(s.device)
    if not (load_averaged(s, "unet", "unet", unet) and load_averaged(s, "unet", "text", text)):
        raise SystemExit("no trained UNet in the work folder: run the unet stage first")
    critic = Critic(s.latent_channels, len(MATERIALS), len(PALETTES)).to(
        s.device, memory_format=torch.channels_last
    )
    rate = s.learning_rate / 3
    maker = Progress(
        s,
        "distill",
        {"unet": unet, "text": text},
        s.distill_steps,
        rate,
        average=s.distill_average,
        betas=(0.5, 0.99),
    )
    judge = Progress(s, "critic", {"critic": critic}, s.distill_steps, CRITIC_RATE, 0.0, betas=(0.0, 0.99))
    captions = Captions(tokenizer, s.device)
    rng = random.Random(s.seed * 104729 + maker.step)
    torch.manual_seed(s.seed * 104729 + maker.step)
    net = torch.compile(unet, dynamic=False) if s.compile else unet
    side = scenes.latents.shape[-1]
    while maker.go_on(deadline):
        judge.go_on(deadline)
        small = maker.step < s.distill_steps * s.small_share
        count, crop = (s.batch_small, side // 2) if small else (s.batch_large, side)
        batch = draw_pairs(scenes, count, crop, rng, s)
        train_once(net, text, critic, captions, batch, maker, judge, s)
    save_trial_sheet(
        maker.averaged["unet"], maker.averaged["text"], tokenizer, trained_vae(s), scenes, s, "distill"
    )
    return maker.finished


def train_once(
    net: torch.nn.Module,
    text: torch.nn.Module,
    critic: Critic,
    captions: Captions,
    batch: PairBatch,
    maker: Progress,
    judge: Progress,
    s: Settings,
) -> None:
    """One step of the maker, then one of the critic on the same pictures."""
    n = len(batch.captions)
    signal, noise = noise_levels(s.device)
    t = draw_judged_times(n, s)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    share = restyled_share(t).view(-1, 1, 1, 1)
    with autocast(s):
        embedded = captions.embed(text, batch.captions)
    start, wanted = own_pictures(net, embedded.detach(), batch, t, s)
    wanted = torch.lerp(start, wanted, share)
    noisy = a * start + b * torch.randn_like(start)
    with autocast(s):
        velocity = net(noisy, t, embedded).sample
    clean = a * noisy - b * velocity.float()
    judged = (t >= JUDGED_FROM) & ~batch.unconditional
    weight = 1 / b.flatten().square().clamp(min=0.15)
    whole = (clean - wanted).square().mean((1, 2, 3))
    coarse = (F.avg_pool2d(clean, POOL) - F.avg_pool2d(wanted, POOL)).square().mean((1, 2, 3))
    held = torch.where(judged, coarse + 0.25 * whole * (1 - restyled_share(t) * 0.95), whole) * weight
    pull = torch.autograd.grad(held.mean(), clean, retain_graph=True)[0]
    if bool(judged.any()):
        critic.requires_grad_(False)
        push = torch.autograd.grad(displeasure(critic, clean, batch, judged, s), clean, retain_graph=True)[0]
        # both measured where the critic looks, so that neither drowns the other as training goes on
        ratio = pull[judged].norm() / push[judged].norm().clamp(min=1e-12)
        pull = pull + CRITIC_SHARE * ratio * push
    # a loss whose gradient at the picture is the sum above
    maker.update((clean * pull).sum())
    critic.requires_grad_(True)
    judging = critic_loss(critic, batch, clean.detach()[judged], judged, s)
    judge.update(judging)
    maker.note(held=held.mean().detach(), whole=whole.mean().detach(), judging=judging.detach())


def displeasure(
    critic: Critic, clean: torch.Tensor, batch: PairBatch, judged: torch.Tensor, s: Settings
) -> torch.Tensor:
    """What the critic has against the judged pictures: not real, not of that material and palette, or of
    another texture than the drawn picture of the same layout."""
    label = batch.label[judged]
    with autocast(s):
        shown = clean[judged] + torch.randn_like(clean[judged]) * BLUR_NOISE
        kept = critic.features(shown)
        fine, deep, material, palette = critic.verdict(kept, label)
        with torch.no_grad():
            drawn = critic.features(batch.target[judged])
    naming = F.cross_entropy(material.float(), label // (len(PALETTES) + 1))
    naming = naming + F.cross_entropy(palette.float(), label % (len(PALETTES) + 1))
    texture = sum(unlike(a, b) for a, b in zip(kept, drawn, strict=True)) / len(kept)
    return NAMING_WEIGHT * naming + TEXTURE_WEIGHT * texture - fine.float().mean() - deep.float().mean()


def unlike(made: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """How far the features' products, which do not know places, lie apart: 0 for equal textures."""
    a, b = made.float().flatten(2), drawn.float().flatten(2)
    products_a, products_b = a @ a.transpose(1, 2), b @ b.transpose(1, 2)
    apart = (products_a - products_b).square().sum((1, 2))
    return (apart / products_b.square().sum((1, 2)).clamp(min=1e-8)).clamp(max=10).mean()


@torch.no_grad()
def own_pictures(
    net: torch.nn.Module, embedded: torch.Tensor, batch: PairBatch, t: torch.Tensor, s: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """For a share of the batch the start and the coarse aim are the model's own one-step picture."""
    count = max(1, round(len(t) * OWN_SHARE))
    signal, noise = noise_levels(s.device)
    first = torch.full((count,), FOUR_STEPS[0], device=s.device)
    begin = signal[first].view(-1, 1, 1, 1) * batch.source[:count]
    begin = begin + noise[first].view(-1, 1, 1, 1) * torch.randn_like(begin)
    with autocast(s):
        velocity = net(begin, first, embedded[:count]).sample.float()
    own = signal[first].view(-1, 1, 1, 1) * begin - noise[first].view(-1, 1, 1, 1) * velocity
    keep = (~batch.unconditional[:count]).view(-1, 1, 1, 1)
    start, wanted = batch.source.clone(), batch.target.clone()
    start[:count] = torch.where(keep, own, start[:count])
    wanted[:count] = torch.where(keep, own, wanted[:count])
    return start, wanted


def critic_loss(
    critic: Critic, batch: PairBatch, made: torch.Tensor, judged: torch.Tensor, s: Settings
) -> torch.Tensor:
    """Hinge loss on drawn against made, and the names of the drawn ones' material and palette."""
    label = batch.label[~batch.unconditional]
    drawn = batch.target[~batch.unconditional]
    both = torch.cat([drawn, made])
    with autocast(s):
        shown = both + torch.randn_like(both) * BLUR_NOISE
        fine, deep, material, palette = critic(shown, torch.cat([label, batch.label[judged]]))
    count = len(drawn)
    loss = F.cross_entropy(material[:count].float(), label // (len(PALETTES) + 1))
    loss = loss + F.cross_entropy(palette[:count].float(), label % (len(PALETTES) + 1))
    for verdict in (fine.float(), deep.float()):
        loss = loss + F.relu(1 - verdict[:count]).mean()
        if len(made):
            loss = loss + F.relu(1 + verdict[count:]).mean()
    return loss


def draw_judged_times(n: int, s: Settings) -> torch.Tensor:
    """The grid that one- to four-step sampling uses: half in 330..800, a quarter at pure noise."""
    which = torch.rand(n, device=s.device)
    middle = torch.randint(330, 820, (n,), device=s.device)
    anywhere = torch.randint(0, 1000, (n,), device=s.device)
    t = torch.where(which < 0.75, middle, anywhere)
    return torch.where(which < 0.22, torch.full_like(t, 999), t)
