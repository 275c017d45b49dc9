"""What each live parameter costs when it moves in a running stream: the worst frame after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdbridge.bench.drive import Drive, until_settled
from sdbridge.bench.image import ONE_STEP, small_or_true, true_size
from sdbridge.collector import spare_the_frames
from sdbridge.parameters.parameter import Value

Figures = Mapping[str, object]

AFTER = 90  # frames before each change and after it is in the picture
PATIENCE_S = 30.0  # for a change that waits for its graphs
EVEN = 1.3
#: In the order of a show: each stays in force until something says otherwise.
CHANGES: tuple[tuple[str, Mapping[str, Value]], ...] = (
    ("nothing", {}),
    ("strength", {"strength": 0.4}),
    ("seed", {"seed.1.value": 77}),
    ("seed walk", {"seed_mode": "walk", "seed_walk_speed": 2.0}),
    ("seed fixed", {"seed_mode": "fixed"}),
    ("prompt weight", {"prompt.2.weight": 0.9}),
    ("new prompt", {"prompt.1.text": "a lighthouse in the fog, oil on canvas"}),
    ("negative prompt", {"negative_prompt": "people"}),
    ("guidance self", {"guidance_mode": "self", "guidance_scale": 1.6}),
    ("guidance scale", {"guidance_scale": 2.4}),
    ("guidance full", {"guidance_mode": "full"}),
    ("guidance none", {"guidance_mode": "none", "guidance_scale": 1.0}),
    ("feedback", {"latent_feedback": 0.5}),
    ("feedback off", {"latent_feedback": 0.0}),
    ("blur", {"post.blur": 1.0}),
    ("blur off", {"post.blur": 0.0}),
    ("similarity", {"similarity.enabled": True}),
    ("similarity off", {"similarity.enabled": False}),
    ("bank on", {"feature_bank.enabled": True}),
    ("bank strength", {"feature_bank.strength": 0.5}),
    ("bank off", {"feature_bank.enabled": False}),
    ("two steps", {"steps": 2}),
    ("one step again", {"steps": 1}),
    ("two steps again", {"steps": 2}),
    ("larger", {"steps": 1, "width": 640}),
    ("as before", {"width": 512}),
)


def live_changes(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo at full speed while one parameter after another moves.

    For each: after how many frames it was in the picture (a new shape waits until its graphs are captured
    beside the stream), the worst frame from the change until 90 frames later, in multiples of the median
    before it and of the slower median of before and after, and how many frames until they take at most 1.3
    times the median of what follows (0: from the first one on).
    """
    from sdbridge.engine.image.engine import ImageEngine

    config = replace(true_size("sd-turbo", options), options={})  # new texts are embedded beside the stream
    recipe = small_or_true(options, ONE_STEP, moves=lambda number: {})
    frames = int(options.get("frames", AFTER))
    engine = ImageEngine(config)
    engine.load(recipe.start_values())
    try:
        engine.warm_up(recipe.width, recipe.height)
        spare_the_frames()
        drive = Drive(engine, recipe)
        until_settled(drive)
        figures: dict[str, object] = {}
        end = time.perf_counter() + max(seconds * 6, 30.0)
        for name, values in CHANGES:
            if time.perf_counter() > end:
                break
            usual = statistics.median(drive.run(frames))
            times, waited = _change(drive, values, frames)
            then = statistics.median(times[-20:])
            uneven = [index + 1 for index, took in enumerate(times) if took > EVEN * max(usual, then)]
            figures[name] = {
                "waited_frames": waited,
                "worst_of_usual": round(max(times) / usual, 2),
                "worst_of_slower": round(max(times) / max(usual, then), 2),
                "worst_ms": round(max(times), 2),
                "then_ms": round(then, 2),
                "frames_until_even": max(uneven, default=0),
            }
        return figures
    finally:
        engine.unload()


def _change(drive: Drive, values: Mapping[str, Value], frames: int) -> tuple[list[float], int]:
    """Frames with a change at the third of them: their times, and for how many of them it waited.

    The change comes with a frame, as in a show, so that what it costs the host is in that frame's time.
    """
    at = taken_up = drive.number + 2
    end = time.perf_counter() + PATIENCE_S
    drive.coming[at] = values

    def enough() -> bool:
        nonlocal taken_up
        waits = drive.number <= at or drive.engine.shows_up_to is not None
        if waits and time.perf_counter() < end:
            taken_up = drive.number
        return drive.number - taken_up >= frames

    return drive.run(1_000_000, enough=enough), max(0, taken_up - at - 1)
