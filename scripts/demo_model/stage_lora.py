"""Stage: train a style LoRA on the frozen pipeline; `--variant ink` or `--variant glow`."""

from __future__ import annotations

import random

import torch

from scripts.demo_model.lora import LoraLayers
from scripts.demo_model.painted import clean_loss, load_frozen, load_painted
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.sampling import sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.styles import STYLE_FILTERS


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    style = variant or "ink"
    torch.manual_seed(s.seed)
    frozen = load_frozen(s)
    scenes = load_painted(s, frozen.vae)
    lora = LoraLayers(frozen.unet).to(s.device)
    lora.hook(frozen.unet)
    progress = Progress(s, f"lora_{style}", {"lora": lora}, s.side_steps, 2e-3, average=0.98)
    rng = random.Random(s.seed * 37 + progress.step)
    torch.manual_seed(s.seed * 37 + progress.step)
    while progress.go_on(deadline):
        rows, which = scenes.choose(s.batch_large, rng)
        styled = STYLE_FILTERS[style](scenes.pictures[rows, which].to(s.device).float() / 255) * 2 - 1
        with torch.no_grad(), autocast(s):
            wanted = frozen.vae.encode(styled.contiguous(memory_format=torch.channels_last)).latents.float()
        # from the unstyled input, from the picture itself, or from what is already in the style
        start = scenes.targets(rows, torch.where(torch.rand(len(rows)) < 0.5, which, 0), s.device)
        own = torch.rand(len(rows), 1, 1, 1, device=s.device) < 0.3
        start = torch.where(own, wanted, start)
        t = torch.randint(250, 1000, (len(rows),), device=s.device)
        loss = clean_loss(frozen, start, wanted, scenes.captions(rows, which, rng), t, s)
        progress.update(loss)
        progress.note(every=25, loss=loss.detach())
    text = frozen.captions.embed(frozen.text, ["fire", "marble", "honeycomb", "ocean"])
    with torch.no_grad():
        made = sample(frozen.unet, text, (999, 499), torch.Generator().manual_seed(1))
        save_sheet([frozen.vae.decode(made).sample / 2 + 0.5], s.sheets / f"lora_{style}.png", scale=0.5)
    return progress.finished
