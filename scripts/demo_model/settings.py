"""How big the networks and the training runs are: one preset for a CPU, one for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run besides the code."""

    work: Path
    device: str
    seed: int
    scenes: int  # layouts drawn for the diffusion stages, each once unstyled and `styled` times
    styled: int
    photos: int  # photo-like pictures for the VAE
    draw_batch: int
    vae_channels: int
    vae_batch: int
    vae_crop: int
    unet_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    batch_small: int  # batch of 16x16 latents
    batch_large: int  # batch of 32x32 latents
    learning_rate: float
    small_share: float  # of the diffusion stages' steps: on quarter pictures, which cost a quarter
    graph: int  # 1: record a training step as a CUDA graph
    horizon: float  # seconds of a whole stage over all calls; 0: its steps decide
    vae_shards: int  # shards of photos and of scenes the VAE sees
    vae_steps: int
    unet_steps: int
    distill_steps: int
    distill_average: float  # how slowly the averaged weights follow
    side_steps: int  # each ControlNet, LoRA, IP-Adapter
    side_batch: int
    side_shards: int  # shards of scenes that those see
    classifier_steps: int

    latent_channels: int = 8
    note_every: int = 50  # steps between two lines of a log
    size: int = 256

    @property
    def drawings(self) -> Path:
        """Pictures and latents: made again from the seed when missing, never carried."""
        return self.work / "drawings"

    @property
    def checkpoints(self) -> Path:
        """What a stage needs to go on: each file under 16 MiB, carried between machines."""
        return self.work / "checkpoints"

    @property
    def sheets(self) -> Path:
        return self.work / "sheets"


CPU = Settings(
    work=Path("train"),
    device="cpu",
    seed=5,
    scenes=6144,
    styled=3,
    photos=2560,
    draw_batch=8,
    vae_channels=32,
    vae_batch=16,
    vae_crop=96,
    unet_channels=(64, 96),
    text_width=96,
    text_layers=2,
    batch_small=48,
    batch_large=16,
    learning_rate=6e-4,
    small_share=0.85,
    graph=0,
    horizon=0.0,
    vae_shards=10,
    vae_steps=6000,
    unet_steps=6000,
    distill_steps=4000,
    distill_average=0.99,
    side_steps=800,
    side_batch=16,
    side_shards=3,
    classifier_steps=1500,
)
GPU = replace(
    CPU,
    device="cuda",
    note_every=100,
    scenes=32768,
    photos=12288,
    draw_batch=32,
    vae_batch=64,
    vae_crop=128,
    unet_channels=(64, 128),
    batch_small=512,
    batch_large=160,
    learning_rate=7e-4,
    small_share=0.4,
    graph=1,
    vae_shards=48,
    vae_steps=10000,
    unet_steps=60000,
    distill_steps=60000,
    distill_average=0.999,
    side_steps=20000,
    side_batch=64,
    side_shards=48,
    classifier_steps=3000,
)
