"""Stage: train a style LoRA on the frozen pipeline; `--variant ink` or `--variant glow`."""

from __future__ import annotations

from functools import partial

import torch

from scripts.demo_model.critique import coarse_error, descend_judged, judge_of, trained_critic
from scripts.demo_model.lora import LoraLayers
from scripts.demo_model.painted import Frozen, PaintedScenes, load_frozen, load_painted, one_step, train_side
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.sampling import sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.stepping import Losses
from scripts.demo_model.styles import STYLE_FILTERS

EXACT = 0.1
BLANK_SHARE = 0.15  # examples that start from nothing
BLANK_HOLD = 0.15  # how firmly those are held to a layout that they cannot know


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    style = variant or "ink"
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)

    def styled(pictures: torch.Tensor) -> torch.Tensor:
        """Latents of the pictures in the style."""
        changed = (STYLE_FILTERS[style](pictures) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with autocast(s):
            return frozen.vae.encode(changed).latents.half()

    scenes = load_painted(s, frozen.vae, styled)
    lora = LoraLayers(frozen.unet).to(s.device)
    lora.hook(frozen.unet)
    progress = Progress(s, f"lora_{style}", {"lora": lora}, s.side_steps, 1.5e-3)
    torch.manual_seed(s.seed * 37 + progress.step)
    judge = judge_of(s, f"critic_{style}", trained_critic(s), s.side_steps)
    train_side(progress, judge, partial(train_once, frozen, scenes, progress, judge, s), deadline, s)
    with torch.no_grad():
        for mine, averaged in zip(lora.parameters(), progress.averaged.parameters(), strict=True):
            mine.copy_(averaged)
        sheet(frozen, scenes, s, style)
    return progress.finished


def train_once(
    frozen: Frozen, scenes: PaintedScenes, progress: Progress, judge: Progress, s: Settings
) -> Losses:
    rows, which = scenes.choose(s.side_batch)
    wanted = scenes.made[rows, which].float().contiguous(memory_format=torch.channels_last)
    # from the unstyled input, from the picture itself, from what is already in the style, from nothing
    n = len(rows)
    unstyled = torch.rand(n, device=s.device) < 0.5
    start = scenes.targets(rows, torch.where(unstyled, torch.zeros_like(which), which))
    own = torch.rand(n, 1, 1, 1, device=s.device) < 0.25
    start = torch.where(own, wanted, start)
    blank = torch.rand(n, device=s.device) < BLANK_SHARE
    start = start * (~blank).view(-1, 1, 1, 1)
    t = torch.randint(250, 1000, (n,), device=s.device)
    t = torch.where(blank, torch.full_like(t, 999), t)
    clean = one_step(frozen, start, scenes.ids(frozen.bank, rows, which), t, s)
    exact = EXACT * (clean - wanted).square().mean((1, 2, 3))
    held = (coarse_error(clean, wanted) + exact) * (1 - (1 - BLANK_HOLD) * blank.float())
    return descend_judged(progress, judge, clean, held, scenes.drawn(rows, which, wanted), s)


def sheet(frozen: Frozen, scenes: PaintedScenes, s: Settings, style: str) -> None:
    """Inputs over pictures in the style: by one step at 679, from nothing by one and by two."""
    pictures = scenes.pictures[:, 0].float() / 255
    source = frozen.vae.encode((pictures * 2 - 1).contiguous(memory_format=torch.channels_last)).latents
    prompts = ["fire", "marble", "honeycomb", "ocean", "brick", "zebra", "ice", "grass"][: len(pictures)]
    text = frozen.captions.embed(frozen.text, prompts)
    rows = [pictures]
    for steps, start in (((679,), source), ((999,), None), ((999, 499), None)):
        made = sample(frozen.unet, text, steps, torch.Generator().manual_seed(1), start)
        rows.append(frozen.vae.decode(made).sample / 2 + 0.5)
    save_sheet(rows, s.sheets / f"lora_{style}.png", scale=0.5)
