"""What conditioning costs: a LoRA fader, a ControlNet in the stream, and adding one while frames flow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbridge.bench.drive import Drive, is_loading, moves_with_lora, until_settled
from sdbridge.bench.image import BUILD_TIMEOUT_S, ONE_STEP, WARM_UP_CHUNKS, small_or_true, true_size
from sdbridge.bench.networks import random_controlnet, random_lora
from sdbridge.bench.parts import measure_parts
from sdbridge.collector import spare_the_frames
from sdbridge.meters import percentile

Figures = Mapping[str, object]
MOST = 300  # chunks of one pass
LEAST = 5
LOADING_S = 60.0


def lora_fader(seconds: float = 10.0, **options: Any) -> Figures:
    """Milliseconds from a moved weight to changed tensors, and the frames meanwhile. Wanted: under 3 ms."""
    with _stream(options) as (drive, folder):
        engine = drive.engine
        engine.apply({"lora.1.file": str(random_lora(folder))}, 1)
        until_settled(drive, BUILD_TIMEOUT_S)
        drive.run(MOST, seconds / 4, at_least=LEAST)
        moves: list[float] = []
        ticks: list[float] = []
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end or len(moves) < 3:
            _wait(engine)
            began = time.perf_counter()
            engine.apply({"lora.1.weight": 0.1 + (len(moves) % 50) / 50}, drive.number + 1)
            engine._settle()
            _wait(engine)
            moves.append((time.perf_counter() - began) * 1e3)
            ticks.append(drive.tick())
        drive.recipe = replace(drive.recipe, moves=moves_with_lora)
        live = drive.run(MOST, seconds / 2, at_least=LEAST)
        return {**_times("move", moves), **_times("tick", ticks), **_times("frame_while_moving", live)}


def controlnet_cost(seconds: float = 10.0, **options: Any) -> Figures:
    """One canny ControlNet in the stream against none. Wanted: at most 0.55 of the UNet's own time more."""
    with _stream(options) as (drive, folder):
        engine = drive.engine
        off = drive.run(MOST, seconds / 2, at_least=LEAST)
        unet_ms = measure_parts(drive, 20)["denoise_ms"]
        network = random_controlnet(folder)
        engine.apply({"controlnet.1.model": str(network), "controlnet.1.preprocessor": "canny"}, 1)
        until_settled(drive, BUILD_TIMEOUT_S)
        drive.run(WARM_UP_CHUNKS, seconds / 2, at_least=LEAST)  # past the frames after which it is captured
        on = drive.run(MOST, seconds / 2, at_least=LEAST)
        more = statistics.median(on) - statistics.median(off)
        return {
            **_times("without", off),
            **_times("with", on),
            "more_ms": more,
            "unet_ms": unet_ms,
            "share_of_unet": more / unet_ms,
            "canny_ms": _canny_ms(engine, drive.recipe.width),
        }


def controlnet_add(seconds: float = 10.0, **options: Any) -> Figures:
    """The latest frame while a ControlNet is loaded, captured and taken up. Wanted: at most twice the median.

    ``during`` lasts until the frame that it steers first; afterwards its faster form is made.
    """
    with _stream(options) as (drive, folder):
        engine = drive.engine
        network = random_controlnet(folder)
        before = drive.run(MOST, seconds / 2, at_least=LEAST)
        at = drive.number + 2  # it comes with a frame, so that what it costs the host is in that frame's time
        drive.coming[at] = {"controlnet.1.model": str(network), "controlnet.1.preprocessor": "canny"}
        during = drive.run(
            1_000_000, LOADING_S, at_least=5, enough=lambda: drive.number > at and not is_loading(engine)
        )
        taken_up = steers(engine)
        taking_up = drive.run(2 * WARM_UP_CHUNKS)
        taking_up.append(until_settled(drive, BUILD_TIMEOUT_S))
        after = drive.run(MOST, seconds / 2, at_least=LEAST)
        usual = max(statistics.median(after), statistics.median(before))
        return {
            **_times("before", before),
            **_times("during", during),
            "during_frames": len(during),
            "steers": taken_up,
            **_times("taking_up", taking_up),
            **_times("after", after),
            "latest_over_median": max([*during, *taking_up, *after]) / usual,
        }


def controlnet_add_at_60(seconds: float = 10.0, **options: Any) -> Figures:
    """The same beside a source of 60 frames a second, and how long it takes to come into the picture."""
    with _stream(options) as (drive, folder):
        engine = drive.engine
        network = random_controlnet(folder)
        end = time.perf_counter() + max(0.5, seconds / 2)
        before = drive.paced(60.0, lambda: time.perf_counter() > end)
        engine.apply(
            {"controlnet.1.model": str(network), "controlnet.1.preprocessor": "canny"}, drive.number + 1
        )
        asked = time.perf_counter()
        during = drive.paced(60.0, lambda: steers(engine) or time.perf_counter() > asked + LOADING_S)
        return {
            **_times("before", before),
            **_times("during", during),
            "in_picture_s": time.perf_counter() - asked,
            "steers": steers(engine),
        }


@contextmanager
def _stream(options: Mapping[str, Any]) -> Iterator[tuple[Drive, Path]]:
    """An SD-Turbo that streams at full speed, and the folder of its checkpoint."""
    from sdbridge.engine.image.engine import ImageEngine

    config, recipe = true_size("sd-turbo", options), small_or_true(options, ONE_STEP)
    engine = ImageEngine(config)
    engine.load(recipe.start_values())
    try:
        engine.warm_up(recipe.width, recipe.height)
        spare_the_frames()
        drive = Drive(engine, recipe)
        until_settled(drive, BUILD_TIMEOUT_S)
        drive.run(WARM_UP_CHUNKS, 2.0, at_least=LEAST)
        yield drive, Path(config.model)
    finally:
        engine.unload()


def steers(engine: Any) -> bool:
    """Whether the newest frame's call had residuals of a ControlNet."""
    return any(each.steers for each in engine._extensions if each.name == "controlnet")


def _wait(engine: Any) -> None:
    if engine.model.device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def _times(name: str, times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        f"{name}_median_ms": statistics.median(ordered),
        f"{name}_p99_ms": percentile(ordered, 99),
        f"{name}_max_ms": ordered[-1],
    }


def _canny_ms(engine: Any, side: int) -> float:
    """Canny alone on one picture as the stream runs it, with the wait for the device."""
    import torch

    from sdbridge.engine.preprocess.base import Settings
    from sdbridge.engine.preprocess.canny import Canny

    image = torch.rand(1, 3, side, side, device=engine.model.device)
    canny, times = Canny(), []
    acceleration = engine.painter.acceleration
    canny.accelerate(acceleration.wrap)
    with torch.inference_mode():
        canny(image, Settings())
        getattr(acceleration, "settled", bool)()
        for _ in range(20):
            began = time.perf_counter()
            canny(image, Settings())
            _wait(engine)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)
