"""Stage: train the autoencoder on crops of photo-like pictures and of drawings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from scripts.demo_model.networks import build_vae
from scripts.demo_model.progress import Progress, autocast
from scripts.demo_model.settings import Settings
from scripts.demo_model.shards import photo_shard_paths, scene_shard_paths
from scripts.demo_model.sheets import save_sheet
from scripts.demo_model.stage_draw import run as draw

LATENT_NOISE = 0.04  # the decoder must bear a UNet's small errors


def run(s: Settings, deadline: float, variant: str = "") -> bool:
    torch.manual_seed(s.seed)
    wanted = photo_shard_paths(s)[: s.vae_shards] + scene_shard_paths(s)[: s.vae_shards]
    if not all(path.exists() for path in wanted):
        draw(s, deadline)
    pictures = load_pictures(s)
    vae = build_vae(s).to(s.device, memory_format=torch.channels_last)
    progress = Progress(s, "vae", {"vae": vae}, s.vae_steps, rate=1.5e-3)
    rng = torch.Generator().manual_seed(s.seed * 1000 + progress.step)
    while progress.go_on(deadline):
        batch = crops(pictures, s, rng)
        with autocast(s):
            latent = vae.encode(batch).latents
            noise = torch.randn(latent.shape, device=latent.device) * LATENT_NOISE
            rebuilt = vae.decode(latent + noise).sample
        loss, mse = reconstruction_loss(rebuilt.float(), batch)
        spread = spread_loss(latent.float())
        progress.update(loss + 0.02 * spread)
        progress.note(
            loss=loss.detach(),
            psnr=-10 * math.log10(max(float(mse.detach()) / 4, 1e-9)),
            spread=spread.detach(),
        )
    averaged = progress.averaged["vae"]
    samples = torch.cat([group[:4] for group in pictures]).float() / 127.5 - 1
    with torch.no_grad():
        rebuilt = averaged.to(s.device)(samples.to(s.device)).sample
    save_sheet([samples / 2 + 0.5, rebuilt / 2 + 0.5], s.sheets / "vae.png")
    for name, figures in photograph_figures(averaged.cpu()).items():
        print(f"vae {name}: {figures[0]:.2f} dB, box-down copy {figures[1]:.2f} dB", flush=True)
    return progress.finished


def load_pictures(s: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 photos and drawings of the first shards, on the CPU."""
    photos = [torch.load(p, weights_only=True)["pictures"] for p in photo_shard_paths(s)[: s.vae_shards]]
    scenes = [
        torch.load(p, weights_only=True)["pictures"].flatten(0, 1)
        for p in scene_shard_paths(s)[: s.vae_shards]
    ]
    return torch.cat(photos), torch.cat(scenes)


def crops(pictures: tuple[torch.Tensor, torch.Tensor], s: Settings, rng: torch.Generator) -> torch.Tensor:
    """A batch of square crops, half photo-like and half drawn, flipped and turned at random, -1..1."""
    parts = []
    side = s.vae_crop
    for group in pictures:
        for _ in range(s.vae_batch // 2):
            i = int(torch.randint(0, len(group), (1,), generator=rng))
            top, left, turn, flip = torch.randint(0, 10**6, (4,), generator=rng).tolist()
            top, left = top % (s.size - side + 1), left % (s.size - side + 1)
            crop = group[i, :, top : top + side, left : left + side]
            crop = torch.rot90(crop, turn % 4, (1, 2))
            parts.append(crop.flip(2) if flip % 2 else crop)
    batch = torch.stack(parts).to(s.device).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(rebuilt: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error with absolute error and gradients, so that edges stay crisp."""
    difference = rebuilt - target
    mse = difference.square().mean()
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return 4 * mse + 0.5 * difference.abs().mean() + 0.5 * (across + down), mse


def spread_loss(latent: torch.Tensor) -> torch.Tensor:
    """Each latent channel near mean 0 and deviation 1, and within the decoder's clamp at 3."""
    mean, deviation = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean() + F.relu(latent.abs() - 3).mean()


@torch.no_grad()
def photograph_figures(vae: AutoencoderTiny) -> dict[str, tuple[float, float]]:
    """PSNR on scikit-image's photographs at 256x256 (none trained on), ours and an 8x box-down copy's."""
    try:
        from skimage import data
    except ImportError:  # a training machine need not have it
        return {}
    figures = {}
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        whole = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
        photo = F.interpolate(whole, size=(256, 256), mode="bicubic", antialias=True).clamp(0, 1)
        ours = (vae(photo * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
        copy = F.interpolate(F.avg_pool2d(photo, 8), size=(256, 256), mode="bicubic").clamp(0, 1)
        figures[name] = (psnr(ours, photo), psnr(copy, photo))
    return figures


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))
