"""When an engine is past help, and what to start in its place: decisions only, over a given time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sdbridge.engine.interface import EngineState
from sdbridge.errors import SdbridgeError

#: An engine that loads or warms up may be busy for long (a compile); it is given up after this.
LOADING_S = 900.0
#: So long must frames flow before earlier falls are forgotten.
GOOD_S = 60.0
#: Values that streamed for so long without a change count as good.
SETTLED_S = 10.0

#: Faults that the same values will meet again: there is no use in trying five times.
HOPELESS = ("SDB-MODEL-", "SDB-PULL-", "SDB-ENGINE-KIND")


class Rung(IntEnum):
    """How far down the ladder the next engine starts."""

    AS_IS = 0  # with the values that are set
    LAST_GOOD = 1  # with the values that last streamed well
    SAFE_MODE = 2  # with the defaults
    GIVEN_UP = 3  # not at all, until someone starts it


@dataclass(frozen=True)
class Seen:
    """What can be seen of an engine from outside at one moment. ``engine`` tells one from its successor."""

    engine: int
    state: EngineState
    offered: int = 0
    made: int = 0
    pings: int = 0
    pongs: int = 0
    free_running: bool = False


class Supervisor:
    """Watches for engines that died, that answer no ping, or that answer but make no frames."""

    def __init__(self, stall_s: float, restarts_a_minute: int) -> None:
        self._stall_ns = int(stall_s * 1e9)
        self._budget = restarts_a_minute
        self._engine = -1
        self._state: EngineState | None = None
        self._state_ns = 0
        self._made = 0
        self._offered = 0
        self._progress_ns = 0
        self._pongs = 0
        self._pong_ns = 0
        self._falls: list[int] = []
        self._well_since_ns: int | None = None  # frames flow
        self._settled_since_ns: int | None = None  # and no value changed
        self.rung = Rung.AS_IS
        self.restarts = 0

    def look(self, now_ns: int, seen: Seen) -> SdbridgeError | None:
        """Call this several times a second; gives the reason when the engine must be replaced."""
        if seen.engine != self._engine or seen.state is not self._state:
            self._engine, self._state, self._state_ns = seen.engine, seen.state, now_ns
            self._made, self._offered, self._progress_ns = seen.made, seen.offered, now_ns
            self._pongs, self._pong_ns = seen.pongs, now_ns
            self._well_since_ns = self._settled_since_ns = None
        self._follow(now_ns, seen)
        if seen.state is EngineState.STREAMING:
            return self._look_at_stream(now_ns)
        busy_s = (now_ns - self._state_ns) / 1e9
        if seen.state in (EngineState.LOADING, EngineState.WARMING_UP) and busy_s > LOADING_S:
            return SdbridgeError("SDB-ENGINE-STALLED", f"the engine is {seen.state} for {busy_s:.0f} s")
        return None

    def _follow(self, now_ns: int, seen: Seen) -> None:
        idle = seen.offered == self._offered and not seen.free_running
        if seen.made != self._made:
            self._made, self._offered, self._progress_ns = seen.made, seen.offered, now_ns
            self._well_since_ns = self._well_since_ns or now_ns
            self._settled_since_ns = self._settled_since_ns or now_ns
        elif idle:
            self._progress_ns = now_ns  # nothing was asked of it
        if seen.pongs != self._pongs or seen.pongs == seen.pings:
            self._pongs, self._pong_ns = seen.pongs, now_ns

    def _look_at_stream(self, now_ns: int) -> SdbridgeError | None:
        without_frame, without_pong = now_ns - self._progress_ns, now_ns - self._pong_ns
        if without_frame > self._stall_ns:
            self._well_since_ns = self._settled_since_ns = None
            return SdbridgeError(
                "SDB-ENGINE-STALLED",
                f"no frame came out for {without_frame / 1e9:.1f} s although frames went in",
            )
        if without_pong > self._stall_ns:
            self._well_since_ns = self._settled_since_ns = None
            return SdbridgeError("SDB-ENGINE-SILENT", f"no answer to a ping for {without_pong / 1e9:.1f} s")
        if self._well_since_ns is not None and now_ns - self._well_since_ns > GOOD_S * 1e9:
            self.rung, self._falls = Rung.AS_IS, []
        return None

    def is_settled(self, now_ns: int) -> bool:
        """Whether frames have flowed long enough for the present values to count as good."""
        return self._settled_since_ns is not None and now_ns - self._settled_since_ns > SETTLED_S * 1e9

    def unsettle(self) -> None:
        """Values changed: whether they are good is open again."""
        self._settled_since_ns = None

    def fell(self, now_ns: int, code: str, have_last_good: bool) -> Rung:
        """An engine died or was ended; from which rung to start the next."""
        self._falls = [at for at in self._falls if now_ns - at < 60e9] + [now_ns]
        spent = len(self._falls) > self._budget
        hopeless = code.startswith(HOPELESS)
        if self.rung > Rung.AS_IS or spent or hopeless:
            self.rung = Rung(min(self.rung + 1, Rung.GIVEN_UP))
            if self.rung is Rung.LAST_GOOD and not have_last_good:
                self.rung = Rung.SAFE_MODE
            self._falls = []
        if self.rung is not Rung.GIVEN_UP:
            self.restarts += 1
        return self.rung

    def forgive(self) -> None:
        """The operator starts afresh."""
        self.rung, self._falls = Rung.AS_IS, []
