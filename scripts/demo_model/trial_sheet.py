"""A sheet that shows what the diffusion model can do by now: restyled inputs and pictures from noise."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from scripts.demo_model.pairs import Captions
from scripts.demo_model.sampling import FOUR_STEPS, sample
from scripts.demo_model.settings import Settings
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.stage_latents import LatentScenes

PROMPTS = (
    "fire",
    "ocean",
    "marble in gold",
    "neon grid in magenta",
    "leopard",
    "stained glass circle",
    "brick",
    "honeycomb in azure",
    "lava",
    "zebra",
    "grass",
    "galaxy",
)


@torch.no_grad()
def save_trial_sheet(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderTiny,
    scenes: LatentScenes,
    s: Settings,
    name: str,
) -> None:
    """Columns: input; one step at 559, 679 and 799; two steps; from noise by one and by four steps."""
    unet, text, vae = unet.to(s.device).eval(), text.to(s.device).eval(), vae.to(s.device)
    n = len(PROMPTS)
    step = max(1, len(scenes.latents) // n)
    source = scenes.latents[::step][:n, 0].float()
    embedded = Captions(tokenizer, s.device).embed(text, list(PROMPTS))
    columns = [source]
    for steps in ((559,), (679,), (799,), (679, 399)):
        columns.append(sample(unet, embedded, steps, torch.Generator().manual_seed(1), source))
    for steps in ((999,), FOUR_STEPS):
        columns.append(sample(unet, embedded, steps, torch.Generator().manual_seed(1)))
    pictures = [vae.decode(column).sample / 2 + 0.5 for column in columns]
    rows = [torch.stack([p[i] for p in pictures]) for i in range(n)]
    half = n // 2
    save_sheet(
        [torch.cat([rows[i], rows[i + half]]) for i in range(half)], s.sheets / f"{name}.png", scale=0.5
    )
