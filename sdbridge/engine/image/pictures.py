"""Between frames (uint8 RGBA on the host) and tensors (float RGBA on the device)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.frame import Frame, Role


def to_roles(
    entries: Sequence[Mapping[Role, Frame]], device: torch.device, width: int, height: int
) -> dict[Role, Tensor]:
    """The pictures of F entries by role, float32 ``[F, 4, H, W]`` in 0..1 at the engine's size.

    A role that not every entry has is filled from the nearest entry that has it.
    """
    roles: dict[Role, Tensor] = {}
    for role in {role for entry in entries for role in entry}:
        newest = next(entry[role] for entry in entries if role in entry)
        pictures = []
        for entry in entries:
            newest = entry.get(role, newest)
            pictures.append(to_tensor(newest.pixels, device, width, height))
        roles[role] = pictures[0] if len(pictures) == 1 else torch.cat(pictures)
    return roles


def to_tensor(pixels: np.ndarray, device: torch.device, width: int, height: int) -> Tensor:
    """uint8 ``[h, w, 4]`` -> float32 ``[1, 4, height, width]`` in 0..1."""
    host = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())  # torch warns of read-only
    if device.type == "cuda":
        host = host.pin_memory()
    picture = host.to(device, non_blocking=True).permute(2, 0, 1)[None].float().mul_(1 / 255)
    if picture.shape[-2:] != (height, width):
        picture = functional.interpolate(
            picture, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
    return picture


class Handout:
    """A picture on its way to the host: queued behind the work that makes it, waited for by ``pixels``."""

    def __init__(self, image: Tensor) -> None:
        """``image`` float ``[F, 3 or 4, H, W]`` in 0..1; uint8 ``[F, H, W, 4]`` is taken as it is."""
        rgba = image if image.dtype == torch.uint8 else to_rgba(image)
        self._event: torch.cuda.Event | None = None
        if rgba.device.type != "cuda":
            self._host = rgba.cpu()
            return
        self._host = torch.empty(rgba.shape, dtype=torch.uint8, pin_memory=True)
        self._host.copy_(rgba, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(rgba.device))

    @property
    def ready(self) -> bool:
        """Whether ``pixels`` would not wait."""
        return self._event is None or self._event.query()

    def pixels(self) -> np.ndarray:
        """uint8 ``[F, H, W, 4]``, pinned where it came from a GPU. The frame's one wait."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy()


def to_rgba(image: Tensor) -> Tensor:
    """float ``[F, 3 or 4, H, W]`` in 0..1 -> uint8 ``[F, H, W, 4]``, on the image's device."""
    scaled = image.float().mul(255.0).add_(0.5).clamp_(0.0, 255.0)
    count, channels, height, width = scaled.shape
    rgba = torch.full((count, height, width, 4), 255, dtype=torch.uint8, device=image.device)
    rgba[..., :channels] = scaled.permute(0, 2, 3, 1).to(torch.uint8)
    return rgba


def to_pixels(image: Tensor) -> np.ndarray:
    """float ``[F, 3 or 4, H, W]`` in 0..1 -> uint8 ``[F, H, W, 4]`` on the host."""
    return Handout(image).pixels()
