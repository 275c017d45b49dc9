"""Depth from one picture, near is light: any depth network of transformers, such as Depth-Anything V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.preprocess.base import Settings, as_rgb, stretch

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
SMALLEST_SIDE, LARGEST_SIDE = 252, 518


class Depth:
    """``detail`` sets the size the network sees: 252 to 518 pixels along the shorter side."""

    def __init__(self, network: Any, patch: int = 14) -> None:
        self.network = network
        self.patch = patch
        weight = next(network.parameters())
        self.mean = torch.tensor(MEAN, device=weight.device, dtype=weight.dtype).view(1, 3, 1, 1)
        self.deviation = torch.tensor(DEVIATION, device=weight.device, dtype=weight.dtype).view(1, 3, 1, 1)

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Depth:
        """Load config and safetensors from ``folder``; never asks the network.

        Raises OSError, ValueError, KeyError, SdbridgeError SDB-MODEL-*.
        """
        from sdbridge.engine.image.gentle_imports import importing_gently
        from sdbridge.engine.image.parts import read_part
        from sdbridge.engine.image.upload import upload_to

        with importing_gently():  # no start waits for transformers, so it comes here, beside the stream
            from transformers import AutoConfig, AutoModelForDepthEstimation

            config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
            kind = AutoModelForDepthEstimation._model_mapping[type(config)]
        upload = upload_to(device)
        network = read_part(kind, folder, dtype, False, upload=upload)
        backbone = getattr(network.config, "backbone_config", None)
        made = cls(network, int(getattr(backbone, "patch_size", None) or 14))
        upload.lend(made.mean, made.deviation)
        return made

    def __call__(self, image: Tensor, settings: Settings) -> Tensor:
        return as_rgb(self.nearness(image, settings.detail).to(image.dtype))

    def nearness(self, image: Tensor, detail: float) -> Tensor:
        """``[F, 3, H, W]`` -> ``[F, 1, H, W]``, 0 the farthest and 1 the nearest point of each picture."""
        height, width = image.shape[-2:]
        side = SMALLEST_SIDE + detail * (LARGEST_SIDE - SMALLEST_SIDE)
        factor = side / min(height, width)
        size = tuple(max(1, round(length * factor / self.patch)) * self.patch for length in (height, width))
        small = nn.interpolate(image.to(self.mean.dtype), size, mode="bilinear", antialias=True)
        found = self.network(pixel_values=(small - self.mean) / self.deviation).predicted_depth
        planes = found.float().reshape(image.shape[0], 1, *found.shape[-2:])
        return stretch(nn.interpolate(planes, (height, width), mode="bilinear"))
