"""The image engine alone: whole frames, uint8 in and out, with input, embedding and noise new in each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdbridge import paths
from sdbridge.config import load_config
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame
from sdbridge.meters import percentile
from sdbridge.models.resolve import resolve_model
from sdbridge.parameters.parameter import Value

WARM_UP_FRAMES = 20
INPUTS = 16  # different pictures, so that no cache answers

Figures = Mapping[str, object]


def config_case(seconds: float = 10.0, config: Path | None = None, **options: Any) -> Figures:
    """The engine of a config file (default: the demo's model), at the config's size and parameters."""
    given = load_config(config)
    model = str(resolve_model(given.engine.model))
    engine = EngineConfig(
        model=model,
        device=given.engine.device,
        dtype=given.engine.dtype,
        vae=given.engine.vae,
        acceleration=given.engine.acceleration,
        threads=given.engine.threads,
        options=given.engine.options,
    )
    size = (given.engine.width, given.engine.height) if config else (256, 256)
    return measure(engine, size, dict(given.parameters), seconds)


def sd_turbo(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo, one step, batch 1."""
    return _true_size("sd-turbo", {"steps": 1, "strength": 0.6}, seconds, options)


def sd_turbo_batch4(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo, one step, frame batch 4: throughput before latency."""
    return _true_size("sd-turbo", {"steps": 1, "strength": 0.6, "frame_batch": 4}, seconds, options)


def sd15_lcm(seconds: float = 10.0, **options: Any) -> Figures:
    """SD 1.5 with LCM steps, stream batch of 4."""
    return _true_size("sd15", {"steps": 4, "scheduler": "lcm"}, seconds, options)


def sd15_lcm_self(seconds: float = 10.0, **options: Any) -> Figures:
    """The same with residual guidance in mode self."""
    values: dict[str, Value] = {
        "steps": 4,
        "scheduler": "lcm",
        "guidance_scale": 1.4,
        "guidance_mode": "self",
    }
    return _true_size("sd15", values, seconds, options)


def sdxl_turbo(seconds: float = 10.0, **options: Any) -> Figures:
    """SDXL-Turbo, one step, 512x512."""
    return _true_size("sdxl-turbo", {"steps": 1, "strength": 0.6}, seconds, options)


def feature_bank(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo with the feature bank on, and its ratio to the bank off."""
    off = _true_size("sd-turbo", {"steps": 1}, seconds, options)
    on = _true_size("sd-turbo", {"steps": 1, "feature_bank.enabled": True}, seconds, options)
    return {**on, "off_median_ms": off["median_ms"], "ratio": on["median_ms"] / off["median_ms"]}  # type: ignore[operator]


def _true_size(size: str, values: Mapping[str, Value], seconds: float, options: Mapping[str, Any]) -> Figures:
    if options.get("weights") != "random":
        raise SdbridgeError("SDB-BENCH-FAULT", f"{size} at true size needs --weights random")
    from sdbridge.models.random_weights import build_random_checkpoint

    folder = build_random_checkpoint(paths.cache_dir() / "random-weights" / size, size)
    return measure(EngineConfig(model=str(folder)), (512, 512), values, seconds)


def measure(
    config: EngineConfig, size: tuple[int, int], values: Mapping[str, Value], seconds: float
) -> dict[str, Any]:
    """Load, warm up, then time ``tick`` by the host clock for ``seconds``; milliseconds a frame."""
    from sdbridge.engine.image.engine import ImageEngine

    width, height = size
    engine = ImageEngine(config)
    began = time.perf_counter()
    engine.load(
        {"prompt.1.text": "fire", "prompt.2.text": "ocean", **values, "width": width, "height": height}
    )
    try:
        report = engine.warm_up(width, height)
        first_frame_s = time.perf_counter() - began
        rows = int(values.get("frame_batch", 1))
        chunks = _chunks(width, height, rows)
        for number in range(WARM_UP_FRAMES):
            _frame(engine, chunks, number)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            _frame(engine, chunks, len(times))
            times.append((time.perf_counter() - started) * 1e3 / rows)
        stats = engine.stats()
        times.sort()
        return {
            "median_ms": statistics.median(times),
            "p95_ms": percentile(times, 95),
            "p99_ms": percentile(times, 99),
            "fps": 1e3 / statistics.fmean(times),
            "frames": len(times) * rows,
            "load_s": report.load_s,
            "warm_up_s": report.warm_up_s,
            "first_frame_s": first_frame_s,
            "vram_mb": stats.vram_mb,
            "device": report.device,
            "dtype": report.dtype,
            "acceleration": report.acceleration,
            **{f"{part}_ms": value for part, value in stats.parts_ms.items()},
        }
    finally:
        engine.unload()


def _frame(engine: Any, chunks: list[Chunk], number: int) -> None:
    """One tick in which picture, embedding (blend of two prompts) and noise (seed) are new."""
    share = 0.1 + 0.8 * (number % 97) / 97
    engine.apply({"prompt.2.weight": share, "seed.1.value": number % 1000}, number + 1)
    engine.tick(chunks[number % len(chunks)])


def _chunks(width: int, height: int, frames: int) -> list[Chunk]:
    generator = np.random.default_rng(0)
    made = []
    for number in range(INPUTS):
        entries = []
        for offset in range(frames):
            pixels = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
            pixels[..., 3] = 255
            entries.append({"main": Frame(pixels, number * frames + offset, time.monotonic_ns())})
        made.append(Chunk(tuple(entries)))  # type: ignore[arg-type]
    return made
