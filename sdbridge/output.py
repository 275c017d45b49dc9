"""The output loop: takes what the engine made, lets the hold policy decide, feeds the senders."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sdbridge.clock import Clock
from sdbridge.compose import Compositor
from sdbridge.engine.pipe import Wake
from sdbridge.engine.running import RunningEngine
from sdbridge.frame import Frame, Role
from sdbridge.hold import HoldPolicy, HoldSettings, OutputState, Shown
from sdbridge.meters import LatencyMeter, RateMeter
from sdbridge.pacing import OutputPace
from sdbridge.parameters.store import ParameterStore
from sdbridge.preview import PreviewRelay
from sdbridge.slot import LatestSlot
from sdbridge.textures.threads import Outgoing

log = logging.getLogger(__name__)

#: Gives the picture to fall back to, fitted to width and height, or None for black.
Fallback = Callable[[str, int, int], "np.ndarray | None"]
#: Gives the picture to show while nothing was generated yet: width, height, number of the frame.
Waiting = Callable[[int, int, int], "np.ndarray | None"]


class OutputLoop:
    """One thread that never waits for anything but the engine's wake-up and its own beat."""

    def __init__(self, engine: RunningEngine, store: ParameterStore, clock: Clock, ready: Wake) -> None:
        self._engine = engine
        self._store = store
        self._clock = clock
        self._ready = ready
        now = clock.now_ns()
        self._policy = HoldPolicy(now)
        self._pace = OutputPace(now)
        self._compositor = Compositor()
        self._newest: Frame | None = None
        self._control: Frame | None = None
        self._control_slot = 0  # whose it is
        self._control_after = self._revision = -1  # what was made by this revision is another slot's
        self._unsent = False
        self._again = False
        self._cut = False
        self._previews: dict[Role, PreviewRelay] = {
            "generated": PreviewRelay(clock),
            "control": PreviewRelay(clock),
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._slots: tuple[tuple[Role, LatestSlot[Outgoing]], ...] = ()
        self.fallback: Fallback = lambda action, width, height: None
        self.waiting: Waiting = lambda width, height, number: None
        self.newest_input: Callable[[], Frame | None] = lambda: None
        self.state = OutputState.HOLDING
        self.frames_out = 0
        self.frames_made = 0
        self.held = 0
        self.rate = RateMeter()
        self.rate_new = RateMeter()
        self.latency = LatencyMeter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._ready.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def cut(self) -> None:
        """Black from this moment on, until ``output.black`` was set and released again."""
        self._cut = True
        self._newest = None
        self._ready.set()

    def set_senders(self, slots: tuple[tuple[Role, LatestSlot[Outgoing]], ...]) -> None:
        """Who gets the pictures from now on."""
        self._slots = slots

    def preview(self, role: Role) -> Frame | None:
        relay = self._previews.get(role)
        return relay.look() if relay is not None else None

    def _run(self) -> None:
        while not self._stopping.is_set():
            values, revision = self._store.snapshot()
            settings, fps = HoldSettings.of(values), float(values["output.fps"])
            self._cut = self._cut and not settings.black
            wait_s = (self._pace.due_ns(fps) - self._clock.now_ns()) / 1e9
            self._ready.wait(min(max(wait_s, 0.0), 0.1))
            try:
                self._choose_control(int(values["control_output"]), revision)
                self._turn(settings, fps, values["mode"] == "txt2img")
            except Exception:  # edge: the output loop is the show itself; a fault in it costs one frame
                log.exception("an output frame failed")
                self._clock.sleep(0.01)

    def _turn(self, settings: HoldSettings, fps: float, free_running: bool = False) -> None:
        made = self._engine.take("generated")
        now = self._clock.now_ns()
        if made is not None:
            before, self._newest, self._unsent = self._newest, made, True
            self.frames_made += 1
            # The same input painted again, since a slider moved: no sign that the source is back.
            self._again = before is not None and before.frame_id == made.frame_id
            if not self._again or free_running:
                self._policy.frame_came(now, settings)
        control = self._engine.take("control")
        if control is not None and control.revision > self._control_after:
            self._control = control
        if self._cut:
            settings = replace(settings, black=True)
        urgent = self._cut and self.state is not OutputState.BLACK
        if not urgent and not self._pace.is_due(now, self._unsent, fps):
            return
        new, self._unsent = self._unsent, False
        self._send(self._paint(self._policy.decide(now, settings), settings.action), new)
        self._pace.sent(now, new, fps)

    def _choose_control(self, slot: int, revision: int) -> None:
        """Another slot's control image is to be sent, or none: that of the former one goes no further."""
        if slot != self._control_slot:
            self._control_slot, self._control_after = slot, self._revision
            if self._control is None or self._control.revision <= self._control_after:
                self._control = None
                self._previews["control"].forget()
        self._revision = revision

    def _paint(self, shown: Shown, action: str) -> np.ndarray:
        self.state = shown.state
        base = self._newest.pixels if self._newest is not None else None
        height, width = base.shape[:2] if base is not None else reversed(self._engine.size)
        if base is None and self.frames_made == 0:  # a receiver sees at once that we are there
            base = self.waiting(width, height, self.frames_out)
        other = self.fallback(action, width, height) if shown.fallback > 0 else None
        loan = self._newest.loan if self._newest is not None else None
        return self._compositor.paint(shown, base, other, width, height, loan)

    def _send(self, pixels: np.ndarray, new: bool) -> None:
        source = self._newest
        lent = source is not None and pixels is source.pixels
        now = self._clock.now_ns()
        self.frames_out += 1
        frame = Frame(
            pixels,
            self.frames_out,
            source.received_at_ns if source is not None else now,
            source.revision if source is not None else 0,
            source.loan if lent and source is not None else None,
        )
        about: Mapping[str, str] = {
            "state": str(self.state),
            "source_frame": str(source.frame_id) if source is not None else "",
            "new": "1" if new else "0",
        }
        outgoing = Outgoing(frame, about, new, self.newest_input(), timed=new and not self._again)
        control = Outgoing(self._control, about, new) if self._control is not None else None
        for role, slot in self._slots:
            if role == "generated":
                slot.put(outgoing)
            elif control is not None:
                slot.put(control)
        self.held += not new
        self.rate.count(now)
        if new:
            self.rate_new.count(now)
        self._previews["generated"].show(frame)
        if self._control is not None:
            self._previews["control"].show(self._control)
