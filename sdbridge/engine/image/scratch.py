"""Where a frame's results on the way are written: buffers that stay, so that no warm frame allocates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdbridge.engine.image.device import same_device

#: Devices on which torch may not mix dtypes in one operation, nor write a result in another than it has.
ONE_DTYPE = {"mps"}


class Scratch:
    """Buffers by name, made again only where a shape or a dtype changes.

    What is in a buffer stands until its name is asked for again; with ``turns`` n, until the n-th time, since
    n buffers of that name are given in turn. Nobody else may hold on to one longer. On a GPU that needs no
    waiting: one stream works on them, so what was queued first has read them before they are written again.
    Who reads one on another stream must say so to the stream that writes (``outgoing.py`` does).
    """

    def __init__(self) -> None:
        self._kept: dict[str, list[Tensor]] = {}

    def room(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, turns: int = 1
    ) -> Tensor:
        """The buffer ``name``, contiguous, with whatever is in it."""
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = []
        if kept:
            old = kept[0]
            there = old.device == device or same_device(old.device, device)
            if not there or old.dtype != dtype or old.shape != shape:
                kept.clear()
            elif turns == 1:
                return old
        return _next(kept, turns, lambda: torch.empty(shape, dtype=dtype, device=device))

    def laid_out_as(self, name: str, tensor: Tensor, turns: int = 1) -> Tensor:
        """A buffer of the very shape and strides of ``tensor``, which fills its memory in some order."""
        kept = self._kept.setdefault(name, [])
        old = kept[0] if kept else tensor
        if (old.shape, old.stride(), old.dtype) != (tensor.shape, tensor.stride(), tensor.dtype):
            kept.clear()
        return _next(kept, turns, lambda: torch.empty_like(tensor))

    def like(
        self, name: str, tensor: Tensor, shape: Sequence[int] | None = None, *, turns: int = 1
    ) -> Tensor:
        """A buffer for what is made of ``tensor``, in its shape where none is given."""
        return self.room(name, tensor.shape if shape is None else shape, tensor.dtype, tensor.device, turns)

    def cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` in ``dtype``; itself where it is that already."""
        if tensor.dtype == dtype:
            return tensor
        return self.room(name, tensor.shape, dtype, tensor.device).copy_(tensor)

    def operand(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` as it may stand beside others of ``dtype``: as it is where the device converts."""
        return self.cast(name, tensor, dtype) if tensor.device.type in ONE_DTYPE else tensor


def _next(kept: list[Tensor], turns: int, make: Callable[[], Tensor]) -> Tensor:
    """The one whose turn it is; it comes last."""
    kept.append(make() if len(kept) < turns else kept.pop(0))
    return kept[-1]
