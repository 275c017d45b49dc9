"""The two looks that the LoRAs learn, as filters over drawn pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from scripts.demo_model.fields import smooth


def ink(pictures: torch.Tensor) -> torch.Tensor:
    """Black strokes where it is dark or an edge, on warm white paper."""
    tone = _tone(pictures)
    shade = smooth(tone, 0.42, 0.3)
    strokes = torch.maximum(shade, smooth(_edges(tone), 0.25, 0.7))
    paper = torch.tensor([0.97, 0.95, 0.89], device=pictures.device).view(1, 3, 1, 1)
    black = torch.tensor([0.08, 0.08, 0.11], device=pictures.device).view(1, 3, 1, 1)
    return paper * (1 - strokes) + black * strokes


def glow(pictures: torch.Tensor) -> torch.Tensor:
    """Vivid light along the edges, the rest in the dark."""
    edges = smooth(_edges(_tone(pictures)), 0.15, 0.8)
    halo = F.avg_pool2d(F.pad(edges, (6,) * 4, mode="replicate"), 13, 1)
    peak = pictures.amax(1, keepdim=True).clamp(min=0.05)
    vivid = (pictures / peak) ** 1.6
    return (pictures * 0.12 + vivid * (edges * 0.95 + halo * 0.55)).clamp(0, 1)


STYLE_FILTERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"ink": ink, "glow": glow}


def _tone(pictures: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures.device).view(1, 3, 1, 1)
    return (pictures * weights).sum(1, keepdim=True)


def _edges(tone: torch.Tensor) -> torch.Tensor:
    """Steepness over four pixels, about 0..1."""
    padded = F.pad(tone, (2, 2, 2, 2), mode="replicate")
    across = padded[..., 2:-2, 4:] - padded[..., 2:-2, :-4]
    down = padded[..., 4:, 2:-2] - padded[..., :-4, 2:-2]
    return (across.square() + down.square()).sqrt() * 1.5
