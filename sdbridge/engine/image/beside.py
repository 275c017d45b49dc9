"""One place that something is loaded into beside the frame loop: the newest wish wins, and arrives whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sdbridge.engine.image.seams import ExtensionContext
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Arrived(Generic[T]):
    """What a finished load brought; ``thing`` is None where loading failed (and was reported)."""

    thing: T | None


class Beside(Generic[T]):
    """Loads one thing at a time in the engine's loading thread; ``poll`` hands it over at a frame edge.

    A wish that is replaced before it is done is forgotten: its result is dropped, never swapped in.
    """

    def __init__(self, context: ExtensionContext, what: str) -> None:
        self._context = context
        self._what = what
        self._running: Future[Any] | None = None
        self.loads = 0  # how often something was read, for the test that a fader reads nothing

    @property
    def busy(self) -> bool:
        return self._running is not None

    def start(self, job: Callable[[], T]) -> None:
        """Wish for what ``job`` makes. It runs in the loading thread and may raise SdbridgeError."""
        self.cancel()
        self.loads += 1
        self._running = self._context.beside(job)

    def cancel(self) -> None:
        """No longer wish for anything."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def poll(self) -> Arrived[T] | None:
        """None while nothing is finished; never waits. Failures are reported here, once."""
        running = self._running
        if running is None or not running.done():
            return None
        self._running = None
        if running.cancelled():
            return None
        error = running.exception()
        if error is None:
            return Arrived(running.result())
        if isinstance(error, SdbridgeError):
            what = f"{self._what}: {error.what}"
            self._context.report(SdbridgeError(error.code, what, error.next_step, error.output))
        else:
            log.error("%s could not be loaded", self._what, exc_info=error)
            fault = SdbridgeError(
                "SDB-CONDITION-FAULT", f"{self._what} failed with {type(error).__name__}: {error}"
            )
            self._context.report(fault)
        return Arrived(None)
