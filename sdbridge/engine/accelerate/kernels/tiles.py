"""How is one matrix product cut into pieces? The values a kernel is compiled with, spelled as one word."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPELLED = re.compile(r"(\d+)x(\d+)x(\d+)\.w(\d+)\.s(\d+)\.g(\d+)\.split(\d+)(\.chained)?")


@dataclass(frozen=True)
class Tile:
    """``m x n`` results a program, ``k`` at a time, ``split`` programs sharing the sum over K.

    ``chained`` launches it so that it may start while the kernel before it ends (programmatic dependent
    launch): every kernel behind it that reads its result must wait in the same way, or be an ordinary one.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    group: int = 8
    split: int = 1
    chained: bool = False

    def __str__(self) -> str:
        chained = ".chained" if self.chained else ""
        shape = f"{self.m}x{self.n}x{self.k}"
        return f"{shape}.w{self.warps}.s{self.stages}.g{self.group}.split{self.split}{chained}"


def parse_tile(text: str) -> Tile | None:
    """The tile that ``text`` spells, or None: what a file says is checked, never trusted."""
    found = _SPELLED.fullmatch(text)
    if found is None:
        return None
    *numbers, chained = found.groups()
    m, n, k, warps, stages, group, split = (int(number) for number in numbers)
    powers = all(value & (value - 1) == 0 and value >= 16 for value in (m, n, k))
    sound = powers and max(m, n, k) <= 256 and warps in (1, 2, 4, 8) and 1 <= stages <= 8
    if not sound or not 1 <= split <= 32 or not 1 <= group <= 64:
        return None
    return Tile(m, n, k, warps, stages, group, split, chained is not None)
