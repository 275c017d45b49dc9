"""What the feature bank remembers: fixed buffers for every self-attention layer, their fusion and merging.

A layer's buffer holds the tokens of the frame that runs and behind them those of the bank, so that
writing the frame's keys and values is also what extends attention by the bank. Nothing here moves in
memory once a shape is known: a CUDA graph may hold the addresses. Layers of equal shape lie in one
tensor and are merged together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: The layers take up a frame in so many shares, one a frame, so that no frame is much longer than another.
SHARES = 4
_AT_ONCE = 1 << 24  # similarities in memory at a time
_UNIT = float(1 << 24)  # sums on a GPU are of integers: the order of its atomic additions changes nothing


class LayerMemory:
    """One layer's part. ``kv`` ``[rows, (1 + frames) N, 2 C]``: keys and values, the running frame first.

    ``outputs`` ``[rows, (1 + frames) N, C]`` where the layer fuses, what attention gave before fusion.
    """

    def __init__(self, memory: Memory, fuses: bool) -> None:
        self._memory = memory
        self.fuses = fuses
        self.kv = self.outputs = torch.zeros(0)
        self.first: Tensor = self.kv  # what the seeding frame brought, until the memory is settled
        self.first_outputs: Tensor = self.kv

    def extend(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """The frame's keys and values ``[rows, N, 2 C]`` -> keys and values to attend to, the bank's too.

        On the seeding frame the bank would be a copy of the frame, which changes nothing.
        """
        if self._memory.seeding:
            self.first = seen = kv
        else:
            self.kv[:, : kv.shape[1]].copy_(kv)
            seen = self.kv
        width = kv.shape[2] // 2
        return seen[..., :width], seen[..., width:]

    def blend(self, output: Tensor) -> Tensor:
        """Feature fusion of the layer's output ``[rows, N, C]``, where this layer fuses."""
        if not self.fuses:
            return output
        if self._memory.seeding:
            self.first_outputs = output.clone()  # whoever goes on may add to the output in place
            return output
        tokens, memory = output.shape[1], self._memory
        self.outputs[:, :tokens].copy_(output)
        return fuse(output, self.outputs[:, tokens:], memory.strength, memory.threshold)


@dataclass(frozen=True)
class _Group:
    """Layers of equal shape: ``[layers * rows, (1 + frames) N, ...]``, part of a share."""

    kv: Tensor
    outputs: Tensor | None
    tokens: int

    @property
    def buffers(self) -> list[Tensor]:
        return [self.kv] if self.outputs is None else [self.kv, self.outputs]


