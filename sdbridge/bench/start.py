"""How long a start takes: the first with nothing prepared, and the second with what the first one left."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sdbridge.bench.drive import Drive, Recipe, is_building, until_settled
from sdbridge.bench.image import ONE_STEP, small_or_true, true_size
from sdbridge.collector import spare_the_frames
from sdbridge.engine.interface import EngineConfig, Progress
from sdbridge.errors import SdbridgeError

Figures = Mapping[str, object]
TIMEOUT_S = 280.0
AFTER_FRAMES = 200


def sd_turbo_start(seconds: float = 10.0, **options: Any) -> Figures:
    """SD-Turbo from its files, twice, each in a new process: first frame, full speed, and what is seen.

    Before each start every file of the model is read once, as the start before it on a machine does, and
    the rate of that is told: what a slow or shared disk takes is ``files_mb / <name>_disk_mb_s``.
    """
    config = true_size("sd-turbo", options, on_disk=True)
    side = small_or_true(options, ONE_STEP).width
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="sdb-start-") as home:
        for name in ("cold", "second"):
            figures["files_mb"], figures[f"{name}_disk_mb_s"] = _read_through(Path(config.model))
            found = _start(config, side, Path(home))
            figures |= {f"{name}_{key}": value for key, value in found.items()}
    return figures


def _read_through(folder: Path) -> tuple[float, float]:
    """Read every file once: megabytes in all, and megabytes a second."""
    began, size = time.perf_counter(), 0
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while piece := stream.read(1 << 24):
                size += len(piece)
    return size / 2**20, size / 2**20 / max(time.perf_counter() - began, 1e-6)


def _start(config: EngineConfig, side: int, home: Path) -> dict[str, Any]:
    """One start with every cache that we, Triton and CUDA keep under ``home``.

    Python's own, the compiled modules beside their sources, is written as it is by hand, whatever the
    surroundings say: without it every start would compile all that it imports.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "SDBRIDGE_HOME": str(home / "sdbridge"),
        "TRITON_CACHE_DIR": str(home / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
        "CUDA_CACHE_PATH": str(home / "cuda"),
    }
    given = json.dumps(
        {"model": config.model, "acceleration": config.acceleration, "side": side, "began": time.time()}
    )
    command = [sys.executable, "-m", "sdbridge.bench.start", given]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SdbridgeError("SDB-BENCH-FAULT", f"the engine was not ready after {TIMEOUT_S:.0f} s") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise SdbridgeError("SDB-BENCH-FAULT", f"the start failed: {done.stderr[-300:]}") from None
    return found


def start_once(model: str, acceleration: str, side: int, began: float) -> dict[str, Any]:
    """In the new process: seconds since ``began`` (``time.time()`` before it was started).

    ``jump_db`` compares the picture of the first frames with that of the same input, prompt and noise at
    full speed: what is seen when the faster form takes over.
    """
    from sdbridge.bench.compare import psnr_db
    from sdbridge.engine.registry import make_engine, prepare_process

    config = EngineConfig(model=model, acceleration=acceleration, options={"wait_for_prompts": True})
    prepare_process(config)  # as the engine's process does
    imported = time.time() - began
    recipe = Recipe(ONE_STEP, side, side)
    engine: Any = make_engine(config)
    stages: list[tuple[str, float]] = []

    def note(progress: Progress | None) -> None:
        if progress is not None:
            stages.append((progress.message, time.time()))

    engine.report_progress(note)
    engine.load(recipe.start_values())
    loaded = time.time() - began
    parts = _parts(stages)
    try:
        engine.warm_up(side, side)
        warm = time.time() - began
        spare_the_frames()
        drive = Drive(engine, recipe, frozenset({0}))
        drive.tick()
        first = time.time() - began
        before = drive.kept[0]
        was_building = is_building(engine)
        longest = until_settled(drive)
        full = time.time() - began
        usual = sorted(drive.run(AFTER_FRAMES, 10.0, at_least=5))
        drive.number = 0
        drive.tick()
        after = drive.kept[0]
    finally:
        engine.unload()
    return {
        "imported_s": imported,
        "loaded_s": loaded,
        "uncompiled_modules": _uncompiled(),
        **parts,
        "warm_up_s": warm - loaded,
        "first_frame_s": first,
        "first_frame_after_load_s": first - loaded,
        "full_speed_s": full,
        "full_speed_after_load_s": full - loaded,
        "built_beside": was_building,
        "longest_meanwhile_ms": longest,
        "median_ms": usual[len(usual) // 2],
        "jump_db": psnr_db(before, after),
    }


def _uncompiled() -> int:
    """How many modules Python had to compile for this start, and will for the next one: nothing was kept."""
    kept = [getattr(module.__spec__, "cached", None) for module in _imported()]
    return sum(isinstance(path, str) and not os.path.exists(path) for path in kept)


def _imported() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]


def _parts(stages: list[tuple[str, float]]) -> dict[str, float]:
    """Seconds of each stage of loading; the last one told is the end of it."""
    return {
        f"{message.lower().replace(' ', '_')}_s": following - at
        for (message, at), (_, following) in itertools.pairwise(stages)
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(start_once(**json.loads(sys.argv[1]))) + "\n")
