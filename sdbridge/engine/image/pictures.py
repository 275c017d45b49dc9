"""Between frames (uint8 RGBA on the host) and tensors (float RGBA on the device)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.frame import Frame, Role

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "float64": torch.float64}
_KEPT_SHAPES = 8


class Staging:
    """Pinned host buffers, used in turn, through which arrays go to a device without anybody waiting.

    On other devices than CUDA the array is simply copied. ``depth`` transfers of one shape may be on
    their way at a time; one more waits for the oldest.
    """

    def __init__(self, device: torch.device, depth: int = 4) -> None:
        self.device = device
        self._depth = depth
        self._rings: dict[tuple[object, ...], deque[tuple[Tensor, torch.cuda.Event]]] = {}

    def to_device(self, array: np.ndarray) -> Tensor:
        """A tensor on the device with the array's values; the array may change once this returns."""
        if self.device.type != "cuda":
            return torch.from_numpy(array.copy()).to(self.device)
        ring = self._rings.setdefault((array.shape, array.dtype), deque())
        if len(ring) < self._depth:
            pinned = torch.empty(array.shape, dtype=_DTYPES[array.dtype.name], pin_memory=True)
            event = torch.cuda.Event()
        else:
            pinned, event = ring.popleft()
            event.synchronize()
        np.copyto(pinned.numpy(), array)  # not torch's copy: its threads cost more than they bring
        sent = pinned.to(self.device, non_blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        ring.append((pinned, event))
        if len(self._rings) > _KEPT_SHAPES:
            self._rings.pop(next(iter(self._rings)))
        return sent


class Roles(Mapping[Role, Tensor]):
    """The pictures of F entries by role, float32 ``[F, 4, H, W]`` in 0..1 at the engine's size.

    A role that not every entry has is filled from the nearest entry that has it.
    """

    def __init__(
        self, entries: Sequence[Mapping[Role, Frame]], staging: Staging, width: int, height: int
    ) -> None:
        self._staging = staging
        self._size = (height, width)
        self._pixels: dict[Role, list[np.ndarray]] = {}
        self._sent: dict[Role, list[Tensor]] = {}
        self._made: dict[Role, Tensor] = {}
        for role in {role for entry in entries for role in entry}:
            newest = next(entry[role] for entry in entries if role in entry)
            self._pixels[role] = []
            for entry in entries:
                newest = entry.get(role, newest)
                self._pixels[role].append(newest.pixels)

    def rgba(self, role: Role) -> Tensor | None:
        """uint8 ``[F, H, W, 4]`` on the device as it came, or None where it is of another size."""
        if any(pixels.shape[:2] != self._size for pixels in self._pixels[role]):
            return None
        sent = self._upload(role)
        return sent[0][None] if len(sent) == 1 else torch.stack(sent)

    def _upload(self, role: Role) -> list[Tensor]:
        if role not in self._sent:
            uploaded: dict[int, Tensor] = {}  # the same picture may stand in for several frames
            for pixels in self._pixels[role]:
                if id(pixels) not in uploaded:
                    uploaded[id(pixels)] = self._staging.to_device(pixels)
            self._sent[role] = [uploaded[id(pixels)] for pixels in self._pixels[role]]
        return self._sent[role]

    def __getitem__(self, role: Role) -> Tensor:
        if role not in self._made:
            self._pixels[role]  # raises KeyError for a role that is not there
            pictures = [to_float(sent, *self._size) for sent in self._upload(role)]
            self._made[role] = pictures[0] if len(pictures) == 1 else torch.cat(pictures)
        return self._made[role]

    def __iter__(self) -> Iterator[Role]:
        return iter(self._pixels)

    def __len__(self) -> int:
        return len(self._pixels)


def to_float(rgba: Tensor, height: int, width: int) -> Tensor:
    """uint8 ``[h, w, 4]`` -> float32 ``[1, 4, height, width]`` in 0..1."""
    picture = rgba.permute(2, 0, 1)[None].float().mul_(1 / 255)
    if picture.shape[-2:] != (height, width):
        picture = functional.interpolate(
            picture, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
    return picture


def to_tensor(pixels: np.ndarray, device: torch.device, width: int, height: int) -> Tensor:
    """uint8 ``[h, w, 4]`` on the host -> float32 ``[1, 4, height, width]`` in 0..1 on the device."""
    return to_float(Staging(device).to_device(pixels), height, width)


class Handout:
    """A picture on its way to the host: queued behind the work that makes it, waited for by ``pixels``."""

    def __init__(self, image: Tensor, show: Callable[[Tensor], None] | None = None) -> None:
        """``image`` float ``[F, 3 or 4, H, W]`` in 0..1; uint8 ``[F, H, W, 4]`` is taken as it is.

        ``show`` gets each picture ``[H, W, 4]`` here already, queued on the current stream as it is.
        """
        rgba = image if image.dtype == torch.uint8 else to_rgba(image)
        if show is not None:
            for picture in rgba:
                show(picture)
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


def from_rgba(rgba: Tensor) -> Tensor:
    """uint8 ``[F, H, W, 4]`` -> float32 ``[F, 3, H, W]`` in -1..1, as a VAE takes it; alpha is left out."""
    return rgba[..., :3].permute(0, 3, 1, 2).float().mul_(1 / 255) * 2 - 1


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
