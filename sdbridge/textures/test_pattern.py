"""A source that is always there: the moving test card, at a steady rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.textures import stub
from sdbridge.textures.options import option, read_options
from sdbridge.textures.pace import Pace
from sdbridge.textures.test_card import TestCard


@dataclass(frozen=True)
class TestPatternOptions:
    """Size and rate of the card."""

    width: int = option(512, low=1, high=8192)
    height: int = option(512, low=1, high=8192)
    fps: float = option(30.0, low=0.1, high=240)


class Receiver(stub.Receiver):
    """Draws the card when its time has come. Frames nobody asked for in time are left out."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._card: TestCard | None = None
        self._pace = Pace(30.0, self.clock)

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "it is drawn here"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return (stub.Source("test_pattern", "a moving test card with a frame counter"),)

    def open(self) -> None:
        chosen = read_options(TestPatternOptions, self.options, "test_pattern")
        self._card = TestCard(chosen.width, chosen.height)
        self._pace = Pace(chosen.fps, self.clock)

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if self._card is None:
            return None
        number = self._pace.wait(timeout_s)
        return None if number is None else self._card.draw(number)

    @property
    def connected(self) -> bool:
        return self._card is not None

    def describe(self) -> str:
        if self._card is None:
            return "test pattern, closed"
        return f"test pattern {self._card.width}x{self._card.height} at {self._pace.fps:g} fps"

    def close(self) -> None:
        self._card = None
