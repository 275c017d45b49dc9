"""What the side stages share: the finished pipeline, frozen, and scenes with what their pixels give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from scripts.demo_model.critique import Drawn
from scripts.demo_model.networks import (
    build_text_encoder,
    build_unet,
    train_with_plain_attention,
    write_vocabulary,
)
from scripts.demo_model.pairs import CaptionBank, Captions, text_states
from scripts.demo_model.progress import Progress, autocast, load_averaged
from scripts.demo_model.sampling import noise_levels
from scripts.demo_model.scenes import NO_PALETTE
from scripts.demo_model.settings import Settings
from scripts.demo_model.shards import draw_scene_shard, scene_shard_paths
from scripts.demo_model.stage_latents import encode, trained_vae
from scripts.demo_model.stepping import Losses, Stepper, prepare


@dataclass(frozen=True)
class Frozen:
    """The trained pipeline, which the side stages leave as it is."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    vae: AutoencoderTiny
    captions: Captions
    bank: CaptionBank


@dataclass(frozen=True)
class PaintedScenes:
    """Scenes on the training device, with what a stage has made from each picture's pixels."""

    latents: torch.Tensor  # fp16 [n, 1 + k, c, h/8, w/8]; entry 0 of a scene is unstyled
    made: torch.Tensor  # [n, 1 + k, ...]
    pictures: torch.Tensor  # uint8 [few, 1 + k, 3, h, w], for a sheet
    materials: torch.Tensor
    palettes: torch.Tensor
    compositions: torch.Tensor

    def choose(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scene and styled picture (1..k) of n random examples."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (n,), device=device)
        return rows, torch.randint(1, self.latents.shape[1], (n,), device=device)

    def targets(self, rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Latents of chosen pictures."""
        return self.latents[rows, which].float().contiguous(memory_format=torch.channels_last)

    def drawn(self, rows: torch.Tensor, which: torch.Tensor, target: torch.Tensor) -> Drawn:
        """What the critic compares a made picture of the same caption with."""
        label = self.materials[rows, which - 1] * (NO_PALETTE + 1) + self.palettes[rows, which - 1]
        every = torch.ones_like(rows, dtype=torch.bool)
        return Drawn(target, label, every, every)

    def ids(
        self, bank: CaptionBank, rows: torch.Tensor, which: torch.Tensor, palettes: bool = True
    ) -> torch.Tensor:
        """Captions of chosen pictures; `palettes=False` leaves the colours unsaid."""
        palette = self.palettes[rows, which - 1]
        if not palettes:
            palette = torch.full_like(palette, NO_PALETTE)
        return bank.pick(self.materials[rows, which - 1], palette, self.compositions[rows])


def load_frozen(s: Settings) -> Frozen:
    prepare(s)
    tokenizer = write_vocabulary(s.work / "tokenizer")
    unet, text = build_unet(s), build_text_encoder(s, tokenizer)
    stage = "distill" if (s.checkpoints / "distill.averaged.pt").exists() else "unet"
    if not (load_averaged(s, stage, "unet", unet) and load_averaged(s, stage, "text", text)):
        raise SystemExit("no trained UNet in the work folder: run the unet and distill stages first")
    train_with_plain_attention(unet, s.device)
    unet.to(s.device, memory_format=torch.channels_last).requires_grad_(False).eval()
    text.to(s.device).requires_grad_(False).eval()
    captions = Captions(tokenizer, s.device)
    return Frozen(unet, text, trained_vae(s), captions, CaptionBank(captions, s.seed))


@torch.no_grad()
def load_painted(
    s: Settings, vae: AutoencoderTiny, make: Callable[[torch.Tensor], torch.Tensor]
) -> PaintedScenes:
    """The first shards, drawn again where they are missing. `make` is given pictures [n, 3, h, w] in 0..1 and
    its answer is kept in their place."""
    parts, few = [], []
    for path in scene_shard_paths(s)[: s.side_shards]:
        shard = torch.load(path, weights_only=True) if path.exists() else draw_scene_shard(s, path)
        pictures = shard.pop("pictures").to(s.device)
        shard["latents"] = encode(vae, pictures, s)
        flat = pictures.flatten(0, 1)
        made = [make(chunk.float() / 255) for chunk in flat.split(16 if s.device == "cpu" else 128)]
        shard["made"] = torch.cat(made).unflatten(0, pictures.shape[:2])
        if len(few) < 8:
            few.append(pictures[:1])
        parts.append(shard)
    joined = {name: torch.cat([part[name] for part in parts]).to(s.device) for name in parts[0]}
    return PaintedScenes(pictures=torch.cat(few), **joined)


def one_step(
    frozen: Frozen, start: torch.Tensor, ids: torch.Tensor, t: torch.Tensor, s: Settings, **extra: object
) -> torch.Tensor:
    """The one-step picture from a noised start, in latents. `control` is called for the residuals."""
    signal, noise = noise_levels(s.device)
    a, b = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
    noisy = a * start + b * torch.randn_like(start)
    with autocast(s):
        with torch.no_grad():
            embedded = text_states(frozen.text, ids)
        made = {k: v(noisy, t, embedded) if callable(v) else v for k, v in extra.items()}
        residuals = made.pop("control", None)
        if residuals is not None:
            made["down_block_additional_residuals"], made["mid_block_additional_residual"] = residuals
        velocity = frozen.unet(noisy, t, embedded, **made).sample
    return a * noisy - b * velocity.float()


def any_start(scenes: PaintedScenes, rows: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """What to start from: a third nothing, a third the unstyled picture, a third another scene."""
    n, device = len(rows), rows.device
    other, styled = scenes.choose(n)
    kind = torch.randint(3, (n,), device=device)
    row = torch.where(kind == 2, other, rows)
    start = scenes.targets(row, torch.where(kind == 2, styled, torch.zeros_like(which)))
    return start * (kind > 0).view(-1, 1, 1, 1)


def train_side(
    maker: Progress, judge: Progress, step: Callable[[], Losses], deadline: float, s: Settings
) -> None:
    """Steps of a side stage and of its critic until they are done or the deadline comes."""
    stepper = Stepper(step, s)
    while maker.go_on(deadline):
        maker.set_rate()
        judge.set_rate()
        losses = stepper()
        maker.count()
        judge.count()
        maker.note(s.note_every, **losses)


def side_times(n: int, s: Settings) -> torch.Tensor:
    """Where conditioning matters: four in ten at pure noise, the rest in 350..999."""
    t = torch.randint(350, 1000, (n,), device=s.device)
    return torch.where(torch.rand(n, device=s.device) < 0.4, torch.full_like(t, 999), t)
