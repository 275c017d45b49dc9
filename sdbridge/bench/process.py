"""A frame's whole way through the engine's process: shared-memory slot in, slot out, changes by the pipe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdbridge.bench.compare import compare_with_eager, picks
from sdbridge.bench.drive import INPUTS, Recipe, make_pixels
from sdbridge.bench.image import (
    BUILD_TIMEOUT_S,
    FRAMES,
    LEAST_FRAMES,
    ONE_STEP,
    PACED_FOR_S,
    PACED_FRAMES,
    PACED_S,
    figures_of,
    measure,
    of_config,
    small_or_true,
    true_size,
)
from sdbridge.engine.client import EngineClient, wait_for_state
from sdbridge.engine.interface import EngineConfig, EngineState
from sdbridge.engine.pipe import Wake
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.meters import percentile

Figures = Mapping[str, object]
WARM_UP_S = 1.0
SETTLE_S = 45.0
EAGER_SETTLE_S = 5.0


def sd_turbo_process(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo through the engine's process, and the milliseconds that it adds to the engine alone."""
    config, recipe = true_size("sd-turbo", options, on_disk=True), small_or_true(options, ONE_STEP)
    return _both(config, recipe, seconds)


def config_process(seconds: float = 10.0, config: Path | None = None, **options: Any) -> Figures:
    """The same for the engine of a config file."""
    engine, recipe, repeatable = of_config(config, options)
    return _both(engine, recipe, seconds, check=repeatable)


def _both(config: EngineConfig, recipe: Recipe, seconds: float, *, check: bool = True) -> Figures:
    """Through the process, beside the engine alone; those of a chunk come out of the slot one by one."""
    alone = measure(config, recipe, seconds, check=False)
    through = measure_process(
        config, recipe, seconds, usual_ms=float(alone["median_ms"]), check=check and recipe.rows == 1
    )
    return {
        **through,
        "alone_median_ms": alone["median_ms"],
        "alone_latency_ms": alone["latency_ms"],
        "more_ms": through["median_ms"] - alone["median_ms"],
        "more_latency_ms": through["latency_ms"] - alone["latency_ms"],
    }


def measure_process(
    config: EngineConfig, recipe: Recipe, seconds: float, usual_ms: float = 0.0, *, check: bool = True
) -> dict[str, Any]:
    """Start the real engine process, keep its input slot full, and time what comes out of its output slot.

    Nobody outside sees when its acceleration has done its best, so that the measurement waits for a second
    that is near ``usual_ms`` a frame, or ``SETTLE_S``; ``EAGER_SETTLE_S`` where it
    has nothing to do but what is loaded beside the stream.
    """
    began = time.perf_counter()
    ready = Wake()
    faults: list[str] = []
    client = EngineClient(
        config,
        recipe.start_values(),
        0,
        ready,
        lambda _client, word, about: faults.append(str(about)) if word == "error" else None,
    )
    client.start()
    try:
        if not wait_for_state(client, EngineState.STREAMING, BUILD_TIMEOUT_S):
            raise SdbridgeError("SDB-BENCH-FAULT", f"the engine's process did not stream: {faults[-1:]}")
        streaming = time.perf_counter()
        feed = _Feed(client, ready, recipe)
        feed.run(2, WARM_UP_S)
        first_frame = time.perf_counter()
        warm = feed.run(1_000_000, WARM_UP_S)
        eager = client.report is not None and client.report.acceleration == "eager"
        patience_s = EAGER_SETTLE_S if eager else SETTLE_S
        while time.perf_counter() - streaming < patience_s and (
            not warm or statistics.median(warm) > 1.1 * usual_ms + 0.5
        ):
            warm = feed.run(1_000_000, WARM_UP_S)
        full = time.perf_counter()
        usual_s = statistics.median(warm) / 1e3 if warm else 1.0
        count = max(LEAST_FRAMES, min(FRAMES, int(seconds / usual_s)))
        feed.wanted = picks(feed.number + 2, int(count * 0.9), recipe.endless)
        dropped = client.dropped
        times = feed.run(count, max(seconds, LEAST_FRAMES * usual_s * 3))
        if not times:
            raise SdbridgeError("SDB-BENCH-FAULT", f"no frame came out of the process: {faults[-1:]}")
        figures: dict[str, Any] = {
            **figures_of(times, 1),
            **_paced(feed, statistics.median(times)),
            "dropped_before_engine": client.dropped - dropped,
            "streaming_s": streaming - began,
            "first_frame_s": first_frame - began,
            "full_speed_s": full - began,
            "vram_mb": client.stats.vram_mb,
            "acceleration": client.report.acceleration if client.report else "",
            "faults": "; ".join(faults[:3]),
        }
    finally:
        client.stop()
        ready.close()
    if check and figures["acceleration"] != "eager":
        try:
            figures |= compare_with_eager(config, recipe, feed.kept)
        except SdbridgeError as error:  # the times were measured and stand
            figures["compare_error"] = str(error)
    return figures


