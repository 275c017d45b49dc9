"""Between frames (uint8 RGBA on the host) and tensors (float RGBA on the device)."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdbridge.engine.image.scratch import Scratch
from sdbridge.frame import Frame, Role

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "float64": torch.float64}
_KEPT_SHAPES = 8
_KEPT_PICTURES = 8  # buffers that wait for their next picture


class Staging:
    """Pinned host buffers, used in turn, through which arrays go to a device without anybody waiting.

    On other devices than CUDA the array is simply copied. ``depth`` transfers of one shape may be on
    their way at a time; one more waits for the oldest.
    """

    def __init__(self, device: torch.device, depth: int = 4) -> None:
        self.device = device
        self.scratch = Scratch()
        self._depth = depth
        self._rings: dict[tuple[object, ...], deque[tuple[Tensor, np.ndarray, torch.cuda.Event]]] = {}

    def to_device(self, array: np.ndarray, into: Tensor | None = None) -> Tensor:
        """A tensor on the device with the array's values; the array may change once this returns.

        A new one, or ``into``: contiguous, of this shape and dtype, read on the current stream only.
        """
        if self.device.type != "cuda":
            if into is None:
                return torch.from_numpy(array.copy()).to(self.device)
            if self.device.type != "cpu":
                return into.copy_(torch.from_numpy(array.copy()))
            np.copyto(into.numpy(), array)
            return into
        ring = self._rings.setdefault((array.shape, array.dtype), deque())
        if len(ring) < self._depth:
            pinned = torch.empty(array.shape, dtype=_DTYPES[array.dtype.name], pin_memory=True)
            room, event = pinned.numpy(), torch.cuda.Event()
        else:
            pinned, room, event = ring.popleft()
            if not event.query():  # it nearly always has: then the interpreter is not let go of
                event.synchronize()
        np.copyto(room, array)  # not torch's copy: its threads cost more than they bring
        if into is None:
            into = pinned.to(self.device, non_blocking=True)
        else:
            into.copy_(pinned, non_blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        ring.append((pinned, room, event))
        if len(self._rings) > _KEPT_SHAPES:
            self._rings.pop(next(iter(self._rings)))
        return into

    def numbers_to_device(self, numbers: Tensor, into: Tensor) -> None:
        """The same for a tensor on the CPU, which may be of another dtype."""
        if self.device.type != "cuda":
            into.copy_(numbers)
        else:
            self.to_device(self.scratch.cast("numbers", numbers, into.dtype).numpy(), into)


class Roles(Mapping[Role, Tensor]):
    """The pictures of F entries by role, float32 ``[F, 4, H, W]`` in 0..1 at the engine's size.

    A role that not every entry has is filled from the nearest entry that has it. Pixels of the engine's size
    lie on the device in buffers of the staging, one for each role (the main ones where the encoder reads
    them), until the next frames' do; what is made of them here is a tensor of its own.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[Role, Frame]],
        staging: Staging,
        width: int,
        height: int,
        room_for_main: Callable[[int, int, int], Tensor | None] = lambda frames, height, width: None,
    ) -> None:
        """``room_for_main``: where F main pictures of that size are wanted, if anywhere."""
        self._staging = staging
        self._room_for_main = room_for_main
        self._size = (height, width)
        self._pixels: dict[Role, list[np.ndarray]] = {}
        self._sent: dict[Role, Tensor | list[Tensor]] = {}
        self._made: dict[Role, Tensor] = {}
        for role in dict.fromkeys(role for entry in entries for role in entry):
            newest = next(entry[role] for entry in entries if role in entry)
            self._pixels[role] = []
            for entry in entries:
                newest = entry.get(role, newest)
                self._pixels[role].append(newest.pixels)

    def rgba(self, role: Role) -> Tensor | None:
        """uint8 ``[F, H, W, 4]`` on the device as it came, or None where it is of another size."""
        sent = self._upload(role)
        return None if isinstance(sent, list) else sent

    def _upload(self, role: Role) -> Tensor | list[Tensor]:
        """The role's pictures: as one tensor where they are of the engine's size, else one by one."""
        if role not in self._sent:
            pictures, wanted = self._pixels[role], (*self._size, 4)
            if any(pixels.shape != wanted for pixels in pictures):
                known = {id(pixels): self._staging.to_device(pixels) for pixels in _unique(pictures)}
                self._sent[role] = [known[id(pixels)] for pixels in pictures]
            else:
                self._sent[role] = self._upload_whole(role, pictures)
        return self._sent[role]

    def _upload_whole(self, role: Role, pictures: list[np.ndarray]) -> Tensor:
        staging, count = self._staging, len(pictures)
        whole = self._room_for_main(count, *self._size) if role == "main" else None
        if whole is None:
            shape = (count, *self._size, 4)
            whole = staging.scratch.room(f"pixels of {role}", shape, torch.uint8, staging.device)
        if len(pictures) == 1:
            return staging.to_device(pictures[0][None], whole)
        sent: dict[int, Tensor] = {}
        for pixels, place in zip(pictures, whole, strict=True):
            known = sent.get(id(pixels))
            if known is None:
                sent[id(pixels)] = staging.to_device(pixels, place)
            else:
                place.copy_(known)
        return whole

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


