"""Who sends under an output's name: the bridge's own sender, or one in the engine's process, on the GPU.

While all is well the engine shows its pictures itself, since that is where the tensors are. The
bridge's sender is there before, after and whenever something else than the engine's newest picture
is to be seen: hold, fade, freeze, black, or no engine at all. One name has one sender at a time, so
a change of hands is: let go, then take.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol

from sdbridge.clock import Clock
from sdbridge.config import OutputConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures.stub import Sender

log = logging.getLogger(__name__)

#: The output must have been live for so long before the engine may have the name.
SETTLE_S = 1.0
#: An engine that was told to take the name shows its first picture within this.
TAKE_S = 1.0
#: An engine that was told to give the name back does so within this, or is replaced if need be.
RELEASE_S = 2.0
#: After the engine lost the name it gets it again after this, twice as long each time, at most the last.
AGAIN_S, LONGEST_AGAIN_S = 2.0, 60.0
#: States of the output in which something else than the last picture must be shown, whatever it takes.
URGENT = frozenset({"black", "frozen", "fading", "fallback"})


#: Backends whose senders the engine has a counterpart to (``engine/gpu_output.py: SHOWS``).
BACKENDS = frozenset({"spout"})


def may_be_handed_over(backend: str, config: OutputConfig) -> bool:
    """Whether the engine's picture is this output's, as it is: nothing to fit, turn or mix in."""
    plain = OutputConfig(backend=config.backend, name=config.name, options=config.options)
    return backend in BACKENDS and config == plain and config.options.get("gpu", True) is True


class Holder(StrEnum):
    """Who has the name."""

    BRIDGE = "bridge"
    TAKING = "taking"  # the engine was told to take it
    ENGINE = "engine"
    RETURNING = "returning"  # the engine was told to give it back


class Engine(Protocol):
    """What takes orders; two are the same engine if they are the same object."""

    def order_gpu_output(self, order: str, name: str, backend: str, options: Mapping[str, Any]) -> None: ...


class Seen(Protocol):
    """How the engine's sender stands: ``none ready showing unavailable``; no engine, nothing to order."""

    @property
    def engine(self) -> Any: ...
    @property
    def state(self) -> str: ...
    @property
    def why(self) -> str: ...


class GpuSide(Protocol):
    """The engine, as far as it may send by itself."""

    def look_at_gpu_output(self, name: str) -> Seen: ...
    def end_deaf(self, engine: Any) -> None: ...


class HandoverSender(Sender):
    """The bridge's sender of one name, which steps back while the engine's sends under it."""

    def __init__(self, backend: str, inner: Sender, side: GpuSide, clock: Clock) -> None:
        super().__init__(inner.name, inner.options)
        self._backend = backend
        self._inner = inner
        self._side = side
        self._clock = clock
        self._is_open = False  # whether the bridge's own sender has the name
        self._engine: Any = None  # the one that has the name, may have it, or was told to give it back
        self._prepared: Any = None  # the one that was told to get ready
        self._since_ns = 0  # when the present holder became that
        self._live_since_ns: int | None = None
        self._not_before_ns = 0
        self._again_s = AGAIN_S
        self._told_deaf = False
        self.holder = Holder.BRIDGE

    def open(self) -> None:
        self._inner.open()
        self._is_open = True
        self._become(Holder.BRIDGE)
        from sdbridge.textures import spout  # only where there is such an output

        spout.claim_name(self.name)  # ours, whichever of our processes sends: never to be received

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        state = about.get("state", "live")
        self._decide(self._side.look_at_gpu_output(self.name), state)
        if self._is_open:
            self._inner.send(frame, about)

    def close(self) -> None:
        self._order("drop")
        self._engine = self._prepared = None
        self._inner.close()
        self._is_open = False
        self._become(Holder.BRIDGE)
        from sdbridge.textures import spout

        spout.disclaim_name(self.name)

    @property
    def mounts(self) -> Mapping[str, object]:
        return self._inner.mounts

    @property
    def receivers(self) -> int:
        return self._inner.receivers

    def describe(self) -> str:
        if self.holder is Holder.ENGINE:
            return f"{self._backend} {self.name}, from the engine's GPU"
        seen = self._side.look_at_gpu_output(self.name)
        why = f"; not from the engine's GPU: {seen.why}" if seen.why else ""
        return self._inner.describe() + why

    # --- deciding ---

    def _decide(self, seen: Seen, state: str) -> None:
        now = self._clock.now_ns()
        if state != "live":
            self._live_since_ns = None
        elif self._live_since_ns is None:
            self._live_since_ns = now
        if self.holder is Holder.BRIDGE:
            self._consider(seen, now)
        elif self.holder in (Holder.TAKING, Holder.ENGINE):
            self._watch(seen, state, now)
        if self.holder is Holder.RETURNING:
            self._fetch_back(seen, state, now)

    def _consider(self, seen: Seen, now: int) -> None:
        """Leave the name to the engine, once that is worth it."""
        if seen.engine is None:
            return
        if seen.engine is not self._engine:
            self._engine, self._again_s, self._not_before_ns = seen.engine, AGAIN_S, 0
        if seen.state == "none":
            if self._prepared is not seen.engine:
                self._prepared = seen.engine
                self._order("prepare")
            return
        settled = self._live_since_ns is not None and now - self._live_since_ns >= SETTLE_S * 1e9
        if seen.state == "ready" and settled and now >= self._not_before_ns:
            self._inner.close()
            self._is_open = False
            self._order("take")
            self._become(Holder.TAKING)

    def _watch(self, seen: Seen, state: str, now: int) -> None:
        """Take the name back as soon as the engine's sender does not do what it is there for."""
        showing = seen.engine is self._engine and seen.state == "showing"
        if self.holder is Holder.TAKING:
            late = now - self._since_ns > TAKE_S * 1e9
            lost = seen.engine is not self._engine or seen.state == "unavailable" or late
            if showing:
                log.info("%s is sent by the engine now", self.name)
                self._become(Holder.ENGINE)
        else:
            lost = not showing
        if not lost and state == "live":
            return
        if lost or self.holder is Holder.TAKING:
            self._again_s = min(self._again_s * 2, LONGEST_AGAIN_S)
        self._not_before_ns = now + int(self._again_s * 1e9)
        self._order("release")
        self._become(Holder.RETURNING)

    def _fetch_back(self, seen: Seen, state: str, now: int) -> None:
        """Open the bridge's sender again, as soon as the name is free."""
        try:
            self._inner.open()
        except SdbridgeError as error:
            self._inner.close()
            same = seen.engine is self._engine
            late = now - self._since_ns > RELEASE_S * 1e9
            if same and late and state in URGENT and not self._told_deaf:
                self._told_deaf = True
                self._side.end_deaf(self._engine)
            if error.code != "SDB-TEXTURE-NAME":
                raise
            return
        self._is_open = True
        log.info("%s is sent by the bridge now", self.name)
        self._become(Holder.BRIDGE)

    def _order(self, order: str) -> None:
        if self._engine is not None:
            self._engine.order_gpu_output(order, self.name, self._backend, self.options)

    def _become(self, holder: Holder) -> None:
        self.holder = holder
        self._since_ns = self._clock.now_ns()
        self._told_deaf = False