class _Feed:
    """Puts frames before the engine as soon as it took the last one, and takes what comes out."""

    def __init__(self, client: EngineClient, ready: Wake, recipe: Recipe) -> None:
        self._client, self._ready, self._recipe = client, ready, recipe
        self._pixels = make_pixels(recipe.width, recipe.height)
        self.number = 0
        self.wanted: frozenset[int] = frozenset()
        self.kept: dict[int, np.ndarray] = {}

    def run(self, count: int, seconds: float) -> list[float]:
        """Milliseconds between ``count`` frames that came out, or as many as come in ``seconds``."""
        end = time.perf_counter() + seconds
        times: list[float] = []
        last = 0.0
        while len(times) < count and time.perf_counter() < end:
            if self._client.waiting == 0:
                self.offer()
            self.wait(0.0003)
            if self.take() is None:
                continue
            now = time.perf_counter()
            if last:
                times.append((now - last) * 1e3)
            last = now
        return times

    def offer(self) -> int:
        """The next frame with its changes; its id."""
        number = self.number
        self._client.change(dict(self._recipe.moves(number)), number + 1)
        self._client.offer("main", Frame(self._pixels[number % INPUTS], number, time.monotonic_ns()))
        self.number += 1
        return number

    def take(self) -> Frame | None:
        frame = self._client.take()
        if frame is not None and frame.frame_id in self.wanted:
            self.kept[frame.frame_id] = frame.pixels.copy()
        return frame

    def wait(self, seconds: float) -> None:
        """Until something may have come out, for ``seconds`` at most."""
        self._ready.wait(seconds)

    def rest(self) -> None:
        """Let everything come out."""
        quiet = time.perf_counter() + 0.3
        while time.perf_counter() < quiet:
            self.wait(0.02)
            if self.take() is not None:
                quiet = time.perf_counter() + 0.3


def _paced(feed: _Feed, usual_ms: float) -> dict[str, float]:
    """From a frame put into the input slot to the picture that it pushes out of the output slot.

    At 60 frames a second or as fast as goes, the next one never before its time. With one step that picture
    is the frame's own; a stream batch gives one that came some frames before, as ``Drive.one`` counts it.
    """
    feed.rest()
    gap_s = max(PACED_S, 1.2 * usual_ms / 1e3)
    times = []
    for _ in range(max(5, min(PACED_FRAMES, int(PACED_FOR_S / gap_s)))):
        began = time.perf_counter()
        feed.offer()
        while (left_s := began + gap_s - time.perf_counter()) > 0:
            feed.wait(min(0.002, left_s))
            if feed.take() is not None:
                times.append((time.perf_counter() - began) * 1e3)
                time.sleep(max(0.0, began + gap_s - time.perf_counter()))
    if not times:
        return {"latency_ms": float("nan"), "latency_p99_ms": float("nan")}
    times.sort()
    return {"latency_ms": statistics.median(times), "latency_p99_ms": percentile(times, 99)}
