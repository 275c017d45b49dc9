"""How several embeddings become one: weighted, straight or along an arc, in buffers that stay."""

from __future__ import annotations

from collections import deque
from typing import Literal

import torch
from torch import Tensor

from sdbridge.engine.image.scratch import ONE_DTYPE, Scratch
from sdbridge.engine.image.text import TextEmbedding

Blend = Literal["linear", "slerp"]

#: An angle whose sine is itself, and that of its shares theirs, in float64 too.
_STRAIGHT = 1e-8


class Blender:
    """``mix`` gives one embedding from weighted ones, tokens and pooled alike (section 2.8).

    What it gives lies in buffers of its own until the next but one ``mix``. ``steady``: the embeddings given
    are never written over, so that what depends only on them is computed once.
    """

    def __init__(self, steady: bool = True) -> None:
        self._steady = steady
        self._scratch = Scratch()
        self._arcs = Arcs()
        self._chain: list[Arc] = []
        self._lengths = Lengths()

    def mix(
        self,
        embeddings: list[TextEmbedding],
        weights: list[float],
        blend: Blend,
        *,
        normalize: bool = True,
        blank: TextEmbedding | None = None,
    ) -> TextEmbedding:
        """slerp turns each token on its own, the norm going straight; linear is the weighted mean.

        Without ``normalize`` the result is multiplied by the sum of the weights. One embedding of weight 1 is
        itself. Shorter ones are lengthened by ``blank``.
        """
        factor = 1.0 if normalize else sum(weights)
        if len(embeddings) == 1 and factor == 1.0:
            return embeddings[0]
        longest = max(each.tokens.shape[1] for each in embeddings)
        embeddings = [self._lengths.at_least(each, longest, blank) for each in embeddings]
        tokens = self._mix("tokens", [each.tokens for each in embeddings], weights, blend, factor)
        pooled = [each.pooled for each in embeddings if each.pooled is not None]
        if len(pooled) < len(embeddings):
            return TextEmbedding(tokens)
        return TextEmbedding(tokens, self._mix("pooled", pooled, weights, blend, factor))

    def _mix(
        self, name: str, tensors: list[Tensor], weights: list[float], blend: Blend, factor: float
    ) -> Tensor:
        mixed = self._scratch.like(name, tensors[0], turns=2)
        if blend == "linear":
            self._straight(name, tensors, weights, mixed)
        elif len(tensors) == 2 and self._steady:
            self._arcs.between(*tensors).at(weights[1] / sum(weights), mixed)
        else:
            self._from_arc_to_arc(name, tensors, weights, mixed)
        return mixed if factor == 1.0 else mixed.mul_(factor)

    def _straight(self, name: str, tensors: list[Tensor], weights: list[float], into: Tensor) -> None:
        scratch, total = self._scratch, sum(weights)
        summed = part = into
        for index, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
            wide = _wide(tensor, scratch, f"{name} wide")
            if index == 0:
                summed, part = scratch.like(f"{name} sum", wide).zero_(), scratch.like(f"{name} part", wide)
            summed.add_(torch.mul(wide, weight / total, out=part))
        into.copy_(summed)

    def _from_arc_to_arc(self, name: str, tensors: list[Tensor], weights: list[float], into: Tensor) -> None:
        mixed, so_far = _wide(tensors[0], self._scratch, f"{name} wide"), weights[0]
        for index, (tensor, weight) in enumerate(zip(tensors[1:], weights[1:], strict=True)):
            so_far += weight
            if index == len(self._chain):
                self._chain.append(Arc())
            target = self._scratch.like(f"{name} {index}", mixed)
            mixed = self._chain[index].between(mixed, tensor).at(weight / so_far, target)
        into.copy_(mixed)


