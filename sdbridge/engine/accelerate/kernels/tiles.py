"""How is one matrix product cut into pieces? The values a kernel is compiled with, spelled as one word."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPELLED = re.compile(r"(\d+)x(\d+)x(\d+)\.w(\d+)\.s(\d+)\.g(\d+)\.(split|stream)(\d+)(\.tma)?(\.chained)?")


@dataclass(frozen=True)
class Tile:
    """``m x n`` results a program, ``k`` at a time, ``split`` programs sharing the sum over K;
    or ``stream`` programs in all, each with an equal share of every tile's steps (stream-K).

    ``tma`` reads through Hopper's copy engine. ``chained`` launches it so that it may start while the kernel
    before it ends (programmatic dependent launch): every kernel behind it that reads its result must wait in
    the same way, or be an ordinary one.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    group: int = 8
    split: int = 1
    stream: int = 0
    tma: bool = False
    chained: bool = False

    def __str__(self) -> str:
        words = (".tma" if self.tma else "") + (".chained" if self.chained else "")
        shape = f"{self.m}x{self.n}x{self.k}"
        shared = f"stream{self.stream}" if self.stream else f"split{self.split}"
        return f"{shape}.w{self.warps}.s{self.stages}.g{self.group}.{shared}{words}"


def parse_tile(text: str) -> Tile | None:
    """The tile that ``text`` spells, or None: what a file says is checked, never trusted."""
    found = _SPELLED.fullmatch(text)
    if found is None:
        return None
    *numbers, shared, count, tma, chained = found.groups()
    m, n, k, warps, stages, group = (int(number) for number in numbers)
    split, stream = (int(count), 0) if shared == "split" else (1, int(count))
    powers = all(value & (value - 1) == 0 and value >= 16 for value in (m, n, k))
    sound = powers and max(m, n, k) <= 256 and warps in (1, 2, 4, 8) and 1 <= stages <= 8
    if not sound or not 1 <= split <= 32 or not 1 <= group <= 64 or stream > 1024:
        return None
    if shared == "stream" and stream < 1:
        return None
    return Tile(m, n, k, warps, stages, group, split, stream, tma is not None, chained is not None)
