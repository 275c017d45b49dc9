"""A step of a maker of pictures and of the critic that judges them, in latent space.

The maker's error on the coarse picture pulls towards what is wanted; the critic, which knows the caption's
material and palette, pushes towards what drawings look like. So pictures stay sharp where their texture
cannot be known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from scripts.demo_model.networks import Critic
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.settings import Settings
from scripts.demo_model.stepping import Losses
from sdbridge.models.embedded_model import MATERIALS, PALETTES

CRITIC_RATE = 4e-4
CRITIC_SHARE = 1.5  # the critic's pull on a picture, as a share of the squared error's
NAMING_WEIGHT = 0.5  # of the names beside the critic's verdict
TEXTURE_WEIGHT = 2.0  # of the likeness of textures, likewise
BLUR_NOISE = 0.05  # on what the critic sees, so that it cannot live by the last decimals
POOL = 4  # latents over which the coarse picture is taken


@dataclass(frozen=True)
class Drawn:
    """What the critic compares made pictures with."""

    target: torch.Tensor  # drawn pictures of the same captions
    label: torch.Tensor  # material * 13 + palette
    known: torch.Tensor  # bool [n]: the label says what the target is
    judged: torch.Tensor  # bool [n]: the critic has a say about the made picture


def build_critic(s: Settings) -> Critic:
    critic = Critic(s.latent_channels, len(MATERIALS), len(PALETTES))
    return critic.to(s.device, memory_format=torch.channels_last)


def trained_critic(s: Settings) -> Critic:
    """The critic as distillation left it; untrained where there is none."""
    critic, path = build_critic(s), s.checkpoints / "critic.weights_critic.pt"
    if path.exists():
        critic.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["module"])
    return critic


def judge_of(s: Settings, name: str, critic: Critic, steps: int) -> Progress:
    """The critic's own training."""
    return Progress(s, name, {"critic": critic}, steps, CRITIC_RATE, 0.0, betas=(0.0, 0.99))


def coarse_error(clean: torch.Tensor, wanted: torch.Tensor, pool: int = POOL) -> torch.Tensor:
    """For each picture, the squared error of what is left of it when looked at from afar."""
    return F.avg_pool2d(clean - wanted, pool).square().mean((1, 2, 3))


def descend_judged(
    maker: Progress,
    judge: Progress,
    clean: torch.Tensor,
    held: torch.Tensor,
    drawn: Drawn,
    s: Settings,
) -> Losses:
    """One step of the maker of `clean`, whose errors `held` [n] are, then one of the critic."""
    critic = judge.modules["critic"]
    pull = torch.autograd.grad(held.mean(), clean, retain_graph=True)[0]
    critic.requires_grad_(False)
    push = torch.autograd.grad(displeasure(critic, clean, drawn, s), clean, retain_graph=True)[0]
    critic.requires_grad_(True)
    # both measured where the critic looks, so that neither drowns the other as training goes on
    mask = drawn.judged.view(-1, 1, 1, 1)
    ratio = (pull * mask).norm() / (push * mask).norm().clamp(min=1e-12)
    pull = pull + CRITIC_SHARE * ratio * push * mask
    # a loss whose gradient at the picture is the sum above
    maker.descend((clean * pull).sum())
    judging = critic_loss(critic, clean.detach(), drawn, s)
    judge.descend(judging)
    return {"held": held.mean().detach(), "judging": judging.detach()}


def displeasure(critic: Critic, clean: torch.Tensor, drawn: Drawn, s: Settings) -> torch.Tensor:
    """What the critic has against the judged pictures: not real, not of that material and palette, or of
    another texture than the drawn picture of the same layout."""
    with autocast(s):
        shown = clean + torch.randn_like(clean) * BLUR_NOISE
        kept = critic.features(shown)
        fine, deep, material, palette = critic.verdict(kept, drawn.label)
        with torch.no_grad():
            others = critic.features(drawn.target)
    naming = misnaming(material, palette, drawn.label)
    texture = sum(unlike(a, b) for a, b in zip(kept, others, strict=True)) / len(kept)
    unreal = -fine.float().mean((1, 2)) - deep.float().mean((1, 2))
    return mean_of(NAMING_WEIGHT * naming + TEXTURE_WEIGHT * texture + unreal, drawn.judged)


def critic_loss(critic: Critic, made: torch.Tensor, drawn: Drawn, s: Settings) -> torch.Tensor:
    """Hinge loss on drawn against made, and the names of the drawn ones' material and palette."""
    count = len(made)
    both = torch.cat([drawn.target, made])
    with autocast(s):
        shown = both + torch.randn_like(both) * BLUR_NOISE
        fine, deep, material, palette = critic(shown, torch.cat([drawn.label, drawn.label]))
    loss = mean_of(misnaming(material[:count], palette[:count], drawn.label), drawn.known)
    for verdict in (fine.float(), deep.float()):
        loss = loss + mean_of(F.relu(1 - verdict[:count]), drawn.known)
        loss = loss + mean_of(F.relu(1 + verdict[count:]), drawn.judged)
    return loss


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


def mean_of(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean over the chosen rows, at a fixed shape; 0 if there are none."""
    rows = values.float().flatten(1).mean(1) if values.dim() > 1 else values.float()
    return (rows * chosen).sum() / chosen.sum().clamp(min=1)
