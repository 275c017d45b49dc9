"""The engine as the bridge knows it: one that runs, whichever process that is at the moment."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from sdbridge.clock import Clock
from sdbridge.config import EngineSection
from sdbridge.engine.client import EngineClient
from sdbridge.engine.interface import EngineConfig, EngineState, ResetKind
from sdbridge.engine.pipe import Wake
from sdbridge.engine.preparation import Preparation, Prepare
from sdbridge.engine.supervisor import Rung, Seen, Supervisor
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Change, ParameterStore
from sdbridge.status import ProgressStatus

log = logging.getLogger(__name__)

#: Parameters with effect "bridge" that the engine loop wants all the same, to pace itself.
PASSED_ON = frozenset({"output.fps"})
WATCH_S = 0.05
PING_EVERY_NS = 1_000_000_000
#: A new engine takes over with its first frame, or after this long if no frame is to be had.
TAKE_OVER_NS = 2_000_000_000

#: Sources of values that the watcher sets itself, along with the engine that is to have them.
LAST_GOOD, SAFE_MODE, RELOAD_FAILED = OWN_SOURCES = ("last good", "safe mode", "reload failed")

Note = Callable[[str], None]


class RunningEngine:
    """Starts, feeds, replaces and ends engines. Methods may be called from any thread.

    What takes time (starting, ending, deciding) happens in one thread of its own, which ``tell``
    wakes; ``offer``, ``take`` and ``change`` never wait. A ``reload`` or a restart by hand starts a
    second engine beside the first, which takes over at a frame edge, with its first picture.
    """

    def __init__(
        self,
        section: EngineSection,
        store: ParameterStore,
        clock: Clock,
        ready: Wake,
        note: Note,
        stall_s: float = 10.0,
        restarts_a_minute: int = 5,
        prepare: Prepare = lambda config: config,
    ) -> None:
        self._configured = self._section = section
        self._store = store
        self._clock = clock
        self._ready = ready
        self._note = note
        self._preparation = Preparation(prepare, lambda: self._orders.put(("prepared", None)))
        self._supervisor = Supervisor(stall_s, restarts_a_minute)
        self._lock = threading.Lock()  # guards client and incoming, for moments
        self._incoming: EngineClient | None = None
        self._incoming_since_ns = 0
        self._wanted = False
        self._heard = 0  # newest revision that we were told of
        self._reloading = False  # between the change and the watcher's hearing of it
        self._newest: dict[Role, Frame] = {}  # for an engine that starts while its source stands still
        self._last_good: dict[str, Value] | None = None
        self._pinged_ns = 0
        self._orders: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._retiring: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._watch_forever, name="engine-watch", daemon=True)
        self._dropped_before = 0  # by engines that are gone
        self._newest_ns = 0  # when the input of the newest picture that was taken came in
        self.client: EngineClient | None = None
        self.safe_mode = False

    # --- life ---

    def start(self) -> None:
        """Begin to watch and to load the first engine; returns at once."""
        self._heard = self._store.revision
        self._orders.put(("start", None))
        self._thread.start()

    def rest(self) -> None:
        """Start no more engines: the end is near."""
        self._closing.set()

    def stop(self) -> None:
        """End every engine and remove what they shared; waits for that."""
        self._closing.set()
        self._orders.put(("wake", None))
        if self._thread.is_alive():
            self._thread.join(20.0)
        for client in self._clients():
            client.stop()
        for thread in self._retiring:
            thread.join(10.0)

    def kill(self) -> None:
        """End every engine at once; for the second Ctrl+C."""
        self._closing.set()
        for client in self._clients():
            client.kill()
            client.stop(timeout_s=0.0)

    def _clients(self) -> list[EngineClient]:
        with self._lock:
            return [client for client in (self._incoming, self.client) if client is not None]

    @property
    def state(self) -> EngineState:
        client = self.client
        if client is not None:
            return client.state
        if self.given_up:
            return EngineState.FAILED
        return EngineState.LOADING if self._preparation.under_way else EngineState.STOPPED

    @property
    def given_up(self) -> bool:
        return self._supervisor.rung is Rung.GIVEN_UP

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def incoming(self) -> EngineClient | None:
        """The engine that gets ready to take over, if there is one."""
        return self._incoming

    @property
    def applied_revision(self) -> int:
        """The newest revision that is in force: all that concerns the engine has reached its frames."""
        client = self.client
        if client is None:
            return 0
        caught_up = client.applied_revision >= client.sent_revision and client.state is EngineState.STREAMING
        if caught_up and self._incoming is None and not self._reloading:
            return max(self._heard, client.applied_revision)
        return client.applied_revision

    @property
    def line(self) -> str:
        """What runs and why, for people."""
        client = self.client
        if client is None:
            return "given up" if self.given_up else "stopped"
        report = client.report
        if report is None:
            return f"{client.config.kind} {client.state}"
        return (
            f"{client.config.kind} on {report.device} in {report.dtype}, {report.acceleration}: {report.why}"
        )

    @property
    def dropped(self) -> int:
        """Input frames that were replaced before any engine took them."""
        client = self.client
        return self._dropped_before + (client.dropped if client is not None else 0)

    def progress(self) -> tuple[ProgressStatus, ...]:
        """Long work under way, in the running engine and in the one that gets ready."""
        under_way = [client.progress for client in self._clients()]
        return tuple(ProgressStatus(**asdict(each)) for each in under_way if each is not None)

    # --- frames ---

    @property
    def size(self) -> tuple[int, int]:
        """The size that frames must be fitted to now."""
        client = self.client
        if client is not None:
            return client.size
        return int(self._store.get("width")), int(self._store.get("height"))

    def offer(self, role: Role, frame: Frame) -> None:
        """Put an input frame before the engine, and before the one that gets ready."""
        self._newest[role] = frame
        for client in (self.client, self._incoming):
            if client is not None:
                client.offer(role, frame)

    def take(self, role: Role) -> Frame | None:
        """The newest finished frame, once. With the first one of a new engine that one takes over."""
        incoming = self._incoming
        if incoming is not None and role == "generated":
            frame = incoming.take(role)
            if frame is not None:
                self._take_over(incoming)
                # It may have begun with an input that the old engine had painted: time never goes back.
                return frame if frame.received_at_ns >= self._newest_ns else None
        client = self.client
        frame = client.take(role) if client is not None else None
        if frame is not None and role == "generated":
            self._newest_ns = max(self._newest_ns, frame.received_at_ns)
        return frame

    # --- parameters and commands ---

    def change(self, change: Change) -> None:
        """Pass on what concerns the engine: live values at once, reloads and commands to the watcher."""
        rows = self._store.table.rows
        fired = {name: True for name in change.triggers if rows[name].effect != "bridge"}
        live = {
            name: value
            for name, value in change.values.items()
            if name in PASSED_ON or rows[name].effect in ("live", "reencode")
        }
        if live:
            self._supervisor.unsettle()
        if live or fired:
            for client in self._clients():
                client.change({**live, **fired}, change.revision)
            for again in _repeats(change.triggers, rows.keys() & fired.keys()):
                for client in self._clients():
                    client.change({again: True}, change.revision)
        own = change.source in OWN_SOURCES
        if not own and any(rows[name].effect == "reload" for name in change.values):
            self._reloading = True
            self._orders.put(("reload", None))
        for name in change.triggers:
            if name in ("engine.start", "engine.stop", "engine.restart", "engine.reset"):
                self._orders.put((name.removeprefix("engine."), "hard"))
        self._heard = change.revision

    def reset(self, how: ResetKind) -> None:
        for client in self._clients():
            client.reset(how)

    def for_engine(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values that an engine is told."""
        rows = self._store.table.rows
        return {name: v for name, v in values.items() if rows[name].effect != "bridge" or name in PASSED_ON}

    # --- the watcher ---

    def _watch_forever(self) -> None:
        while not self._closing.is_set():
            try:
                with contextlib.suppress(queue.Empty):
                    self._obey(*self._orders.get(timeout=WATCH_S))
                self._watch()
            except SdbridgeError as error:
                self._note(str(error))
            except Exception as error:  # edge: without its watcher the show would go on blind
                log.exception("watching the engine failed")
                self._note(f"SDB-ENGINE-FAULT: watching the engine failed: {type(error).__name__}: {error}")
                self._closing.wait(1.0)

    def _obey(self, order: str, how: Any) -> None:
        if order == "start":
            self._wanted = True
            if self.state in (EngineState.STOPPED, EngineState.FAILED):
                self._forgive()
                self._replace_now()
        elif order == "stop":
            self._wanted = False
            self._retire_incoming()
            self._retire_current()
        elif order == "restart":
            self._wanted = True
            self._forgive()
            self._begin_beside("a restart was asked for")
        elif order == "reset":
            self.reset(how)
        elif order == "reload":
            self._reloading = False
            self._reload()
        elif order == "prepared" and self._preparation.under_way and self._wanted:
            if self.client is None and not self.given_up:
                self._replace_now()
            else:
                self._reload()

    def _forgive(self) -> None:
        """The operator begins afresh: with the whole budget and the model of the config."""
        self._supervisor.forgive()
        self._section = self._configured
        self.safe_mode = False

    def _watch(self) -> None:
        now = self._clock.now_ns()
        incoming, client = self._incoming, self.client
        if incoming is not None:
            self._watch_incoming(incoming, now)
        if client is None or client is not self.client or not self._wanted:
            return
        if now - self._pinged_ns >= PING_EVERY_NS:
            self._pinged_ns = now
            client.ping()
        if client.state is EngineState.FAILED:
            self._fell(client.last_error or SdbridgeError("SDB-ENGINE-DIED", "the engine failed"), now)
            return
        reason = self._supervisor.look(now, self._seen(client))
        if reason is not None:
            self._note(str(reason))
            self._fell(reason, now)
        elif self._supervisor.is_settled(now) and client.state is EngineState.STREAMING:
            self._last_good = dict(client.values)

    def _seen(self, client: EngineClient) -> Seen:
        return Seen(
            engine=id(client),
            state=client.state,
            offered=client.frames_offered,
            made=client.frames_made,
            pings=client.pings,
            pongs=client.pongs,
            free_running=client.values.get("mode") == "txt2img",
        )

    def _fell(self, error: SdbridgeError, now: int) -> None:
        """The running engine is lost: start the next one from the rung that the supervisor names."""
        if self._incoming is not None:  # a successor is on its way already
            self._retire_current(within_s=0.0)
            return
        rung = self._supervisor.fell(now, error.code, self._last_good is not None)
        if rung is Rung.LAST_GOOD and self._last_good is not None:
            self._note(
                str(SdbridgeError("SDB-ENGINE-LASTGOOD", f"the engine fell too often, last {error.what}"))
            )
            self._store.set_many(dict(self._last_good), LAST_GOOD)
        elif rung is Rung.SAFE_MODE:
            self._note(str(SdbridgeError("SDB-ENGINE-SAFEMODE", f"the engine fell again: {error.what}")))
            self._enter_safe_mode()
        elif rung is Rung.GIVEN_UP:
            self._note(
                str(SdbridgeError("SDB-ENGINE-GIVENUP", f"the engine fell in safe mode too: {error.what}"))
            )
            self._retire_current(within_s=0.0)
            return
        log.warning("starting the engine anew (%s)", rung.name.lower())
        self._replace_now()

    def _enter_safe_mode(self) -> None:
        """The defaults of everything the engine is told, and the model inside the package."""
        self.safe_mode = True
        if self._section.kind == "image":
            self._section = self._section.model_copy(
                update={"model": "embedded", "vae": "auto", "acceleration": "auto"}
            )
        defaults = self.for_engine(self._store.table.defaults())
        size = {"width": self._section.width, "height": self._section.height}
        self._store.set_many({**defaults, **size}, SAFE_MODE)

    # --- replacing ---

    def _make(self) -> EngineClient | None:
        """A new engine, not started; None while its model is on its way, whose arrival brings us here again.

        Raises SDB-MODEL-* and SDB-PULL-* if the model cannot be had.
        """
        values, revision = self._store.snapshot()
        told = self.for_engine(values)
        config = self._preparation.of(engine_config(self._section, told))
        if config is None:
            return None
        return EngineClient(
            config,
            told,
            revision,
            self._ready,
            self._on_event,
            in_process=self._section.in_process,
        )

    def _replace_now(self) -> None:
        """End what runs, then start: for when it is lost, or when two do not fit."""
        self._retire_current(within_s=0.0)
        try:
            client = self._make()
        except SdbridgeError as error:  # the model cannot be had
            self._note(str(error))
            self._fell(error, self._clock.now_ns())
            return
        if client is None:
            return
        with self._lock:
            self.client = client
        client.start()
        self._catch_up(client)

    def _catch_up(self, client: EngineClient) -> None:
        """Tell a new engine what changed between its snapshot and the moment it could be told."""
        rows = self._store.table.rows
        with self._store.steady():
            values, revision = self._store.snapshot()
            missed = {
                name: value
                for name, value in self.for_engine(values).items()
                if client.values.get(name) != value and rows[name].effect != "reload"
            }
            if missed:
                client.change(missed, revision)

    def _begin_beside(self, why: str) -> None:
        """Start a second engine beside the first, to take over when it streams."""
        self._retire_incoming()
        if self.client is None or self.state is not EngineState.STREAMING:
            self._replace_now()
            return
        log.info("a new engine loads beside the running one: %s", why)
        try:
            client = self._make()
        except SdbridgeError as error:
            self._reload_failed(error, self.client)
            return
        if client is None:
            return
        with self._lock:
            self._incoming = client
        self._incoming_since_ns = 0
        client.start()
        self._catch_up(client)

    def _reload(self) -> None:
        """A parameter changed that only a new engine can follow."""
        if not self._wanted:
            return
        target = self._incoming or self.client
        wanted, _revision = self._store.snapshot()
        rows = self._store.table.rows
        differ = [
            name
            for name, row in rows.items()
            if row.effect == "reload" and target is not None and target.values.get(name) != wanted[name]
        ]
        if target is None or differ:
            self._forgive()
            self._begin_beside(f"{', '.join(differ) or 'the engine'} changed")

    def _watch_incoming(self, incoming: EngineClient, now: int) -> None:
        if incoming.state is EngineState.FAILED:
            self._incoming_failed(incoming)
        elif incoming.state is EngineState.STREAMING:
            self._incoming_since_ns = self._incoming_since_ns or now
            if now - self._incoming_since_ns > TAKE_OVER_NS:
                self._take_over(incoming)  # there is no input that a frame could be made of

    def _incoming_failed(self, incoming: EngineClient) -> None:
        error = incoming.last_error or SdbridgeError("SDB-ENGINE-DIED", "the new engine failed")
        self._retire_incoming()
        old = self.client
        if error.code != "SDB-ENGINE-OOM" or old is None:
            self._reload_failed(error, old)
            return
        self._note(str(SdbridgeError("SDB-ENGINE-BESIDE", f"two engines do not fit: {error.what}")))
        self._replace_now()
        if not self._wait_streaming() and not self._closing.is_set():
            alone = self.client
            self._reload_failed((alone.last_error if alone is not None else None) or error, old)
            self._replace_now()

    def _reload_failed(self, error: SdbridgeError, old: EngineClient | None) -> None:
        self._note(str(SdbridgeError("SDB-ENGINE-RELOAD", f"the new engine does not load: {error.what}")))
        if old is not None:
            # The store tells the truth again: its values are those of what runs.
            self._store.set_many(dict(self._reload_values(old)), RELOAD_FAILED)

    def _reload_values(self, client: EngineClient) -> dict[str, Value]:
        rows = self._store.table.rows
        return {name: value for name, value in client.values.items() if rows[name].effect == "reload"}

    def _wait_streaming(self) -> bool:
        while not self._closing.wait(0.02):
            if self.state in (EngineState.STREAMING, EngineState.FAILED, EngineState.STOPPED):
                break
        return self.state is EngineState.STREAMING

    def _take_over(self, incoming: EngineClient) -> None:
        with self._lock:
            if self._incoming is not incoming:
                return
            old, self.client, self._incoming = self.client, incoming, None
            self._dropped_before += old.dropped if old is not None else 0
        log.info("the new engine has taken over")
        if old is not None:
            self._retire(old)

    def _retire_incoming(self) -> None:
        with self._lock:
            client, self._incoming = self._incoming, None
        if client is not None:
            self._retire(client)

    def _retire_current(self, within_s: float | None = None) -> None:
        """End the running engine: here and now, by force after ``within_s``, or beside us."""
        with self._lock:
            client, self.client = self.client, None
            self._dropped_before += client.dropped if client is not None else 0
        if client is None:
            return
        if within_s is None:
            self._retire(client)
        else:
            client.stop(within_s)

    def _retire(self, client: EngineClient) -> None:
        """End an engine without waiting for it."""
        self._retiring = [thread for thread in self._retiring if thread.is_alive()]
        thread = threading.Thread(target=client.stop, name="engine-retire", daemon=True)
        self._retiring.append(thread)
        thread.start()

    # --- hearing ---

    def _on_event(self, client: EngineClient, kind: str, what: Any) -> None:
        if kind == "state":
            log.info("engine %s: %s", client.config.kind, what)
            if what is EngineState.STREAMING:
                for role, frame in list(self._newest.items()):
                    client.offer(role, frame)
        elif kind == "error":
            self._note(str(what))
        elif kind == "rejected":
            for rejection in what:
                self._note(rejection.message)