def _unique(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each once: the same picture may stand in for several frames."""
    return list({id(pixels): pixels for pixels in pictures}.values())


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


class HostPictures:
    """Host buffers for pictures that go out, pinned where they come from a GPU.

    A buffer is taken for one picture and comes back by itself when nobody holds that picture's array, or a
    part of it, any more: whoever shows a frame again and again, or queues it, simply keeps it.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._free: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}  # by the array's id

    def take(self, like: Tensor) -> tuple[Tensor, np.ndarray, torch.cuda.Event | None]:
        """A buffer for ``like``, its array, and an event to say when it is filled (on a GPU).

        Only the array, and views of it, keep the buffer from being taken again.
        """
        if like.shape != self._shape:
            self._shape, self._free = tuple(like.shape), deque(maxlen=_KEPT_PICTURES)
        try:
            buffer, event = self._free.popleft()
        except IndexError:
            on_gpu = like.device.type == "cuda"
            buffer = torch.empty(like.shape, dtype=torch.uint8, pin_memory=on_gpu)
            event = torch.cuda.Event() if on_gpu else None
        array: np.ndarray = buffer.numpy()
        free, lent, key = self._free, self._lent, id(array)

        def back(gone: object) -> None:
            del lent[key]
            free.append((buffer, event))

        lent[key] = weakref.ref(array, back)
        return buffer, array, event


class Handout:
    """A picture on its way to the host: queued behind the work that makes it, waited for by ``pixels``."""

    def __init__(
        self,
        image: Tensor,
        show: Callable[[Tensor], None] | None = None,
        host: HostPictures | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """``image`` float ``[F, 3 or 4, H, W]`` in 0..1; uint8 ``[F, H, W, 4]`` is taken as it is.

        ``show`` gets each picture ``[H, W, 4]`` here already, queued on the current stream as it is;
        ``stream`` is that stream, where it is known.
        """
        rgba = image if image.dtype == torch.uint8 else to_rgba(image)
        if show is not None:
            for picture in rgba:
                show(picture)
        buffer, self._pixels, self._event = (host or HostPictures()).take(rgba)
        if self._event is None:
            buffer.copy_(rgba)
            return
        stream = stream or torch.cuda.current_stream(rgba.device)
        if not self._event.query():  # a picture that nobody waited for is still on its way into this buffer
            stream.wait_event(self._event)
        buffer.copy_(rgba, non_blocking=True)
        self._event.record(stream)

    @property
    def ready(self) -> bool:
        """Whether ``pixels`` would not wait."""
        return self._event is None or self._event.query()

    def pixels(self) -> np.ndarray:
        """uint8 ``[F, H, W, 4]``, pinned where it came from a GPU. The frame's one wait."""
        if self._event is not None:
            self._event.synchronize()
        return self._pixels


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
