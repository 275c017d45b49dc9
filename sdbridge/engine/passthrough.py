"""The engine that gives back what it takes, for measuring the bridge alone and for trying out textures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sdbridge.engine.interface import EngineConfig, EngineSpec, EngineStats, ResetKind, WarmUpReport
from sdbridge.frame import Chunk, Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection


class PassthroughEngine:
    """Generated is main, untouched; the control input, if there is one, goes to the control output."""

    #: Frames are used within ``tick`` only, so the loop need not copy them out of shared memory.
    keeps_no_frames = True

    def __init__(self, config: EngineConfig) -> None:
        self.spec = EngineSpec(kind="passthrough", size_multiple=1)

    def load(self, values: Mapping[str, Value]) -> None:
        """Nothing to load."""

    def warm_up(self, width: int, height: int) -> WarmUpReport:
        return WarmUpReport(0.0, 0.0, "cpu", "uint8", "eager", "passthrough computes nothing")

    def apply(self, changes: Mapping[str, Value], revision: int) -> tuple[Rejection, ...]:
        return ()

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        if chunk is None:
            return None
        given = chunk.frames[-1]
        if "main" not in given:
            return None
        entry: dict[Role, Frame] = {"generated": given["main"]}
        if "control" in given:
            entry["control"] = given["control"]
        return Chunk((MappingProxyType(entry),))

    def reset(self, how: ResetKind) -> None:
        """Nothing is remembered."""

    def flush(self) -> tuple[Chunk, ...]:
        return ()

    def stats(self) -> EngineStats:
        return EngineStats()

    def unload(self) -> None:
        """Nothing to free."""
