"""How long each part of a frame takes: CUDA events around it on a GPU, the host's clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sdbridge.bench.drive import Drive


def measure_parts(drive: Drive, ticks: int) -> dict[str, float]:
    """Median milliseconds a frame of upload, encode, denoise, decode and download, over blocking ticks.

    A part that this engine does not do by a call of its own is missing.
    """
    from sdbridge.engine.image import outgoing

    engine = drive.engine
    acceleration = engine.painter.acceleration
    clock = _Events() if engine.model.device.type == "cuda" else _Host()
    with ExitStack() as stack:
        for part, owner, name in (
            ("upload", engine.painter._staging, "to_device"),
            ("encode", acceleration, "run_encode"),
            ("encode", acceleration, "run_encode_rgba"),
            ("denoise", acceleration, "run_denoise"),
            ("decode", acceleration, "run_decode"),
            ("decode", acceleration, "run_decode_rgba"),
            ("download", outgoing, "Handout"),
        ):
            if hasattr(owner, name):
                stack.enter_context(_timed(owner, name, part, clock))
        drive.tick()
        clock.forget()
        for _ in range(ticks):
            drive.tick()
    return {f"{part}_ms": statistics.median(times) for part, times in clock.read().items()}


@contextmanager
def _timed(owner: Any, name: str, part: str, clock: Any) -> Iterator[None]:
    """Replace ``owner.name`` by itself with a clock around it."""
    own = name in vars(owner)
    before: Callable[..., Any] = getattr(owner, name)

    def run(*given: Any, **named: Any) -> Any:
        if part in clock.under_way:  # one way to do a part may go through another
            return before(*given, **named)
        clock.under_way.add(part)
        begun = clock.mark()
        made = before(*given, **named)
        clock.note(part, begun, clock.mark())
        clock.under_way.discard(part)
        return made

    setattr(owner, name, run)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class _Host:
    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}
        self.under_way: set[str] = set()

    def mark(self) -> float:
        return time.perf_counter()

    def note(self, part: str, begun: float, ended: float) -> None:
        self._times.setdefault(part, []).append((ended - begun) * 1e3)

    def forget(self) -> None:
        self._times.clear()

    def read(self) -> dict[str, list[float]]:
        return self._times


class _Events:
    """Events are read at the end, so that nothing waits between the parts."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, Any, Any]] = []
        self.under_way: set[str] = set()

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def note(self, part: str, begun: Any, ended: Any) -> None:
        self._pairs.append((part, begun, ended))

    def forget(self) -> None:
        self._pairs.clear()

    def read(self) -> dict[str, list[float]]:
        import torch

        torch.cuda.synchronize()
        times: dict[str, list[float]] = {}
        for part, begun, ended in self._pairs:
            times.setdefault(part, []).append(begun.elapsed_time(ended))
        return times
