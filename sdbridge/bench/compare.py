"""Were the measured frames right? The eager engine paints some of them again for a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sdbridge.bench.drive import Drive, Recipe, until_loaded
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError

PICKS = 8
#: Where pictures depend on all before them, the picks lie in the first frames that are measured.
ENDLESS_SPAN = 24
EQUAL_DB = 99.0


def picks(first: int, count: int, endless: bool) -> frozenset[int]:
    """Numbers of the chunks to compare, of the ``count`` measured from ``first`` on."""
    span = max(1, min(count, ENDLESS_SPAN) if endless else count)
    return frozenset(first + (2 * index + 1) * span // (2 * PICKS) for index in range(PICKS))


def compare_with_eager(
    config: EngineConfig, recipe: Recipe, kept: Mapping[int, np.ndarray]
) -> dict[str, float]:
    """Paint the frames in ``kept`` (picture by frame id) with ``acceleration: eager``: PSNR in dB.

    Each is painted anew from as many chunks before it as it stays inside the engine; all of them from
    the first on where the recipe is endless.
    """
    from sdbridge.engine.image.engine import ImageEngine

    if not kept:
        raise SdbridgeError("SDB-BENCH-FAULT", "none of the frames to compare came out of the engine")
    numbers = sorted({frame_id // recipe.rows for frame_id in kept})
    engine = ImageEngine(replace(config, acceleration="eager"))
    engine.load(recipe.start_values())
    try:
        engine.warm_up(recipe.width, recipe.height)
        drive = Drive(engine, recipe, frozenset(numbers))
        until_loaded(drive)
        inside = engine.spec.pipeline_ticks
        # A chunk that leaves at tick n went in at n - inside, and the rows beside it are of no matter to it.
        starts = [0] if recipe.endless else [max(0, number - inside) for number in numbers]
        lasts = [numbers[-1] + inside] if recipe.endless else [number + inside for number in numbers]
        for start, last in zip(starts, lasts, strict=True):
            engine.reset("hard")
            drive.number = start
            while drive.number <= last:
                drive.tick()
        found = {
            frame_id: psnr_db(picture, drive.kept[frame_id])
            for frame_id, picture in kept.items()
            if frame_id in drive.kept
        }
        contrast = float(np.mean([picture[..., :3].std() for picture in drive.kept.values()]))
    finally:
        engine.unload()
    if not found:
        raise SdbridgeError("SDB-BENCH-FAULT", "the eager engine painted none of the frames to compare")
    ordered = sorted(found.values())
    return {
        "psnr_lowest_db": ordered[0],
        "psnr_median_db": ordered[len(ordered) // 2],
        "frames_compared": len(ordered),
        "contrast": contrast,
    }


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Of two uint8 pictures; ``EQUAL_DB`` where they are the same."""
    error = float(np.mean((one.astype(np.float32) - other.astype(np.float32))[..., :3] ** 2))
    return EQUAL_DB if error == 0 else min(EQUAL_DB, 10 * math.log10(255**2 / error))
