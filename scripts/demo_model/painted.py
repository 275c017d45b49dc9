"""What the side stages share: the finished pipeline, frozen, and scenes with their pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from scripts.demo_model.networks import (
    build_text_encoder,
    build_unet,
    train_with_plain_attention,
    write_vocabulary,
)
from scripts.demo_model.pairs import Captions
from scripts.demo_model.progress import autocast, load_averaged
from scripts.demo_model.sampling import noise_levels
from scripts.demo_model.scenes import NO_PALETTE, caption_of
from scripts.demo_model.settings import Settings
from scripts.demo_model.shards import draw_scene_shard, scene_shard_paths
from scripts.demo_model.stage_latents import encode, trained_vae

PIXEL_SHARDS = {"cpu": 3, "cuda": 24}


@dataclass(frozen=True)
class Frozen:
    """The trained pipeline, which the side stages leave as it is."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    vae: AutoencoderTiny
    captions: Captions


@dataclass(frozen=True)
class PaintedScenes:
    """Scenes with pixels and latents, for control images and styles."""

    pictures: torch.Tensor  # uint8 [n, 1 + k, 3, h, w]
    latents: torch.Tensor  # fp16 [n, 1 + k, c, h/8, w/8]
    materials: torch.Tensor
    palettes: torch.Tensor
    compositions: torch.Tensor

    def choose(self, n: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Scene and styled picture (1..k) of n random examples."""
        rows = torch.tensor([rng.randrange(len(self.pictures)) for _ in range(n)])
        which = torch.tensor([rng.randrange(1, self.pictures.shape[1]) for _ in range(n)])
        return rows, which

    def targets(self, rows: torch.Tensor, which: torch.Tensor, device: str) -> torch.Tensor:
        """Latents of chosen pictures on the training device."""
        chosen = self.latents[rows, which].to(device).float()
        return chosen.contiguous(memory_format=torch.channels_last)

    def captions(
        self, rows: torch.Tensor, which: torch.Tensor, rng: random.Random, palettes: bool = True
    ) -> list[str]:
        """Captions of chosen pictures; `palettes=False` leaves the colours unsaid."""
        lines = []
        for row, k in zip(rows.tolist(), which.tolist(), strict=True):
            palette = int(self.palettes[row, k - 1]) if palettes else NO_PALETTE
            lines.append(
                caption_of(int(self.materials[row, k - 1]), palette, int(self.compositions[row]), rng)
            )
        return lines


def load_frozen(s: Settings) -> Frozen:
    tokenizer = write_vocabulary(s.work / "tokenizer")
    unet, text = build_unet(s), build_text_encoder(s, tokenizer)
    stage = "distill" if (s.checkpoints / "distill.averaged.pt").exists() else "unet"
    if not (load_averaged(s, stage, "unet", unet) and load_averaged(s, stage, "text", text)):
        raise SystemExit("no trained UNet in the work folder: run the unet and distill stages first")
    train_with_plain_attention(unet, s.device)
    unet.to(s.device, memory_format=torch.channels_last).requires_grad_(False).eval()
    text.to(s.device).requires_grad_(False).eval()
    return Frozen(unet, text, trained_vae(s), Captions(tokenizer, s.device))


def load_painted(s: Settings, vae: AutoencoderTiny) -> PaintedScenes:
    """The first shards with their pixels; drawn again where they are missing."""
    parts = []
    for path in scene_shard_paths(s)[: PIXEL_SHARDS[s.device]]:
        shard = torch.load(path, weights_only=True) if path.exists() else draw_scene_shard(s, path)
        shard["latents"] = encode(vae, shard["pictures"], s)
        parts.append(shard)
    joined = {name: torch.cat([part[name] for part in parts]) for name in PaintedScenes.__annotations__}
    return PaintedScenes(**joined)


def clean_loss(
    frozen: Frozen,
    start: torch.Tensor,
    wanted: torch.Tensor,
    captions: list[str],
    t: torch.Tensor,
    s: Settings,
    **extra: object,
) -> torch.Tensor:
    """Squared error of the one-step picture from a noised start, in latents."""
    signal, noise = noise_levels(s.device)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    noisy = a * start + b * torch.randn_like(start)
    embedded = frozen.captions.embed(frozen.text, captions)
    with autocast(s):
        made = {k: v(noisy, t, embedded) if callable(v) else v for k, v in extra.items()}
        residuals = made.pop("control", None)
        if residuals is not None:
            made["down_block_additional_residuals"], made["mid_block_additional_residual"] = residuals
        velocity = frozen.unet(noisy, t, made.pop("embedded", embedded), **made).sample
    clean = a * noisy - b * velocity.float()
    return (clean - wanted).square().mean()


def side_times(n: int, s: Settings) -> torch.Tensor:
    """Where conditioning matters: half at pure noise, the rest in 500..999."""
    t = torch.randint(500, 1000, (n,), device=s.device)
    return torch.where(torch.rand(n, device=s.device) < 0.5, torch.full_like(t, 999), t)
