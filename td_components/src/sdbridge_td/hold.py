"""What the component's output shows while the daemon, its texture or its network is away.

The daemon has a policy of its own for a stalled engine. This one is for the case that the daemon itself
is gone: same parameters, same order, but nothing but TouchDesigner is needed for it.
"""

from __future__ import annotations

from dataclasses import dataclass

LIVE, HOLDING, FADING, FALLBACK, RETURNING, FROZEN, BLACK = (
    "live",
    "holding",
    "fading",
    "fallback",
    "returning",
    "frozen",
    "black",
)
#: Inputs of the fallback switch, by the value of hold.action.
FALLBACK_INPUT = {"black": 0, "image": 1, "input": 2}
#: A frame that took longer must not make a fade jump.
_LONGEST_FRAME_S = 0.1


@dataclass(frozen=True)
class HoldSettings:
    """The parameters of the Safety page."""

    action: str = "hold"
    after_s: float = 2.0
    fade_s: float = 1.0
    recover_frames: int = 5
    freeze: bool = False
    black: bool = False


@dataclass(frozen=True)
class Shown:
    """What the network is to do in this frame.

    ``capture`` lets new frames into the hold, ``cross`` 0 is the held or live picture, 1 the fallback.
    """

    state: str
    capture: bool
    cross: float
    fallback: int


class Hold:
    """Decides once a frame. Time is passed in, in seconds that never go back."""

    def __init__(self) -> None:
        self._away_since: float | None = 0.0  # never seen a picture yet
        self._started = False
        self._good_frames = 0
        self._cross = 0.0
        self._last = 0.0

    def step(self, now: float, good: bool, settings: HoldSettings) -> Shown:
        """``good``: the daemon is heard and its texture arrives."""
        if not self._started:
            self._started, self._away_since, self._last = True, now, now
        passed, self._last = min(max(now - self._last, 0.0), _LONGEST_FRAME_S), now
        capture = self._follow(now, good, settings)
        wanted = self._wanted(now, settings)
        step = passed / settings.fade_s if settings.fade_s > 0 else 1.0
        if self._cross < wanted:
            self._cross = min(self._cross + step, wanted)
        else:
            self._cross = max(self._cross - step, wanted)
        fallback = FALLBACK_INPUT.get(settings.action, 0)
        if settings.black:  # the operator's hand comes before every policy, and at once
            return Shown(BLACK, capture and not settings.freeze, 1.0, FALLBACK_INPUT["black"])
        if settings.freeze:
            return Shown(FROZEN, False, self._cross, fallback)
        return Shown(self._state(), capture, self._cross, fallback)

    def _follow(self, now: float, good: bool, settings: HoldSettings) -> bool:
        """Count good frames and bad time; whether new frames are let in."""
        if not good:
            self._good_frames = 0
            if self._away_since is None:
                self._away_since = now
            return False
        if self._away_since is None:
            return True
        self._good_frames += 1
        if self._good_frames >= max(settings.recover_frames, 1):
            self._away_since = None
            return True
        return False

    def _wanted(self, now: float, settings: HoldSettings) -> float:
        gone = self._away_since is not None and now - self._away_since >= settings.after_s
        return 1.0 if gone and settings.action in FALLBACK_INPUT else 0.0

    def _state(self) -> str:
        if self._away_since is None:
            return RETURNING if self._cross > 0.0 else LIVE
        if self._cross <= 0.0:
            return HOLDING
        return FALLBACK if self._cross >= 1.0 else FADING
