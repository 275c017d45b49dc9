"""Everything a start would make for itself, made beforehand: compiled kernels, tuning, TensorRT engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig, Progress
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame
from sdbridge.parameters.parameter import Value

#: Frames after which networks beside the UNet have been captured too.
_FRAMES = 24
_LOADING_S = 600.0
_PATIENCE_S = 24 * 3600.0

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class BuildReport:
    """What was made, a line each, by which acceleration, and what went wrong beside it."""

    acceleration: str
    why: str
    lines: tuple[str, ...]
    seconds: float
    troubles: tuple[str, ...]


def build_caches(
    config: EngineConfig,
    values: Mapping[str, Value],
    width: int,
    height: int,
    tell: Tell,
    measure: bool = True,
) -> BuildReport:
    """Load the engine, run frames of this size through all that ``values`` ask for, and let it do its best.

    What is on the disk already and fits is used; what is damaged or made for something else is made anew.
    On a card whose kernels were never timed that is done too (unless ``measure`` is false), and what was
    chosen is compiled by a second pass. Raises SdbridgeError where the engine itself does.
    """
    began = time.monotonic()
    troubles: list[str] = []
    found = _pass(config, values, width, height, tell, troubles, measure)
    lines = found.lines
    if found.measured:
        lines = (f"{found.measured} layers timed on this card",)
        found = _pass(config, values, width, height, tell, troubles, False)
        lines += found.lines
    return BuildReport(
        found.acceleration, found.why, lines, time.monotonic() - began, tuple(dict.fromkeys(troubles))
    )


@dataclass(frozen=True)
class _Pass:
    acceleration: str
    why: str
    lines: tuple[str, ...]
    measured: int


def _pass(
    config: EngineConfig,
    values: Mapping[str, Value],
    width: int,
    height: int,
    tell: Tell,
    troubles: list[str],
    measure: bool,
) -> _Pass:
    """Frames through all that is asked for, the acceleration's best, and then, if wanted, the timing."""
    engine = ImageEngine(config)
    engine.report_progress(lambda event: tell(event) if event is not None else None)
    engine.report_trouble(lambda error: troubles.append(str(error)))
    engine.load({**values, "width": width, "height": height})
    try:
        report = engine.warm_up(width, height)
        _run_frames(engine, width, height)
        acceleration = engine.painter.acceleration
        build = getattr(acceleration, "build", None)
        if build is not None:
            lines = tuple(build(tell))
        else:
            lines = (_settle(acceleration, tell),)
        _run_frames(engine, width, height)  # what was made is run once, by this command and not by the show
        time_kernels = getattr(acceleration, "measure", None) if measure else None
        measured = 0 if time_kernels is None else int(time_kernels(tell))
        return _Pass(acceleration.name, report.why, lines, measured)
    finally:
        engine.unload()


def _settle(acceleration: object, tell: Tell) -> str:
    """Wait until what is made beside the frames is done. How much there is, only the compiler knows."""
    settled = getattr(acceleration, "settled", None)
    if settled is None:
        return "nothing to build: this acceleration starts as it goes on"
    end = time.monotonic() + _PATIENCE_S
    while not settled(1.0):
        tell(Progress("kernels", 0.0, 0.0, "Compiling and capturing"))
        if time.monotonic() > end:
            return "not finished"
    return "kernels are compiled and kept"


def _run_frames(engine: ImageEngine, width: int, height: int) -> None:
    """Frames until nothing is loaded beside them any more, and some more with all that was loaded."""
    pixels = np.full((height, width, 4), 127, np.uint8)
    waited = time.monotonic() + _LOADING_S
    number = more = 0
    while more < _FRAMES:
        entry = {"main": Frame(pixels, number, time.monotonic_ns())}
        engine.tick(Chunk((entry,) * engine.spec.chunk_in))  # type: ignore[arg-type]
        number += 1
        if not any(getattr(extension, "loading", False) for extension in engine._extensions):
            more += 1
        elif time.monotonic() > waited:
            raise SdbridgeError(
                "SDB-ENGINE-FAULT", f"what the configuration loads was not there after {_LOADING_S:.0f} s"
            )
