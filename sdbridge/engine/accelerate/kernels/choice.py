"""Which cut of a layer is the fastest: measured on an H200, and what a lab found for a shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """How one layer is cut up for the GPU: a program computes ``rows`` x ``columns`` output pixels."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 3
    #: The weights as the left factor: output channels are the rows of the product.
    swap: bool = False
    #: Which kernel: "taps" for every layer anywhere; on Hopper "ring", which reads each input row once
    #: instead of nine times.
    by: str = "taps"


#: By kind of layer: from this many output pixels on, this cut. Measured on an H200.
DEFAULTS: dict[str, tuple[tuple[int, Config], ...]] = {
    "same": ((32768, Config(8, 16, 4, 2)), (8192, Config(8, 16, 4, 3)), (0, Config(8, 8, 4, 4))),
    "halve": ((32768, Config(8, 16, 4, 2)), (8192, Config(8, 16, 8, 4)), (0, Config(8, 8, 4, 4))),
    "up": ((32768, Config(8, 16, 4, 2)), (0, Config(8, 16, 4, 3))),
    "group": ((0, Config(8, 16, 8, 3)),),
    "planes": ((0, Config(8, 8, 4, 4)),),
    "entry": ((32768, Config(1, 64, 4, 1)), (0, Config(1, 32, 4, 1))),
}

_picked: dict[tuple[str, int, tuple[int, int, int]], Config] = {}


def chosen(kind: str, channels: int, shape: tuple[int, int, int], hopper: bool = False) -> Config:
    """The cut for a layer of this kind that writes ``shape``: frames, height, width."""
    picked = _picked.get((kind, channels, shape))
    if picked is not None:
        return picked
    if hopper and kind == "same":
        return walked(shape)
    if hopper and kind == "up" and shape[2] >= 256:
        return doubled(shape)
    if hopper and kind == "halve":
        return halved(shape)
    if hopper and kind == "last":
        return ended(shape)
    frames, height, width = shape
    return next(config for least, config in DEFAULTS[kind] if frames * height * width >= least)


def walked(shape: tuple[int, int, int]) -> Config:
    """The Hopper kernel's cut: so many rows that two programs for each multiprocessor do the picture."""
    frames, height, width = shape
    strips = -(-width // 64) * frames
    places = 264
    while height * strips > 64 * places:  # in several turns, rather than ever longer walks
        places += 264
    groups = max(1, places // strips)
    return Config(min(64, -(-height // groups)), 64, 4, 4, by="ring")


def doubled(shape: tuple[int, int, int]) -> Config:
    """The Hopper kernel's cut for a doubling, whose weights fill a multiprocessor: one program each."""
    frames, height, width = shape
    strips = -(-width // 256) * frames
    groups = max(1, 132 // strips)
    return Config(min(32, -(-height // 2 // groups)), 128, 8, 4, by="ring")


def halved(shape: tuple[int, int, int]) -> Config:
    """The Hopper kernel's cut for a halving: one program for each multiprocessor."""
    frames, height, width = shape
    groups = max(1, 132 // (-(-width // 64) * frames))
    return Config(min(32, -(-height // groups)), 64, 4, 4, by="ring")


def ended(shape: tuple[int, int, int]) -> Config:
    """The Hopper kernel's cut for the last layer: four programs for each multiprocessor."""
    frames, height, width = shape
    groups = max(1, 528 // (-(-width // 64) * frames))
    return Config(min(64, -(-height // groups)), 64, 4, 4, by="ring")


def remember(kind: str, channels: int, shape: tuple[int, int, int], config: Config) -> None:
    """From now on this cut for such layers."""
    _picked[(kind, channels, shape)] = config
