"""What the output shows when frames stay away: decided here, painted elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sdbridge.parameters.parameter import Value


class OutputState(StrEnum):
    """What the output shows now, whatever the engine does."""

    LIVE = "live"
    HOLDING = "holding"
    FADING = "fading"
    FALLBACK = "fallback"
    FROZEN = "frozen"
    BLACK = "black"


@dataclass(frozen=True)
class HoldSettings:
    """The operator's wishes, from the parameters ``hold.*`` and ``output.*``."""

    action: str = "hold"
    after_s: float = 2.0
    fade_s: float = 1.0
    recover_frames: int = 5
    freeze: bool = False
    black: bool = False

    @staticmethod
    def of(values: Mapping[str, Value]) -> HoldSettings:
        return HoldSettings(
            action=str(values["hold.action"]),
            after_s=float(values["hold.after"]),
            fade_s=float(values["hold.fade"]),
            recover_frames=int(values["hold.recover"]),
            freeze=bool(values["output.freeze"]),
            black=bool(values["output.black"]),
        )


@dataclass(frozen=True)
class Shown:
    """The picture to make: ``fallback`` is the share, 0 to 1, of what ``hold.action`` names."""

    state: OutputState
    fallback: float = 0.0


class HoldPolicy:
    """Decides from frame arrivals, the clock and the settings. Holds no pixels and never waits.

    Silence longer than ``after_s`` turns the target to the fallback, ``recover_frames`` good frames
    in a row (none further than ``after_s`` from the next) turn it back; the share moves towards its
    target over ``fade_s``, so a change of mind half way turns round where it stands. Black wins over
    freeze, freeze over everything else.
    """

    def __init__(self, now_ns: int) -> None:
        self._last_ns = now_ns
        self._decided_ns = now_ns
        self._any = False
        self._interval_s = 1 / 30
        self._share = 0.0
        self._away = False  # whether the target is the fallback
        self._good = 0

    def frame_came(self, now_ns: int, settings: HoldSettings) -> None:
        """A new frame left the engine."""
        gap_s = (now_ns - self._last_ns) / 1e9
        if self._any and gap_s <= settings.after_s:
            self._interval_s += 0.2 * (gap_s - self._interval_s)
        self._good = self._good + 1 if gap_s <= settings.after_s else 1
        self._last_ns = now_ns
        self._any = True

    def decide(self, now_ns: int, settings: HoldSettings) -> Shown:
        """What to show at this moment; call it once per output frame."""
        silent_s = (now_ns - self._last_ns) / 1e9
        if settings.action == "hold":
            self._away = False
        elif silent_s > settings.after_s:
            self._away, self._good = True, 0
        elif self._away and self._good >= settings.recover_frames:
            self._away = False
        self._move(now_ns, settings.fade_s)
        if settings.black:
            return Shown(OutputState.BLACK)
        if settings.freeze:
            return Shown(OutputState.FROZEN)
        if self._share >= 1.0:
            return Shown(OutputState.FALLBACK, 1.0)
        if self._share > 0.0:
            return Shown(OutputState.FADING, self._share)
        late_s = max(0.5, 3 * self._interval_s)
        live = self._any and silent_s <= late_s
        return Shown(OutputState.LIVE if live else OutputState.HOLDING)

    def _move(self, now_ns: int, fade_s: float) -> None:
        passed_s = (now_ns - self._decided_ns) / 1e9
        self._decided_ns = now_ns
        step = passed_s / fade_s if fade_s > 0 else 1.0
        self._share = min(1.0, self._share + step) if self._away else max(0.0, self._share - step)
