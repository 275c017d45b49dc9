"""A show that runs for long: whether memory grows, frames are lost or the output ever pauses."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from sdbridge.bench.rig import FaultRig
from sdbridge.errors import SdbridgeError
from sdbridge.meters import percentile

FPS = 30.0
SIDE = 256
#: Share of the time at the start that is left out of the slopes: caches fill, pools settle.
SETTLING = 0.1


@dataclass(frozen=True)
class Mark:
    """What the two processes held at one moment, in MB, and how busy the machine was."""

    at: float
    bridge_mb: float
    engine_mb: float
    load: float


def soak(seconds: float = 1800.0, kind: str = "image", **options: Any) -> Mapping[str, object]:
    """The embedded model at 256x256, 30 pictures a second in and 30 out, watched from another process."""
    engine = {"kind": kind, "model": "embedded", "width": SIDE, "height": SIDE}
    show = {"engine": engine, "parameters": {"output.fps": FPS, "prompt": "fire"}}
    with FaultRig(more=show, source_fps=FPS) as rig:
        before, began = rig.status(), time.monotonic()
        marks = list(_watch(rig, seconds))
        after, spent = rig.status(), time.monotonic() - began
        sights = [sight for sight in rig.sights if sight.at >= began]
    settled = [mark for mark in marks if mark.at - began >= SETTLING * seconds]
    gaps = sorted((b.at - a.at) * 1e3 for a, b in itertools.pairwise(sights)) or [0.0]
    numbers = [sight.number for sight in sights]
    return {
        "minutes": spent / 60,
        "model": after["model"],
        "frames_out": after["frames_out"] - before["frames_out"],
        "frames_seen": len(sights),
        "frames_missed": numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0,
        "output_fps": (after["frames_out"] - before["frames_out"]) / spent,
        "new_pictures_fps": (_made(after) - _made(before)) / spent,
        "frames_in": after["frames_in"] - before["frames_in"],
        "dropped_before_engine": after["dropped"] - before["dropped"],
        "gap_p99_ms": percentile(gaps, 99),
        "gap_max_ms": gaps[-1],
        "gaps_over_100_ms": sum(gap > 100 for gap in gaps),
        "latency_p50_ms": after["latency_ms"]["p50"],
        "latency_p99_ms": after["latency_ms"]["p99"],
        "restarts": after["restarts"],
        "errors": len(after["errors"]),
        "bridge_mb": marks[-1].bridge_mb,
        "engine_mb": marks[-1].engine_mb,
        "bridge_mb_per_hour": slope([(m.at / 3600, m.bridge_mb) for m in settled]),
        "engine_mb_per_hour": slope([(m.at / 3600, m.engine_mb) for m in settled]),
        "load_mean": sum(mark.load for mark in marks) / len(marks),
    }


def _watch(rig: FaultRig, seconds: float) -> Sequence[Mark]:
    """A mark every hundredth of the time, at least every ten seconds, and one at the end."""
    assert rig.daemon is not None
    bridge, engine = psutil.Process(rig.daemon.pid), rig.engine_process()
    end = time.monotonic() + seconds
    marks = []
    while True:
        left = end - time.monotonic()
        time.sleep(max(0.0, min(left, 10.0, seconds / 100)))
        try:
            held = bridge.memory_info().rss / 2**20, engine.memory_info().rss / 2**20
        except psutil.NoSuchProcess as error:
            raise SdbridgeError("SDB-BENCH-FAULT", f"a process ended during the soak: {error}") from error
        marks.append(Mark(time.monotonic(), *held, _load()))
        if left <= 0:
            return marks


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The rise of the straight line that fits best; 0 if there are too few points for one."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return 0.0
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def _made(status: Mapping[str, Any]) -> int:
    """Pictures sent that were new."""
    return int(status["frames_out"]) - int(status["held"])


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else psutil.cpu_percent() / 100
