"""The drawn pictures on disk: shards of scenes and of photo-like pictures, made once from the seed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch

from scripts.demo_model.photos import draw_photo_like
from scripts.demo_model.scenes import SceneBatch, draw_scenes
from scripts.demo_model.settings import Settings

SHARD = 128  # scenes or photos in a shard


def scene_shard_paths(s: Settings) -> list[Path]:
    return [s.drawings / f"scenes_{i:04d}.pt" for i in range(s.scenes // SHARD)]


def photo_shard_paths(s: Settings) -> list[Path]:
    return [s.drawings / f"photos_{i:04d}.pt" for i in range(s.photos // SHARD)]


def draw_all(s: Settings, deadline: float) -> bool:
    """Draw the shards that are missing, photos and scenes in turn; False when the deadline came first."""
    s.drawings.mkdir(parents=True, exist_ok=True)
    photos, scenes = photo_shard_paths(s), scene_shard_paths(s)
    queue = [path for pair in zip(photos, scenes, strict=False) for path in pair]
    queue += photos[len(scenes) :] + scenes[len(photos) :]
    for path in queue:
        if path.exists():
            continue
        if time.monotonic() > deadline:
            return False
        shard = draw_photo_shard(s, path) if path.name.startswith("photos") else draw_scene_shard(s, path)
        partial = path.with_suffix(".partial")
        torch.save({name: tensor.cpu() for name, tensor in shard.items()}, partial)
        partial.rename(path)
    return True


def draw_photo_shard(s: Settings, path: Path) -> dict[str, torch.Tensor]:
    generator, _ = _seeded(s, path.stem)
    parts = [draw_photo_like(s.draw_batch, s.size, generator) for _ in range(SHARD // s.draw_batch)]
    return {"pictures": (torch.cat(parts) * 255).round().to(torch.uint8)}


def draw_scene_shard(s: Settings, path: Path) -> dict[str, torch.Tensor]:
    """On the drawing device."""
    generator, rng = _seeded(s, path.stem)
    parts = [
        draw_scenes(s.draw_batch, s.styled, s.size, generator, rng) for _ in range(SHARD // s.draw_batch)
    ]
    return {
        name: torch.cat([getattr(p, name) for p in parts]).to(s.device) for name in SceneBatch.__annotations__
    }


def _seeded(s: Settings, name: str) -> tuple[torch.Generator, random.Random]:
    """Each shard has random numbers of its own, so that any can be drawn again alone."""
    seed = random.Random(f"{s.seed}-{name}").getrandbits(31)
    return torch.Generator(s.device).manual_seed(seed), random.Random(seed)
