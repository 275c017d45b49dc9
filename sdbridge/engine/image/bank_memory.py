"""What the feature bank remembers: fixed buffers for every self-attention layer, their fusion and merging.

A layer's buffer holds the tokens of the frame that runs and behind them those of the bank, so that
writing the frame's keys and values is also what extends attention by the bank. Nothing here moves in
memory once a shape is known: a CUDA graph may hold the addresses. Layers of equal shape lie in one
tensor and are merged together, and all of them in one piece of memory. The first frame runs in a form of
its own, which fills the bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: The layers take up a frame in so many shares, one a frame, so that no frame is much longer than another.
SHARES = 4
_AT_ONCE = 1 << 24  # similarities in memory at a time
_UNIT = float(1 << 24)  # sums on a GPU are of integers: the order of its atomic additions changes nothing
_ALIGNED = 256  # elements


@dataclass(frozen=True)
class LayerSize:
    """A self-attention layer: ``tokens`` N, ``width`` C, and whether its output is fused with the bank's."""

    tokens: int
    width: int
    fuses: bool


@dataclass(frozen=True, eq=False)
class LayerMemory:
    """One layer's part. ``kv`` ``[rows, (1 + frames) N, 2 C]``: keys and values, the running frame first.

    ``outputs`` ``[rows, (1 + frames) N, C]`` where the layer fuses, what attention gave before fusion.
    ``dials`` are the fusion's strength and threshold.
    """

    seeding: bool
    fuses: bool
    kv: Tensor
    outputs: Tensor
    dials: tuple[Tensor, Tensor]

    def extend(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """The frame's keys and values ``[rows, N, 2 C]`` -> keys and values to attend to, the bank's too.

        The seeding frame fills the whole bank. Its copies there would change nothing: it attends to itself.
        """
        tokens, width = kv.shape[1], kv.shape[2] // 2
        if self.seeding:
            self.kv.unflatten(1, (-1, tokens)).copy_(kv.unsqueeze(1))
            seen = kv
        else:
            self.kv[:, :tokens].copy_(kv)
            seen = self.kv
        return seen[..., :width], seen[..., width:]

    def blend(self, output: Tensor) -> Tensor:
        """Feature fusion of the layer's output ``[rows, N, C]``, where this layer fuses."""
        if not self.fuses:
            return output
        tokens = output.shape[1]
        if self.seeding:
            self.outputs.unflatten(1, (-1, tokens)).copy_(output.unsqueeze(1))
            return output
        self.outputs[:, :tokens].copy_(output)
        return fuse(output, self.outputs[:, tokens:], *self.dials)


@dataclass(frozen=True)
class _Group:
    """Layers of equal shape: ``[layers * rows, (1 + frames) N, ...]``, part of a share."""

    kv: Tensor
    outputs: Tensor | None
    tokens: int

    @property
    def buffers(self) -> list[Tensor]:
        return [self.kv] if self.outputs is None else [self.kv, self.outputs]


def _merging(groups: Sequence[_Group]) -> Callable[..., list[Tensor]]:
    """The merging of these groups, given a random order for each of their token counts."""

    def merged(*orders: Tensor) -> list[Tensor]:
        """Frame and bank merged, buffer by buffer. Writes nothing: a rehearsal does no harm."""
        order_of = dict(zip(_counts(groups), orders, strict=True))
        found: list[Tensor] = []
        for group in groups:
            keys = group.kv[..., : group.kv.shape[2] // 2]
            found += merge(group.buffers, order_of[group.tokens], keys)
        return found

    return merged


def _counts(groups: Sequence[_Group]) -> list[int]:
    """Token counts, each once: one random order for each."""
    return sorted({group.tokens for group in groups})


@dataclass(frozen=True, eq=False)
class BankForm:
    """What a UNet call is given of a memory: ``layers`` finds a layer's part by its attention module.

    ``generation`` differs whenever addresses differ. The ``seeding`` form fills the bank with its frame.
    """

    memory: Memory
    seeding: bool
    layers: Mapping[Any, LayerMemory]

    @property
    def generation(self) -> int:
        return self.memory.generation

    @property
    def key(self) -> tuple[int, bool]:
        """What a prepared call depends on."""
        return self.generation, self.seeding

    def rehearsal(self) -> BankForm:
        """The same with buffers of its own: for trying and tuning beside the running stream."""
        return self.memory.rehearsal().form(self.seeding)


class Memory:
    """The bank of one shape. Nothing in here refers back to it: it is gone as soon as nobody has it."""

    def __init__(
        self,
        sizes: Mapping[Any, LayerSize],
        rows: int,
        frames: int,
        generation: int,
        like: Tensor,
        wrap: Callable[[Callable[..., Any], str], Callable[..., Any]],
    ) -> None:
        """Buffers of ``like``'s dtype on its device, with whatever lay there; ``wrap`` is for merging."""
        self.frames = frames
        self.generation = generation
        self.strength, self.threshold = torch.zeros(2, dtype=like.dtype, device=like.device)
        self._sizes = dict(sizes)
        self._rows = rows
        self._shares: list[list[_Group]] = [[] for _ in range(SHARES)]  # who take up the same frame
        self._buffers: dict[Any, tuple[Tensor, Tensor]] = {}
        self._allocate(like)
        self._merges = [
            wrap(_merging(groups), f"feature bank, share {number + 1}")
            for number, groups in enumerate(self._shares)
        ]

    @property
    def layers(self) -> Mapping[Any, LayerMemory]:
        """Every layer's part, as running frames have it."""
        return self.form(False).layers

    def form(self, seeding: bool) -> BankForm:
        """What a call is given; keep it, since it is made at every asking."""
        dials = self.strength, self.threshold
        layers = {
            module: LayerMemory(seeding, self._sizes[module].fuses, *self._buffers[module], dials)
            for module in self._sizes
        }
        return BankForm(self, seeding, layers)

    def take_up(self, share: int, slot: int, order: Callable[[int], Tensor]) -> None:
        """Take the running frame into the bank, in the layers of one share.

        ``slot`` says where while the bank holds several frames; a bank of one is merged with the frame
        instead, in the random ``order(2N)``.
        """
        here = self._shares[share]
        buffers = [(group.tokens, buffer) for group in here for buffer in group.buffers]
        if not buffers:
            return
        if self.frames > 1:
            places = [buffer[:, (1 + slot) * n : (2 + slot) * n] for n, buffer in buffers]
            torch._foreach_copy_(places, [buffer[:, :n] for n, buffer in buffers])
            return
        merged = self._merges[share](*(order(2 * count) for count in _counts(here)))
        torch._foreach_copy_([buffer[:, n:] for n, buffer in buffers], merged)

    def merges(self) -> list[tuple[Callable[..., list[Tensor]], list[int]]]:
        """The merging calls that frames will make, each with the token counts of the orders it takes."""
        if self.frames > 1:
            return []
        return [
            (merge, [2 * count for count in _counts(groups)])
            for merge, groups in zip(self._merges, self._shares, strict=True)
            if groups
        ]

    def rehearsal(self) -> Memory:
        """As this one, but with buffers of its own."""
        return Memory(
            self._sizes, self._rows, self.frames, self.generation, self.strength, lambda run, _: run
        )

    def _allocate(self, like: Tensor) -> None:
        """Buffers, and who takes up when: the load evenly spread."""
        kinds: dict[LayerSize, list[Any]] = {}
        for module, size in self._sizes.items():
            kinds.setdefault(size, []).append(module)
        loads = [0.0] * SHARES
        placed: list[tuple[list[_Group], LayerSize, list[Any]]] = []
        for size, modules in sorted(kinds.items(), key=lambda item: -item[0].tokens):
            chosen: list[list[Any]] = [[] for _ in range(SHARES)]
            for module in modules:
                lightest = loads.index(min(loads))
                loads[lightest] += float(size.tokens) * size.tokens * size.width
                chosen[lightest].append(module)
            placed += [(share, size, own) for share, own in zip(self._shares, chosen, strict=True) if own]
        shapes = [shape for _, size, own in placed for shape in self._shapes(size, len(own))]
        pieces = iter(_pieces(shapes, like))
        for share, size, own in placed:
            found = [next(pieces) for _ in self._shapes(size, len(own))]
            for index, module in enumerate(own):
                self._buffers[module] = found[0][index], found[-1][index]
            outputs = found[1].flatten(0, 1) if size.fuses else None
            share.append(_Group(found[0].flatten(0, 1), outputs, size.tokens))

    def _shapes(self, size: LayerSize, layers: int) -> list[tuple[int, ...]]:
        """Of the keys and values of so many layers, and of their outputs where they fuse."""
        held = (1 + self.frames) * size.tokens
        kv = (layers, self._rows, held, 2 * size.width)
        return [kv, (layers, self._rows, held, size.width)] if size.fuses else [kv]


def _pieces(shapes: Sequence[tuple[int, ...]], like: Tensor) -> list[Tensor]:
    """Tensors of these shapes in one piece of memory: asking a GPU for memory once holds frames up less."""
    lengths = [math.ceil(math.prod(shape) / _ALIGNED) * _ALIGNED for shape in shapes]
    whole = like.new_empty(sum(lengths))
    return [
        piece[: math.prod(shape)].view(shape)
        for shape, piece in zip(shapes, whole.split(lengths), strict=True)
    ]


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
