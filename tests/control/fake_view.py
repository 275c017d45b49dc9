"""A bridge view for tests: the real parameter store and show, everything else as small as it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdbridge.config import Config, CueConfig
from sdbridge.frame import Frame, OutputRole, Role
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import ParameterStore
from sdbridge.status import LatencyMs, Status


class ManualClock:
    """Time that passes when the test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_ns = int(now_s * 1e9)

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        self.advance(max(seconds, 0.0))

    def advance(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)


class FakeView:
    """What ``control/`` sees of the bridge. ``now`` is the status it reports; frames are flat colours."""

    def __init__(
        self,
        folder: Path,
        config: Config | None = None,
        clock: ManualClock | None = None,
        cues: Sequence[CueConfig] = (),
    ) -> None:
        self.config = config or Config(port=0)
        self.clock = clock or ManualClock()
        self.store = ParameterStore()
        self.show = Show(self.store, folder, self.clock, cues or self.config.cues)
        self.chosen: list[tuple[object, ...]] = []
        self.now = Status(state="streaming", output="live", fps=30.0, latency_ms=LatencyMs(12.0, 20.0))

    def status(self) -> Status:
        return self.now

    def input_frame(self, role: Role = "main") -> Frame | None:
        return _flat((40, 80, 120, 255))

    def output_frame(self, role: Role = "generated") -> Frame | None:
        return _flat((120, 80, 40, 255))

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        return (("test_pattern", True, "always there"), ("spout", False, "only on Windows"))

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        return (("bars", "512x512"),) if backend == "test_pattern" else ()

    def choose_input(self, role: Role, backend: str, name: str) -> None:
        self.chosen.append(("input", role, backend, name))

    def drop_input(self, role: Role) -> None:
        self.chosen.append(("off", role))

    def choose_output(self, index: int, backend: str, name: str, role: OutputRole | None = None) -> None:
        self.chosen.append(("output", index, backend, name, role))

    def drop_output(self, index: int) -> None:
        self.chosen.append(("off", index))

    def mounts(self) -> Mapping[str, object]:
        return {}

    def log_lines(self, count: int) -> Sequence[str]:
        return ("a line of the log",)[:count]

    def close(self) -> None:
        self.show.close()


def _flat(colour: tuple[int, int, int, int]) -> Frame:
    pixels = np.empty((64, 64, 4), dtype=np.uint8)
    pixels[:] = colour
    return Frame(pixels, 1, 0)
