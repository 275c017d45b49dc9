"""How long to wait for a first generated frame before it is clear that none comes."""

from __future__ import annotations

from typing import Protocol

from sdbridge.clock import Clock
from sdbridge.engine.interface import EngineState


class Expected(Protocol):
    """The engine, as far as waiting for it is concerned."""

    @property
    def state(self) -> EngineState: ...
    @property
    def given_up(self) -> bool: ...


class Patience:
    """Ends when the engine is given up, or when it streams for ``streaming_s`` and nothing came."""

    def __init__(self, clock: Clock, streaming_s: float = 10.0) -> None:
        self._clock = clock
        self._streaming_s = streaming_s
        self._since_ns: int | None = None

    def is_over(self, engine: Expected) -> bool:
        if engine.given_up:
            return True
        if engine.state is not EngineState.STREAMING:
            self._since_ns = None
            return False
        now = self._clock.now_ns()
        self._since_ns = self._since_ns or now
        return now - self._since_ns > self._streaming_s * 1e9