class Patience:
    """How long to wait for a first generated frame before it is clear that none comes."""

    def __init__(self, clock: Clock, streaming_s: float = 10.0) -> None:
        self._clock = clock
        self._streaming_s = streaming_s
        self._since_ns: int | None = None

    def is_over(self, engine: RunningEngine) -> bool:
        if engine.given_up:
            return True
        if engine.state is not EngineState.STREAMING:
            self._since_ns = None
            return False
        now = self._clock.now_ns()
        self._since_ns = self._since_ns or now
        return now - self._since_ns > self._streaming_s * 1e9


def _repeats(triggers: tuple[str, ...], names: set[str]) -> list[str]:
    """The triggers that fired again after their first time, once for each further time."""
    seen: set[str] = set()
    again: list[str] = []
    for name in triggers:
        if name in names and name in seen:
            again.append(name)
        seen.add(name)
    return again


def spare_cores() -> int:
    """Threads for an engine on the CPU: all cores but one, which the bridge wants, and no more than four.

    Small models gain nothing from more (the embedded one at 256x256, two cores: 41 ms with one
    thread, 46 ms with two).
    """
    return max(1, min(4, (os.cpu_count() or 2) - 1))


def engine_config(section: EngineSection, values: Mapping[str, Value]) -> EngineConfig:
    """What a new engine is told: the config's section, with the parameters that reload laid over it."""
    vae = str(values.get("vae", "auto"))
    acceleration = str(values.get("acceleration", "auto"))
    base = EngineConfig(
        kind=section.kind,
        model=section.model,
        device=section.device,
        dtype=section.dtype,
        vae=section.vae,
        acceleration=section.acceleration,
        threads=section.threads or (0 if section.in_process else spare_cores()),
        options={"allow_pickle": section.allow_pickle, **section.options},
    )
    return replace(
        base,
        model=str(values.get("model", "")) or base.model,
        vae=vae if vae != "auto" else base.vae,
        acceleration=acceleration if acceleration != "auto" else base.acceleration,
    )
