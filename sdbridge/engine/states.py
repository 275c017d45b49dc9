"""Where an engine stands now, moved only along the one transition table."""

from __future__ import annotations

import threading

from sdbridge.engine.interface import TRANSITIONS, EngineState


class StateTrack:
    """One engine's state. A step that the table does not know is a bug and raises ValueError."""

    def __init__(self) -> None:
        self._state = EngineState.STOPPED
        self._lock = threading.Lock()

    @property
    def now(self) -> EngineState:
        return self._state

    def move(self, to: EngineState) -> bool:
        """Go to ``to``; False if we are there already."""
        with self._lock:
            if to is self._state:
                return False
            if to not in TRANSITIONS[self._state]:
                raise ValueError(f"an engine cannot go from {self._state} to {to}")
            self._state = to
            return True
