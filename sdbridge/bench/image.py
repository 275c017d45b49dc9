"""The image engine alone: whole frames, uint8 in and out, with input, embedding and noise new in each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from sdbridge import paths
from sdbridge.bench.compare import compare_with_eager, picks
from sdbridge.bench.drive import Drive, Recipe, moves_with_lora, until_settled
from sdbridge.bench.parts import measure_parts
from sdbridge.collector import spare_the_frames
from sdbridge.config import load_config
from sdbridge.engine.interface import EngineConfig
from sdbridge.engine.making import engine_config
from sdbridge.errors import SdbridgeError
from sdbridge.meters import percentile
from sdbridge.models.demand import demand
from sdbridge.models.resolve import resolve_model
from sdbridge.parameters.parameter import Value

FRAMES = 500  # that the steady state is measured over
LEAST_FRAMES = 30  # also where ``seconds`` are over before
WARM_UP_CHUNKS = 60  # networks beside the UNet are captured after twenty
PACED_FRAMES = 120
PACED_S = 1 / 60
PACED_FOR_S = 3.0
PART_TICKS = 50
STILL_CHUNKS = 100  # of the new pictures under values that rest, the first ones left out
STILL_LEFT_OUT = 5
BUILD_TIMEOUT_S = 400.0

#: t = 359 of 1000: index 32 of 50, where the issue compares pictures with the eager engine's.
ONE_STEP: Mapping[str, Value] = {"steps": 1, "strength": 0.36}
FOUR_STEPS: Mapping[str, Value] = {"steps": 4, "scheduler": "lcm", "step_indices": "32,36,40,44"}
GUIDED: Mapping[str, Value] = {"guidance_scale": 1.4, "guidance_mode": "self"}

Figures = Mapping[str, object]


def config_case(seconds: float = 10.0, config: Path | None = None, **options: Any) -> Figures:
    """The engine of a config file (default: the demo's model), at the config's size and parameters."""
    engine, recipe, repeatable = of_config(config, options)
    return measure(engine, recipe, seconds, check=repeatable)


def of_config(config: Path | None, options: Mapping[str, Any]) -> tuple[EngineConfig, Recipe, bool]:
    """Engine and recipe of a config file, and whether a frame of it can be painted again."""
    given = load_config(config)
    values = dict(given.parameters)
    engine = engine_config(given.engine, values)
    engine = replace(engine, model=str(resolve_model(engine.model)))
    width, height = (given.engine.width, given.engine.height) if config else (256, 256)
    endless = bool(values.get("feature_bank.enabled")) or float(values.get("latent_feedback", 0.0)) > 0
    repeatable = (
        values.get("seed_mode", "fixed") == "fixed"
        and values.get("mode", "img2img") == "img2img"
        and not float(values.get("prompt_transition", 0.0))
    )
    return _asked(engine, options), Recipe(values, width, height, endless=endless), repeatable


def sd_turbo(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo, one step, batch 1. Its weights lie on the disk, so that its start is a user's start."""
    return measure(true_size("sd-turbo", options, on_disk=True), small_or_true(options, ONE_STEP), seconds)


def sd_turbo_batch4(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo, one step, frame batch 4: throughput before latency."""
    return measure(
        true_size("sd-turbo", options), small_or_true(options, {**ONE_STEP, "frame_batch": 4}), seconds
    )


def sd15_lcm(seconds: float = 10.0, **options: Any) -> Figures:
    """SD 1.5 with LCM steps, stream batch of 4."""
    return measure(true_size("sd15", options), small_or_true(options, FOUR_STEPS), seconds)


def sd15_lcm_self(seconds: float = 10.0, **options: Any) -> Figures:
    """The same with residual guidance in mode self."""
    return measure(true_size("sd15", options), small_or_true(options, {**FOUR_STEPS, **GUIDED}), seconds)


def sd15_everything(seconds: float = 10.0, **options: Any) -> Figures:
    """SD 1.5, LCM, 4 steps, guidance self, one canny ControlNet, and a LoRA whose fader moves each frame."""
    from sdbridge.bench.networks import random_controlnet, random_lora

    engine = true_size("sd15", options)
    folder = Path(engine.model)
    values: dict[str, Value] = {
        **FOUR_STEPS,
        **GUIDED,
        "controlnet.1.model": str(random_controlnet(folder)),
        "controlnet.1.preprocessor": "canny",
        "lora.1.file": str(random_lora(folder)),
    }
    return measure(engine, small_or_true(options, values, moves=moves_with_lora), seconds)


def sdxl_turbo(seconds: float = 10.0, **options: Any) -> Figures:
    """SDXL-Turbo, one step, 512x512."""
    return measure(true_size("sdxl-turbo", options), small_or_true(options, ONE_STEP), seconds)


def feature_bank(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo with the feature bank on, and its ratio to the bank off."""
    engine = true_size("sd-turbo", options)
    off = measure(engine, small_or_true(options, ONE_STEP), seconds / 2, check=False)
    values = {**ONE_STEP, "feature_bank.enabled": True}
    on = measure(engine, small_or_true(options, values, endless=True), seconds)
    return {**on, "off_median_ms": off["median_ms"], "ratio": on["median_ms"] / off["median_ms"]}


def small_or_true(options: Mapping[str, Any], values: Mapping[str, Value], **more: Any) -> Recipe:
    """The recipe at 512x512; option ``side`` stands in for that in tests."""
    side = int(options.get("side", 512))
    return Recipe(values, side, side, **more)


def true_size(size: str, options: Mapping[str, Any], *, on_disk: bool = False) -> EngineConfig:
    """The engine of a true architecture; option ``model`` (a folder) stands in for it in tests."""
    given = options.get("model")
    if given is None:
        if options.get("weights") != "random":
            raise SdbridgeError(
                "SDB-BENCH-FAULT",
                f"{size} at true size has no weights here",
                "Add --weights random; for weights of your own, sdbridge bench CONFIG.",
            )
        from sdbridge.models.random_weights import build_random_checkpoint

        name = f"{size}-files" if on_disk else size
        given = build_random_checkpoint(paths.cache_dir() / "random-weights" / name, size, on_disk=on_disk)
    return _asked(EngineConfig(model=str(given)), options)


def _asked(config: EngineConfig, options: Mapping[str, Any]) -> EngineConfig:
    """``config`` as the bench needs it: embeddings are waited for, so that two runs blend alike."""
    acceleration = str(options.get("acceleration") or config.acceleration)
    waiting = {**config.options, "wait_for_prompts": True}
    return replace(config, acceleration=acceleration, options=waiting)


@dataclass(frozen=True)
class _Start:
    """What getting ready took, in seconds."""

    load_s: float
    warm_up_s: float
    first_frame_s: float
    first_frame_after_load_s: float
    full_speed_s: float
    compile_s: float  # from the first frame until nothing gets faster any more; loading beside it included
    longest_meanwhile_ms: float


def measure(config: EngineConfig, recipe: Recipe, seconds: float, *, check: bool = True) -> dict[str, Any]:
    """Start, steady state, one frame at a time, parts, and the comparison with eager; ms a frame.

    Steady state is ``FRAMES`` frames, or as many as come in ``seconds``.
    """
    from sdbridge.engine.image.engine import ImageEngine

    engine = ImageEngine(config)
    troubles: list[str] = []
    engine.report_trouble(lambda error: troubles.append(error.what))
    began = time.perf_counter()
    _reset_peak()
    engine.load(recipe.start_values())
    loaded = time.perf_counter()
    try:
        report = engine.warm_up(recipe.width, recipe.height)
        spare_the_frames()
        drive, start = _get_ready(engine, recipe, began, loaded, report.warm_up_s)
        engine.reset("hard")
        drive.number = 0
        warm = drive.run(WARM_UP_CHUNKS, seconds / 4, at_least=4)
        usual_s = statistics.median(warm) * recipe.rows / 1e3
        chunks = max(LEAST_FRAMES, min(-(-FRAMES // recipe.rows), int(seconds / usual_s)))
        drive.wanted = picks(drive.number + 1, int(chunks * 0.9), recipe.endless)
        drive.host_ms.clear()
        drive.wait_ms.clear()
        before = _allocations()
        times = drive.run(chunks, 2 * seconds, at_least=LEAST_FRAMES)
        allocations = _per_frame(before, _allocations(), len(times) * recipe.rows)
        overlap: dict[str, float] = {}
        if drive.ahead:  # a wait near nothing means that the host is what limits
            overlap = {
                "host_ms": statistics.median(drive.host_ms),
                "wait_ms": statistics.median(drive.wait_ms),
            }
        figures = {
            **figures_of(times, recipe.rows),
            **overlap,
            **_still(drive, seconds / 4),
            **_paced(drive, statistics.median(times)),
            "peak_mb": _peak_mb(),
            "card_mb": engine.stats().vram_mb,
            **_predicted(config, recipe, engine.painter.acceleration.name),
            **allocations,
            **vars(start),
            **measure_parts(drive, min(PART_TICKS, max(3, len(times) // 4))),
            "device": report.device,
            "dtype": report.dtype,
            "acceleration": engine.painter.acceleration.name,
            "ahead": drive.ahead,
            "why": report.why,
        }
    finally:
        engine.unload()
    if troubles:  # what was to be measured was not all there
        figures["error"] = "; ".join(dict.fromkeys(troubles))
    if check and figures["acceleration"] != "eager":
        try:
            figures |= compare_with_eager(config, recipe, drive.kept)
        except SdbridgeError as error:  # the times were measured and stand
            figures["compare_error"] = str(error)
    return figures


def _get_ready(
    engine: Any, recipe: Recipe, began: float, loaded: float, warm_up_s: float
) -> tuple[Drive, _Start]:
    """First frame, then frames until nothing is loaded or made faster beside the stream any more."""
    drive = Drive(engine, recipe)
    drive.tick()
    first = time.perf_counter()
    longest = until_settled(drive, BUILD_TIMEOUT_S)
    full = time.perf_counter()
    return drive, _Start(
        load_s=loaded - began,
        warm_up_s=warm_up_s,
        first_frame_s=first - began,
        first_frame_after_load_s=first - loaded,
        full_speed_s=full - began,
        compile_s=full - first if hasattr(engine.painter.acceleration, "settled") else 0.0,
        longest_meanwhile_ms=longest,
    )


def figures_of(times: list[float], rows: int) -> dict[str, Any]:
    ordered = sorted(times)
    median = statistics.median(ordered)
    return {
        "median_ms": median,
        "p95_ms": percentile(ordered, 95),
        "p99_ms": percentile(ordered, 99),
        "p99_over_median": percentile(ordered, 99) / median,
        "worst_ms": ordered[-1],
        "fps": 1e3 / statistics.fmean(ordered),
        "frames": len(ordered) * rows,
    }


def _still(drive: Drive, seconds: float) -> dict[str, float]:
    """The median with new pictures and nothing else: what a prompt, a seed or a fader that moves costs."""
    drive.still = True
    times = drive.run(STILL_LEFT_OUT + STILL_CHUNKS, seconds, at_least=STILL_LEFT_OUT + 3)
    drive.still = False
    return {"still_median_ms": statistics.median(times[STILL_LEFT_OUT:])}


def _paced(drive: Drive, usual_ms: float) -> dict[str, float]:
    """From pixels in memory to pixels in memory, one chunk in flight, at 60 a second or as fast as goes."""
    usual_s = usual_ms * drive.recipe.rows / 1e3
    gap_s = max(PACED_S, 1.2 * usual_s)
    count = max(5, min(PACED_FRAMES, int(PACED_FOR_S / gap_s)))
    times = []
    for _ in range(count):
        due = time.perf_counter() + gap_s
        times.append(drive.one())
        time.sleep(max(0.0, due - time.perf_counter()))
    times.sort()
    return {"latency_ms": statistics.median(times), "latency_p99_ms": percentile(times, 99)}


def _predicted(config: EngineConfig, recipe: Recipe, acceleration: str) -> dict[str, float]:
    """What ``sdbridge doctor`` says that this takes of a card; nothing for weights that lie in no file."""
    import torch

    from sdbridge.models.random_weights import MARK

    if not torch.cuda.is_available() or any(Path(config.model).glob(f"*/{MARK}")):
        return {}
    values, captured = recipe.start_values(), acceleration != "eager"
    try:
        counted = demand(config, values, recipe.width, recipe.height, captured=captured)
    except SdbridgeError:
        return {}
    return {} if counted is None else {"predicted_mb": counted.total / 2**20}


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float:
    """Most device memory held at once; without CUDA what this process holds now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return psutil.Process().memory_info().rss / 2**20


def _allocations() -> int | None:
    """What torch's caching allocator has given out on the device so far; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))


def _per_frame(before: int | None, after: int | None, frames: int) -> dict[str, float]:
    """Wanted: 0, also while prompts and seed move in every frame."""
    if before is None or after is None:
        return {}
    return {"allocations_per_frame": (after - before) / frames}
