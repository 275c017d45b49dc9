"""Stage: encode the drawn scenes once, so that the diffusion stages read small latents only."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from scripts.demo_model.networks import build_vae
from scripts.demo_model.progress import autocast, load_averaged
from scripts.demo_model.settings import Settings
from scripts.demo_model.shards import draw_scene_shard, scene_shard_paths


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    vae = trained_vae(s)
    s.drawings.mkdir(parents=True, exist_ok=True)
    for scene_path, latent_path in zip(scene_shard_paths(s), latent_paths(s, vae), strict=True):
        if latent_path.exists():
            continue
        if time.monotonic() > deadline:
            return False
        shard = (
            torch.load(scene_path, weights_only=True)
            if scene_path.exists()
            else draw_scene_shard(s, scene_path)
        )
        shard["latents"] = encode(vae, shard.pop("pictures"), s)
        partial = latent_path.with_suffix(".partial")
        torch.save({name: tensor.cpu() for name, tensor in shard.items()}, partial)
        partial.rename(latent_path)
    return True


def trained_vae(s: Settings) -> AutoencoderTiny:
    vae = build_vae(s)
    if not load_averaged(s, "vae", "vae", vae):
        raise SystemExit("no trained VAE in the work folder: run the vae stage first")
    return vae.to(s.device, memory_format=torch.channels_last).requires_grad_(False).eval()


def latent_paths(s: Settings, vae: AutoencoderTiny) -> list[Path]:
    """Named after the VAE too, so that latents of an older one are never taken."""
    digest = hashlib.sha256()
    for tensor in vae.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return [s.drawings / f"latents_{digest.hexdigest()[:10]}_{i:04d}.pt" for i in range(s.scenes // 128)]


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: torch.Tensor, s: Settings) -> torch.Tensor:
    """uint8 [n, k, 3, h, w] to fp16 latents [n, k, c, h/8, w/8] on the training device."""
    flat, parts = pictures.flatten(0, 1), []
    for chunk in flat.split(16 if s.device == "cpu" else 128):
        batch = (chunk.to(s.device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with autocast(s):
            parts.append(vae.encode(batch).latents.half())
    return torch.cat(parts).unflatten(0, pictures.shape[:2])


@dataclass(frozen=True)
class LatentScenes:
    """All encoded scenes in memory, on the training device."""

    latents: torch.Tensor  # fp16 [n, 1 + k, c, h, w]; entry 0 of a scene is unstyled
    materials: torch.Tensor  # [n, k]
    palettes: torch.Tensor  # [n, k]
    compositions: torch.Tensor  # [n]


def load_latent_scenes(s: Settings, deadline: float) -> LatentScenes:
    """Encode what is missing and load it; on a CPU go on with the shards there are at the deadline."""
    run(s, deadline)
    shards = [torch.load(p, weights_only=True) for p in latent_paths(s, trained_vae(s)) if p.exists()]
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in LatentScenes.__annotations__}
    return LatentScenes(**{name: tensor.to(s.device) for name, tensor in joined.items()})