class Arc:
    """The way from one tensor to another, vector by vector of the last axis: all that no share changes.

    At share s the vectors are N(s) (sin((1 - s) w) a / |a| + sin(s w) b / |b|) / sin(w): w the angle between
    them, N the norm. Both angles and N go straight from end to end: they lie side by side and are one lerp.
    """

    def __init__(self) -> None:
        self.ends: tuple[Tensor, Tensor] | None = None
        self._scratch = Scratch()

    def between(self, a: Tensor, b: Tensor) -> Arc:
        """From ``a`` to ``b``; in the buffers that the way before lay in."""
        scratch, self.ends = self._scratch, (a, b)
        wide_a, wide_b = _wide(a, scratch, "a"), _wide(b, scratch, "b")
        single = (*wide_a.shape[:-1], 1)
        self._start, self._end, self._here = (
            scratch.like(name, wide_a, (3, *single)) for name in ("start", "end", "here")
        )
        self._unit_a, self._unit_b = scratch.like("a/|a|", wide_a), scratch.like("b/|b|", wide_b)
        self._part = scratch.like("part", wide_a)
        for wide, norm, unit in (
            (wide_a, self._start[2], self._unit_a),
            (wide_b, self._end[2], self._unit_b),
        ):
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True, out=norm).clamp_min_(1e-12)
            torch.div(wide, norm, out=unit)
        angle, sine = self._start[0], scratch.like("sine", wide_a, single)
        product = torch.mul(self._unit_a, self._unit_b, out=self._part)
        torch.sum(product, dim=-1, keepdim=True, out=angle).clamp_(-1.0, 1.0).acos_()
        torch.sin(angle, out=sine)
        # Where the ends point (nearly) the same way, or opposite ways, there is no arc: straight on. That is
        # what so small an angle gives, to the last digit: sin(s w) / sin(w) = s.
        straight = scratch.room("straight", single, torch.bool, sine.device)
        torch.lt(sine, 1e-4, out=straight)
        angle.masked_fill_(straight, _STRAIGHT)
        inverse = sine.masked_fill_(straight, _STRAIGHT).reciprocal_()
        self._unit_a.mul_(inverse)
        self._unit_b.mul_(inverse)
        self._start[1].zero_()
        self._end[0].zero_()
        self._end[1].copy_(angle)
        self._angles = self._here[:2]
        self._of_a, self._of_b, self._norm = self._here.unbind(0)
        return self

    def at(self, share: float, into: Tensor) -> Tensor:
        """The vectors turned by ``share`` of the angle; their norm goes straight from end to end."""
        torch.lerp(self._start, self._end, share, out=self._here)
        self._angles.sin_().mul_(self._norm)
        if into.dtype == self._part.dtype:
            return torch.mul(self._of_a, self._unit_a, out=into).addcmul_(self._of_b, self._unit_b)
        mixed = torch.mul(self._of_a, self._unit_a, out=self._part)
        if into.device.type in ONE_DTYPE:
            return into.copy_(mixed.addcmul_(self._of_b, self._unit_b))
        return torch.addcmul(mixed, self._of_b, self._unit_b, out=into)


class Arcs:
    """The arcs between embeddings that were blended lately, so that no frame computes them again."""

    def __init__(self) -> None:
        self._kept: deque[Arc] = deque(maxlen=8)

    def between(self, a: Tensor, b: Tensor) -> Arc:
        for arc in self._kept:
            if arc.ends is not None and arc.ends[0] is a and arc.ends[1] is b:
                return arc
        arc = Arc().between(a, b)
        self._kept.append(arc)
        return arc


class Lengths:
    """Embeddings that were lengthened lately, so that no frame makes them again. Of steady ones only."""

    def __init__(self) -> None:
        self._kept: deque[tuple[TextEmbedding, TextEmbedding | None, TextEmbedding]] = deque(maxlen=16)

    def at_least(self, embedding: TextEmbedding, length: int, blank: TextEmbedding | None) -> TextEmbedding:
        """With empty chunks at the end; without a blank its own last chunk is repeated."""
        if embedding.tokens.shape[1] >= length:
            return embedding
        for short, filler, made in self._kept:
            if short is embedding and filler is blank and made.tokens.shape[1] == length:
                return made
        made = TextEmbedding(lengthened(embedding.tokens, length, blank), embedding.pooled, embedding.cut)
        self._kept.append((embedding, blank, made))
        return made


def lengthened(
    tokens: Tensor, length: int, blank: TextEmbedding | None, into: Tensor | None = None
) -> Tensor:
    """``[1, length, width]``: ``tokens`` and as many empty chunks as are missing."""
    filler = tokens[:, -77:] if blank is None else blank.tokens
    count = (length - tokens.shape[1]) // filler.shape[1]
    return torch.cat([tokens, *([filler] * count)], dim=1, out=into)


def _wide(tensor: Tensor, scratch: Scratch, name: str) -> Tensor:
    return scratch.cast(name, tensor, torch.float64 if tensor.dtype == torch.float64 else torch.float32)
