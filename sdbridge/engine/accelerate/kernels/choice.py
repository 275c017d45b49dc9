"""Which cut of a layer is the fastest: the measured defaults, and what was timed on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How one layer is cut up for the GPU: a program computes ``rows`` x ``columns`` output pixels."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 3
    #: The weights as the left factor: output channels are the rows of the product.
    swap: bool = False
    #: Walk down the rows, each input row loaded for the three output rows it belongs to (stride 1 only).
    walk: bool = False


#: By kind of layer: from this many output pixels on, this cut.
DEFAULTS: dict[str, tuple[tuple[int, Config], ...]] = {
    "same": ((32768, Config(8, 16, 4, 3)), (0, Config(4, 16, 4, 4))),
    "halve": ((32768, Config(8, 16, 4, 3)), (0, Config(4, 16, 4, 4))),
    "up": ((32768, Config(8, 16, 4, 3)), (0, Config(4, 16, 4, 4))),
    "group": ((0, Config(4, 16, 4, 3)),),
    "planes": ((0, Config(4, 16, 4, 4)),),
    "entry": ((0, Config(1, 64, 4, 1)),),
}

_picked: dict[tuple[str, int, int], Config] = {}


def chosen(kind: str, channels: int, pixels: int) -> Config:
    """The cut for a layer of this kind that writes ``pixels`` pixels."""
    picked = _picked.get((kind, channels, pixels))
    return picked or next(config for least, config in DEFAULTS[kind] if pixels >= least)


def remember(kind: str, channels: int, pixels: int, config: Config) -> None:
    """From now on this cut for such layers."""
    _picked[(kind, channels, pixels)] = config


def pick(run: Callable[[Config], None], candidates: Iterable[Config], repeats: int = 20) -> Config:
    """The candidate whose ``run`` is fastest on this GPU. Not inside a graph capture."""
    best: tuple[float, Config] | None = None
    for config in candidates:
        for _ in range(3):
            run(config)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run(config)
        end.record()
        end.synchronize()
        took = start.elapsed_time(end)
        if best is None or took < best[0]:
            best = (took, config)
    if best is None:
        raise ValueError("no candidates")
    return best[1]
