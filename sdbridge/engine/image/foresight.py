"""Which values the next frame runs with: all that were asked for, in the old shape until the new is ready.

A value that changes how many rows, pixels or frames the model is given needs graphs that are not there yet.
They are made beside the stream; until then that value waits, and everything else said with it applies at
once. Which values these are is not written down anywhere: it is seen from the shape they would lead to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

from sdbridge.clock import Clock
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.settings import StreamSettings

log = logging.getLogger(__name__)

#: A shape that is not ready by then is taken up all the same, after its last change.
LIMIT_S = 20.0

#: Parameter values by name, and what else decides about the settings.
Wish = Mapping[str, object]


@dataclass(frozen=True)
class CallShape:
    """All of the settings that the shapes of the model's calls depend on. ``bank_frames`` 0: no bank."""

    frames: int
    width: int
    height: int
    rows: int
    extra_rows: int
    bank_frames: int

    @classmethod
    def of(cls, settings: StreamSettings) -> CallShape:
        steps, frames, bank = settings.plan.count, settings.frames, settings.bank
        return cls(
            frames,
            settings.width,
            settings.height,
            steps * frames,
            settings.guidance.extra_rows(steps, frames),
            bank.frames if bank.enabled else 0,
        )


class Patience:
    """How long something new has been waited for; anything newer starts over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._awaited: object = None
        self._until_ns = 0

    @property
    def waiting(self) -> bool:
        return self._awaited is not None

    def ends(self, awaited: object) -> bool:
        """Whether ``awaited`` has been waited for long enough."""
        now = self._clock.now_ns()
        if awaited != self._awaited:
            self._awaited, self._until_ns = awaited, now + int(LIMIT_S * 1e9)
        if now < self._until_ns:
            return False
        log.warning("a change is taken up before its graphs are there: %.0f s have passed", LIMIT_S)
        return True

    def rest(self) -> None:
        """Nothing is waited for."""
        self._awaited = None


class TextGate:
    """Lets a text of another length than the shown one into the frames only when its shape is ready."""

    def __init__(self, clock: Clock) -> None:
        self._patience = Patience(clock)
        self.shown: Conditioning | None = None

    @property
    def waiting(self) -> bool:
        return self._patience.waiting

    def choose(self, mixed: Conditioning, ready: Callable[[], bool]) -> Conditioning:
        """The next frame's conditioning: ``mixed``, or what was shown until the model can take it."""
        shape = mixed.positive.tokens.shape
        shown = self.shown
        if shown is None or shown.positive.tokens.shape == shape or ready() or self._patience.ends(shape):
            self._patience.rest()
            self.shown = mixed
            return mixed
        return shown


class Foresight:
    """``choose`` decides at a frame edge. Holds no tensors and makes nothing."""

    def __init__(self, clock: Clock, settings_of: Callable[[Wish], StreamSettings]) -> None:
        self._settings_of = settings_of
        self._patience = Patience(clock)
        self._wish: Wish = {}  # that the frames run with
        self._running: StreamSettings | None = None
        self._revision = 0  # up to which all values are in the frames
        self._shape: CallShape | None = None  # that the frames run in
        self._held: frozenset[str] = frozenset()

    @property
    def waiting(self) -> bool:
        """Whether a value waits for its shape."""
        return self._patience.waiting

    @property
    def shows_up_to(self) -> int | None:
        """The revision up to which all values are in the frames; None: all that are known are."""
        return self._revision if self.waiting else None

    def choose(
        self,
        wish: Wish,
        revision: int,
        ready: Callable[[StreamSettings], bool],
        others: Hashable = None,
    ) -> StreamSettings:
        """The next frame's settings. ``ready`` is asked at every frame edge, for those of another shape.

        ``wish`` is kept, and must not change afterwards.
        ``others`` is what else waits for its graphs, if anything does: all is taken up together.
        """
        wanted = self._settings_of(wish)
        shape = CallShape.of(wanted)
        same = self._shape is None or (shape == self._shape and others is None)
        if same or ready(wanted) or self._patience.ends((shape, others)):
            self._patience.rest()
            self._wish, self._running = wish, wanted
            self._revision, self._shape = revision, shape
            self._held = frozenset()
            return wanted
        return self._in_old_shape(wish, wanted)

    def _in_old_shape(self, wish: Wish, wanted: StreamSettings) -> StreamSettings:
        """The settings of ``wish`` without the values that lead to another shape."""
        old, running = self._wish, self._running
        assert running is not None
        # Mode and scale are one thing: the new scale in the old mode would be a picture nobody asked for.
        guided = CallShape.of(replace(running, guidance=wanted.guidance)) == self._shape

        def fits(settings: StreamSettings) -> bool:
            return CallShape.of(settings) == self._shape and (guided or settings.guidance == running.guidance)

        held = {name: old[name] for name in self._held}
        settings = self._settings_of({**wish, **held})
        if not fits(settings):
            taken, held = dict(old), {}
            for name, value in wish.items():
                if value == old[name]:
                    continue
                taken[name] = value
                if not fits(self._settings_of(taken)):
                    taken[name] = held[name] = old[name]
            settings = self._settings_of(taken)
            self._held = frozenset(held)
        self._wish, self._running = {**wish, **held}, settings
        return settings