@dataclass
class _Share:
    """The groups that take up the same frame; ``merge`` is this share's merging as it is accelerated."""

    groups: list[_Group] = field(default_factory=list)
    merge: Callable[..., list[Tensor]] = lambda *orders: []

    @property
    def counts(self) -> list[int]:
        """Token counts, each once: one random order for each."""
        return sorted({group.tokens for group in self.groups})

    def merged(self, *orders: Tensor) -> list[Tensor]:
        """Frame and bank merged, buffer by buffer. Writes nothing: a rehearsal does no harm."""
        order_of = dict(zip(self.counts, orders, strict=True))
        found: list[Tensor] = []
        for group in self.groups:
            keys = group.kv[..., : group.kv.shape[2] // 2]
            found += merge(group.buffers, order_of[group.tokens], keys)
        return found


class Memory:
    """The bank of one shape. ``layers`` finds a layer's part by its attention module.

    ``generation`` differs whenever addresses differ. While ``seeding`` the layers only note what the
    frame brings; ``settle`` fills the bank from it.
    """

    def __init__(
        self,
        fuses: dict[Any, bool],
        frames: int,
        generation: int,
        like: Tensor,
        wrap: Callable[[Callable[..., Any], str], Callable[..., Any]],
    ) -> None:
        self.frames = frames
        self.generation = generation
        self.seeding = True
        self.layers = {module: LayerMemory(self, fuse) for module, fuse in fuses.items()}
        self.strength, self.threshold = torch.zeros(2, dtype=like.dtype, device=like.device)
        self._wrap = wrap
        self._shares: list[_Share] = []

    @property
    def key(self) -> tuple[int, bool]:
        """What a prepared call depends on."""
        return self.generation, self.seeding

    def settle(self) -> None:
        """After the seeding frame: every slot of the bank holds that frame."""
        if not self._shares:
            self._allocate()
        for layer in self.layers.values():
            layer.kv.copy_(layer.first.repeat(1, 1 + self.frames, 1))
            layer.first = layer.kv
            if layer.fuses:
                layer.outputs.copy_(layer.first_outputs.repeat(1, 1 + self.frames, 1))
                layer.first_outputs = layer.outputs
        self.seeding = False

    def take_up(self, share: int, slot: int, order: Callable[[int], Tensor]) -> None:
        """Take the running frame into the bank, in the layers of one share.

        ``slot`` says where while the bank holds several frames; a bank of one is merged with the frame
        instead, in the random ``order(2N)``.
        """
        here = self._shares[share]
        buffers = [(group.tokens, buffer) for group in here.groups for buffer in group.buffers]
        if not buffers:
            return
        if self.frames > 1:
            places = [buffer[:, (1 + slot) * n : (2 + slot) * n] for n, buffer in buffers]
            torch._foreach_copy_(places, [buffer[:, :n] for n, buffer in buffers])
            return
        merged = here.merge(*(order(2 * count) for count in here.counts))
        torch._foreach_copy_([buffer[:, n:] for n, buffer in buffers], merged)

    def rehearsal(self) -> Memory:
        """As this one, but with buffers of its own: for trying and tuning beside the running stream."""
        copy = Memory(
            {module: layer.fuses for module, layer in self.layers.items()},
            self.frames,
            self.generation,
            self.strength,
            self._wrap,
        )
        copy.seeding = False
        for module, layer in self.layers.items():
            copy.layers[module].kv = torch.zeros_like(layer.kv)
            copy.layers[module].outputs = torch.zeros_like(layer.outputs)
        return copy

    def _allocate(self) -> None:
        """Buffers for the shapes the seeding frame showed, and who takes up when: the load evenly spread."""
        kinds: dict[tuple[int, ...], list[LayerMemory]] = {}
        for layer in self.layers.values():
            kinds.setdefault((*layer.first.shape, layer.fuses), []).append(layer)
        loads = [0.0] * SHARES
        self._shares = [_Share() for _ in range(SHARES)]
        for (rows, tokens, width, fuses), layers in sorted(kinds.items(), key=lambda item: -item[0][1]):
            chosen: list[list[LayerMemory]] = [[] for _ in range(SHARES)]
            for layer in layers:
                lightest = loads.index(min(loads))
                loads[lightest] += float(tokens) * tokens * width
                chosen[lightest].append(layer)
            for share, own in zip(self._shares, chosen, strict=True):
                if own:
                    self._place(share, own, rows, tokens, width, bool(fuses))
        for number, share in enumerate(self._shares):
            share.merge = self._wrap(share.merged, f"feature bank, share {number + 1}")

    def _place(
        self, share: _Share, layers: Sequence[LayerMemory], rows: int, tokens: int, width: int, fuses: bool
    ) -> None:
        held = (1 + self.frames) * tokens
        kv = layers[0].first.new_empty(len(layers), rows, held, width)
        outputs = kv.new_empty(len(layers), rows, held, width // 2) if fuses else None
        for index, layer in enumerate(layers):
            layer.kv = kv[index]
            if outputs is not None:
                layer.outputs = outputs[index]
        share.groups.append(
            _Group(kv.flatten(0, 1), None if outputs is None else outputs.flatten(0, 1), tokens)
        )


# --- the arithmetic ---


def fuse(output: Tensor, bank: Tensor, strength: Tensor | float, threshold: Tensor | float) -> Tensor:
    """h' = (1 - strength) h + strength nn(h); nn(h) is the bank's most similar vector, or h below threshold.

    output ``[rows, N, width]``, bank ``[rows, M, width]``. Similarity is the cosine.
    """
    best, index = nearest(functional.normalize(output, dim=-1), functional.normalize(bank, dim=-1))
    found = bank.gather(1, index.unsqueeze(-1).expand(-1, -1, bank.shape[-1]))
    found = torch.where(best.unsqueeze(-1) >= threshold, found, output)
    return torch.lerp(output, found, strength)


def merge(tensors: Sequence[Tensor], order: Tensor, keys: Tensor | None = None) -> list[Tensor]:
    """Halve the tokens of each ``[B, 2N, width]`` by one assignment, found on ``keys`` (default: the first).

    ``order`` is a random permutation of the 2N tokens: its first half is merged into its second half.
    """
    keys = tensors[0] if keys is None else keys
    half = order.shape[0] // 2
    source, target = order[:half], order[half:]
    # how long the sources are has no say in which target each of them is nearest to
    _, index = nearest(keys[:, source], functional.normalize(keys[:, target], dim=-1))
    flat = index + torch.arange(keys.shape[0], device=index.device).unsqueeze(1) * half
    return [_mean(tensor[:, source], tensor[:, target], flat.flatten()) for tensor in tensors]


def nearest(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product with a target, and its index, for each source: ``[B, S, C]``, ``[B, T, C]``."""
    batch, count, _ = source.shape
    others = target.shape[1]
    if batch * count * others <= _AT_ONCE:
        return torch.max(source @ target.transpose(1, 2), dim=-1)
    found = [
        torch.max(some @ theirs.t(), dim=-1)
        for mine, theirs in zip(source, target, strict=True)
        for some in mine.split(max(1, _AT_ONCE // others))
    ]
    values, indices = zip(*found, strict=True)
    return torch.cat(values).view(batch, count), torch.cat(indices).view(batch, count)


def _mean(source: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Each target's mean with the sources that go to it; ``index`` counts through all batch entries."""
    exact = target.dtype == torch.float64
    whole = target.is_cuda and not exact

    def summand(tensor: Tensor) -> Tensor:
        flat = tensor.flatten(0, 1)
        if whole:
            return (flat.float() * _UNIT).to(torch.int64)
        return flat if exact else flat.float()

    sums = summand(target).index_add(0, index, summand(source))
    counts = torch.ones(sums.shape[0], dtype=torch.int64, device=index.device)
    counts.index_add_(0, index, torch.ones_like(index))
    divisor = counts.unsqueeze(1).to(target.dtype if exact else torch.float32) * (_UNIT if whole else 1.0)
    return (sums.to(divisor.dtype) / divisor).to(target.dtype).view_as(target)
