"""The engine loop: takes frames, applies changes at the frame edge, ticks the engine, gives frames out."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import replace

from sdbridge.clock import Clock, SystemClock
from sdbridge.collector import spare_the_collector
from sdbridge.engine.gpu_output import GpuOutputs
from sdbridge.engine.inbox import Inbox
from sdbridge.engine.inlet import Inlet
from sdbridge.engine.interface import Engine, EngineState, EngineStats, WarmUpReport
from sdbridge.engine.outlet import Outlet
from sdbridge.engine.pipe import Wake
from sdbridge.engine.registry import make_engine
from sdbridge.engine.ticks import Ticks, shown_revision
from sdbridge.engine.told import EngineStart, engine_size, for_engine, merge_changes
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk
from sdbridge.parameters.parameter import Value

log = logging.getLogger(__name__)

#: Frames in a row that may fail before the engine is given up and restarted.
FAILURES_ALLOWED = 10
#: Without input for three frame times what is still inside the pipe is brought out. Never later than
#: ``IDLE_MOST_S``: a client that sends its next frame when the last one came out (a slide show) would
#: else wait three times as long for each as for the one before.
IDLE_S, IDLE_MOST_S = 0.1, 0.5
#: With a tick under way the loop looks so often whether it is finished; about its end, so often.
POLL_S, SHORT_S = 0.002, 0.0003
#: A frame waits so long for a change that was sent before it and is still in the pipe.
CHANGE_S = 1.0
#: Rate of pictures made from the prompt alone while ``output.fps`` is 0.
FREE_RUNNING_FPS = 60.0


class EngineLoop:
    """One engine and its slots. ``run`` returns when the bridge says stop, and raises what is fatal."""

    def __init__(
        self,
        start: EngineStart,
        inbox: Inbox,
        wake: Wake,
        ready: Wake,
        clock: Clock | None = None,
        imports_s: float = 0.0,
    ) -> None:
        self._start = start
        self._imports_s = imports_s
        self._inbox = inbox
        self._wake = wake
        self._clock = clock or SystemClock()
        self._values: dict[str, Value] = dict(start.values)
        self._kept: dict[str, bytes] = dict(start.keepsakes)  # that the bridge has
        self._revision = self._applied = start.revision
        self._inlet = Inlet()
        self._outlet = Outlet(self._clock, ready, lambda place, size: inbox.send("need_slot", place, size))
        self._gpu_outputs = GpuOutputs(lambda *said: inbox.send("gpu_output", *said))
        inbox.on_gpu_output = self._gpu_outputs.order
        self._engine: Engine | None = None
        self._ticks: Ticks | None = None
        self._failures = 0
        self._told_failure_ns = 0
        self._interval_s = 1 / 30  # between main frames, smoothed
        self._last_main_ns = 0
        self._inside = False  # whether the engine may hold frames that have not come out
        self._stats_due_ns = 0

    def run(self) -> None:
        self._tell(EngineState.LOADING)
        engine = self._engine = make_engine(self._start.config)
        report = getattr(engine, "report_progress", None)
        if callable(report):
            report(lambda progress: self._inbox.send("progress", progress))
        trouble = getattr(engine, "report_trouble", None)
        if callable(trouble):
            trouble(lambda error: self._inbox.send("error", error))
        remember = getattr(engine, "remember", None)
        if callable(remember):
            remember(self._start.keepsakes)
        engine.load(for_engine(self._values))
        if self._inbox.stopping.is_set():
            return
        self._tell(EngineState.WARMING_UP, spec=engine.spec)
        warm = engine.warm_up(*self._size())
        if self._inbox.own_process:
            spare_the_collector()
            if self._start.config.kind == "image" and warm.device == "cpu":
                _give_way()
        self._ticks = Ticks(engine, self._clock)
        if getattr(engine, "keeps_no_frames", False):
            self._inlet = Inlet(borrow=True)
        able, why = _pictures_on_gpu(engine, warm)
        if able:
            engine.gpu_output = self._gpu_outputs.offer  # type: ignore[attr-defined]  # an engine may have it
        self._gpu_outputs.enable(able, why)
        self._outlet.lent = bool(getattr(engine, "lends_pictures", False))
        self._inlet.attach(self._start.slots)
        self._outlet.attach(self._start.slots)
        self._inlet.want(engine.spec.first_in)
        self._tell(EngineState.STREAMING, spec=engine.spec, report=replace(warm, imports_s=self._imports_s))
        self._inbox.send("progress", None)
        self._applied = self._revision
        self._inbox.send("applied", self._applied)
        while not self._inbox.stopping.is_set():
            self._turn(engine, self._ticks)

    def close(self) -> None:
        self._gpu_outputs.close()  # first: it shows tensors of the engine
        leaving: list[Callable[[], None]] = [self._ticks.discard] if self._ticks is not None else []
        if self._engine is not None:
            leaving.append(self._engine.unload)
        for leave in leaving:
            try:
                leave()
            except Exception:  # noqa: BLE001 # edge: engine loop, leaving goes on whatever unload does
                log.error("unloading failed:\n%s", traceback.format_exc())
        self._inlet.close()
        self._outlet.close()

    # --- one turn ---

    def _turn(self, engine: Engine, ticks: Ticks) -> None:
        slots = self._inbox.slots()
        if slots is not None:
            self._inlet.attach(slots)
            self._outlet.attach(slots)
        for role in self._inbox.withdrawn():
            self._inlet.withdraw(role)
        now = self._clock.now_ns()
        if now >= self._stats_due_ns:
            self._stats_due_ns = now + 1_000_000_000
            self._tell_stats(engine, ticks)
        # An engine that wants several frames a tick is fed all the time, or some would be missed.
        gathers = engine.spec.chunk_in > 1 and self._values.get("mode") != "txt2img"
        if not gathers and self._wait_for_device(ticks, now):
            return
        main = self._inlet.take()
        if self._apply(engine, ticks, main.revision if main is not None else 0):
            main = None  # forgotten with the others
        if self._values.get("mode") == "txt2img":
            self._paint_freely(engine, ticks)
            return
        if main is None:
            if not ticks.pending:
                self._rest(engine, ticks)
            elif not self._collect(ticks, wait=not gathers):
                self._wake.wait(min(max((ticks.finish_ns - now) / 1e9, SHORT_S), POLL_S))
            return
        if self._last_main_ns:
            gap = min((now - self._last_main_ns) / 1e9, 1.0)
            self._interval_s += 0.1 * (gap - self._interval_s)
        self._last_main_ns = now
        if (main.width, main.height) != self._size():
            return  # on its way while the size changed
        self._inside = True
        chunk = self._inlet.gather()
        if chunk is not None:
            self._tick(engine, ticks, chunk, now)

    def _wait_for_device(self, ticks: Ticks, now: int) -> bool:
        """With ticks under way, wait until it is time for the next; False once it is.

        Taken as late as the device allows, the next frame is as fresh as can be. What is finished
        meanwhile goes out at once.
        """
        if ticks.full:
            return self._collect(ticks, wait=True)
        wait_s = (ticks.best_ns - now) / 1e9
        if wait_s <= 0:
            return False
        if not self._collect(ticks, wait=False):
            self._wake.wait(min(wait_s, POLL_S))
        return True

    def _rest(self, engine: Engine, ticks: Ticks) -> None:
        """No frame came and none is under way."""
        now = self._clock.now_ns()
        if now - self._last_main_ns > min(max(IDLE_S, 3 * self._interval_s), IDLE_MOST_S) * 1e9:
            self._take_up(engine)  # what was loaded since the last tick, which else nobody would ask for
            if getattr(engine, "wants_frame", False) and self._repaint(engine, ticks, now):
                return
            if self._inside:
                self._drain(engine, ticks)
        self._sleep(engine, 0.02 if self._inside else 0.1)

    def _sleep(self, engine: Engine, seconds: float) -> None:
        """Nothing is to be done before ``seconds`` are over, unless somebody wakes us."""
        rests = getattr(engine, "rests", None)
        if callable(rests):
            rests()
        self._wake.wait(seconds)

    def _repaint(self, engine: Engine, ticks: Ticks, now: int) -> bool:
        """A source that stands still sends nothing, but a moved slider shall show: its last frame again."""
        chunk = self._inlet.newest()
        if chunk is None or (chunk.main.width, chunk.main.height) != self._size():
            return False
        due = ticks.last_ns + int(min(self._interval_s, 0.1) * 1e9)
        if now < due:
            self._sleep(engine, (due - now) / 1e9)
            return True
        self._inside = True
        self._tick(engine, ticks, chunk, now)
        return True

    def _paint_freely(self, engine: Engine, ticks: Ticks) -> None:
        now = self._clock.now_ns()
        rate = float(self._values.get("output.fps", 0.0)) or FREE_RUNNING_FPS
        due = ticks.last_ns + int(1e9 / rate)
        if now < due:
            if not self._collect(ticks, wait=True):
                self._sleep(engine, (due - now) / 1e9)
            return
        # Keep to the beat while on time, start a new one when late.
        began = due if now - due < 0.5e9 / rate else now
        self._tick(engine, ticks, self._inlet.newest(), now)
        ticks.keep_beat(began)

    def _tick(self, engine: Engine, ticks: Ticks, chunk: Chunk | None, taken_ns: int) -> None:
        while ticks.full:
            self._collect(ticks, wait=True)
        try:
            ticks.submit(chunk, self._revision, taken_ns)
        except Exception as error:  # noqa: BLE001 # edge: engine loop, one bad frame is not the end
            self._count_failure(error)
            return
        self._inside = engine.spec.pipeline_ticks > 0
        self._inlet.want(engine.spec.chunk_in)
        if not ticks.overlap:
            self._collect(ticks, wait=True)

    def _collect(self, ticks: Ticks, wait: bool, show: bool = True) -> bool:
        """Bring the oldest tick out and give out what it made; False if none is finished."""
        try:
            finished = ticks.collect(wait)
        except Exception as error:  # noqa: BLE001 # edge: engine loop, one bad frame is not the end
            self._count_failure(error)
            return True
        if finished is None:
            return False
        self._failures = 0
        if finished.chunk is not None and show:
            spacing_s = finished.spacing_s / max(1, len(finished.chunk.frames))
            self._outlet.emit(finished.chunk, finished.revision, spacing_s)
        return True

    def _drain(self, engine: Engine, ticks: Ticks) -> None:
        """Input has stopped: the frames still in the pipe come out at the pace they had."""
        rest = self._inlet.complete()
        if rest is not None:
            self._tick(engine, ticks, rest, self._clock.now_ns())
        while ticks.pending:
            self._collect(ticks, wait=True)
        self._inside = False
        try:
            chunks = engine.flush()
        except Exception as error:  # noqa: BLE001 # edge: engine loop, one bad frame is not the end
            self._count_failure(error)
            return
        entries = tuple(entry for chunk in chunks for entry in chunk.frames)
        if entries:
            revision = shown_revision(engine, self._revision)
            self._outlet.emit(Chunk(entries), revision, min(self._interval_s, 0.05))

    def _count_failure(self, error: Exception) -> None:
        """Tell of a failed frame, once a second; raise when the engine is past help."""
        coded = as_engine_error(error)
        self._failures += 1
        if coded.code == "SDB-ENGINE-OOM" or self._failures >= FAILURES_ALLOWED:
            raise coded from error
        now = self._clock.now_ns()
        if self._failures == 1 or now - self._told_failure_ns > 1_000_000_000:
            self._told_failure_ns = now
            log.warning("frame failed:\n%s", "".join(traceback.format_exception(error)))
            self._inbox.send("error", coded)

    # --- parameters ---

    def _reset(self, engine: Engine, ticks: Ticks) -> bool:
        resets = self._inbox.resets()
        for how in resets:
            while ticks.pending:
                self._collect(ticks, wait=True, show=False)
            engine.reset(how)
            self._inlet.forget()
            self._outlet.drop_waiting()
            self._inside = False
        return bool(resets)

    def _apply(self, engine: Engine, ticks: Ticks, revision: int) -> bool:
        """The frame edge: everything that was said before the frame at hand, bundles together.

        True if the engine was told to forget its frames.
        """
        changes = self._inbox.changes(revision, timeout_s=CHANGE_S)
        forgot = self._reset(engine, ticks)
        for values, newest in merge_changes(changes):
            size = self._size()
            self._values.update({n: v for n, v in values.items() if n in self._values})
            told = for_engine(values)
            rejected = engine.apply(told, newest) if told else ()
            self._revision = max(self._revision, newest)
            if rejected:
                self._inbox.send("rejected", rejected)
            if self._size() != size:
                self._inlet.keep_only(*self._size())
        self._tell_applied(engine, bool(changes))
        return forgot

    def _tell_applied(self, engine: Engine, always: bool) -> None:
        """Say which revision is in force, when it is another: the engine may hold values back a while."""
        if not always and self._applied == self._revision:
            return
        self._take_up(engine)
        applied = shown_revision(engine, self._revision)
        if always or applied != self._applied:
            self._applied = applied
            self._inbox.send("applied", applied)

    def _take_up(self, engine: Engine) -> None:
        """A frame edge without a frame, for engines that know it."""
        take_up = getattr(engine, "frame_edge", None)
        if take_up is not None:
            try:
                take_up()
            except Exception as error:  # noqa: BLE001 # edge: engine loop, one bad frame is not the end
                self._count_failure(error)

    def _size(self) -> tuple[int, int]:
        assert self._engine is not None
        return engine_size(self._values, self._engine.spec.size_multiple)

    # --- telling ---

    def _tell(self, state: EngineState, **about: object) -> None:
        self._inbox.send("state", state, about)

    def _tell_stats(self, engine: Engine, ticks: Ticks) -> None:
        self._inbox.send("stats", _with_own(engine.stats(), ticks), engine.spec)
        keepsakes = getattr(engine, "keepsakes", None)
        if callable(keepsakes):
            for name, kept in keepsakes().items():
                if self._kept.get(name) != kept:
                    self._kept[name] = kept
                    self._inbox.send("keepsake", name, kept)


def _pictures_on_gpu(engine: Engine, warm: WarmUpReport) -> tuple[bool, str]:
    """Whether a sender in this process would have tensors to show, and why not."""
    if not hasattr(engine, "gpu_output"):
        return False, "this kind of engine gives its pictures from the CPU"
    if not warm.device.startswith("cuda"):
        return False, f"the engine runs on {warm.device}"
    return True, ""


def _give_way() -> None:
    """A model on the CPU takes every core there is; the bridge's frames go first nevertheless."""
    if hasattr(os, "nice"):
        os.nice(5)


def _with_own(stats: EngineStats, ticks: Ticks) -> EngineStats:
    """The engine's numbers, completed by what the loop measured itself.

    How long a tick takes that overlaps its neighbours cannot be seen from inside the engine.
    """
    tick_ms = ticks.tick_ms if ticks.overlap else stats.tick_ms or ticks.tick_ms
    return replace(stats, ticks=stats.ticks or ticks.done, tick_ms=tick_ms)


def as_engine_error(error: BaseException) -> SdbridgeError:
    """``error`` with a code: out of memory is told apart, because a restart can mend it."""
    if isinstance(error, SdbridgeError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())[:300]
    if names & {"OutOfMemoryError", "MemoryError"}:
        return SdbridgeError(
            "SDB-ENGINE-OOM", f"the engine ran out of memory ({text or type(error).__name__})"
        )
    return SdbridgeError("SDB-ENGINE-FAULT", f"the engine raised {type(error).__name__}: {text}")
