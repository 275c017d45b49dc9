"""One place that something is loaded into beside the frame loop: the newest wish wins, and arrives whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sdbridge.engine.image.seams import ExtensionContext
from sdbridge.engine.image.share import Share, counted_in
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What takes longer is shown, and so often. Most loads are over before anybody could read it.
SHOWN_AFTER_S, SHOWN_EVERY_S = 0.5, 0.25
#: How often it is looked whether what failed could do better now.
LOOK_S = 1.0


@dataclass(frozen=True)
class Arrived(Generic[T]):
    """What a finished load brought; ``thing`` is None where loading failed (and was reported)."""

    thing: T | None


@dataclass
class _Wish(Generic[T]):
    """``read`` is what lay there when it was read last, ``seen`` at the last look; None: nothing."""

    job: Callable[[], T]
    look: Callable[[], Hashable] | None
    read: Hashable = None
    seen: Hashable = None

    def rests_anew(self) -> bool:
        """Whether something else lies there than was read, and nobody writes on it. Asks the disk."""
        assert self.look is not None
        before, self.seen = self.seen, self.look()
        return self.seen is not None and self.seen == before and self.seen != self.read


class Beside(Generic[T]):
    """Loads one thing at a time in the engine's loading thread; ``poll`` hands it over at a frame edge.

    A wish that is replaced before it is done is forgotten: its result is dropped, never swapped in.
    One that failed is tried again by itself once other files lie there.
    """

    def __init__(
        self,
        context: ExtensionContext,
        what: str,
        *,
        meanwhile: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``meanwhile`` is what the picture shows after a failure, where that is not what the error says."""
        self._context = context
        self.what = what
        self._meanwhile = meanwhile
        self._now = now
        self._wish: _Wish[T] | None = None
        self._running: Future[Any] | None = None
        self._looking: Future[bool] | None = None
        self._look_at = 0.0
        self._share = Share()
        self._show_at = 0.0
        self._shown = False
        self.loads = 0  # how often something was read, for the test that a fader reads nothing

    @property
    def busy(self) -> bool:
        return self._running is not None

    @property
    def waits(self) -> bool:
        """Whether something may yet arrive: it is being read, or failed and is looked after."""
        return self._running is not None or self._wish is not None

    def start(self, job: Callable[[], T], look: Callable[[], Hashable] | None = None) -> None:
        """Wish for what ``job`` makes. It runs in the loading thread and may raise SdbridgeError.

        ``look`` says what lies where the job reads, None for nothing; without it nothing is tried again.
        """
        self.cancel()
        self._wish = _Wish(job, look)
        self._run(self._wish)

    def _run(self, wish: _Wish[T]) -> None:
        share = self._share = Share()
        self._show_at = self._now() + SHOWN_AFTER_S

        def work() -> T:
            if wish.look is not None:
                wish.read = wish.seen = wish.look()
            with counted_in(share):
                return wish.job()

        self.loads += 1
        self._running = self._context.beside(work)

    def cancel(self) -> None:
        """No longer wish for anything."""
        for future in (self._running, self._looking):
            if future is not None:
                future.cancel()
        self._running = self._looking = self._wish = None
        self._show(None)

    def poll(self) -> Arrived[T] | None:
        """None while nothing is finished; never waits. Failures are reported here, once."""
        running = self._running
        if running is None:
            if self._wish is not None:
                self._look_after(self._wish)
            return None
        if not running.done():
            if self._now() >= self._show_at:
                self._show_at = self._now() + SHOWN_EVERY_S
                share = self._share
                self._show(Progress(self.what, min(share.done, share.total), share.total, "is loading"))
            return None
        self._running = None
        self._show(None)
        if running.cancelled():
            return None
        error = running.exception()
        if error is None:
            self._wish = None
            return Arrived(running.result())
        if self._wish is not None and self._wish.look is None:
            self._wish = None
        self._look_at = self._now() + LOOK_S
        self._report(error)
        return Arrived(None)

    def _look_after(self, wish: _Wish[T]) -> None:
        looking = self._looking
        if looking is None:
            if self._now() >= self._look_at:
                self._looking = self._context.beside(wish.rests_anew)
        elif looking.done():
            self._looking = None
            self._look_at = self._now() + LOOK_S
            if not looking.cancelled() and looking.exception() is None and looking.result():
                self._run(wish)

    def _show(self, progress: Progress | None) -> None:
        if progress is not None or self._shown:
            self._shown = progress is not None
            self._context.progress(self.what, progress)

    def _report(self, error: BaseException) -> None:
        if isinstance(error, SdbridgeError):
            what = f"{self.what}: {error.what}"
            output = self._meanwhile or error.output
            self._context.report(SdbridgeError(error.code, what, error.next_step, output))
        else:
            log.error("%s could not be loaded", self.what, exc_info=error)
            fault = SdbridgeError(
                "SDB-CONDITION-FAULT", f"{self.what} failed with {type(error).__name__}: {error}"
            )
            self._context.report(fault)
