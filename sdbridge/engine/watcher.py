"""Who starts, replaces and ends engines: one thread that obeys orders and mends what falls."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from sdbridge.clock import Clock
from sdbridge.config import EngineSection
from sdbridge.engine.client import EngineClient
from sdbridge.engine.interface import EngineState
from sdbridge.engine.making import EngineMaker
from sdbridge.engine.pipe import Wake
from sdbridge.engine.preparation import Prepare
from sdbridge.engine.succession import Succession
from sdbridge.engine.supervisor import Rung, Seen, Supervisor
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import ParameterStore

log = logging.getLogger(__name__)

WATCH_S = 0.05
PING_EVERY_NS = 1_000_000_000
#: A new engine takes over with its first frame, or after this long if no frame is to be had.
TAKE_OVER_NS = 2_000_000_000

#: Sources of values that the watcher sets itself, along with the engine that is to have them.
LAST_GOOD, SAFE_MODE, RELOAD_FAILED = OWN_SOURCES = ("last good", "safe mode", "reload failed")

Note = Callable[[str], None]


#: How a new engine is started, in words for the log.
WITH = {
    Rung.AS_IS: "with the values that are set",
    Rung.LAST_GOOD: "with the values that last streamed well",
    Rung.SAFE_MODE: "with the package's model and the defaults",
}


class EngineWatcher:
    """Decides with the supervisor, makes with the maker, and puts the result into the succession.

    What takes time (starting, ending, deciding) happens in its thread, which ``order`` wakes.
    """

    def __init__(
        self,
        section: EngineSection,
        store: ParameterStore,
        clock: Clock,
        ready: Wake,
        note: Note,
        succession: Succession,
        supervisor: Supervisor,
        prepare: Prepare,
    ) -> None:
        self._store = store
        self._clock = clock
        self._note = note
        self._succession = succession
        self._supervisor = supervisor
        self._orders: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._wanted = False
        self._incoming_since_ns = 0
        self._pinged_ns = 0
        self._thread = threading.Thread(target=self._watch_forever, name="engine-watch", daemon=True)
        self.maker = EngineMaker(
            section, store, ready, self._on_event, prepare, lambda: self.order("prepared")
        )
        self.last_good: dict[str, Value] | None = None
        self.reloading = False  # between the change and our hearing of it

    # --- life ---

    def start(self) -> None:
        """Begin to watch and to load the first engine; returns at once."""
        self.order("start")
        self._thread.start()

    def rest(self) -> None:
        """Start no more engines: the end is near."""
        self._closing.set()

    def stop(self) -> None:
        """End the thread; the engines are not touched."""
        self._closing.set()
        self.order("wake")
        if self._thread.is_alive():
            self._thread.join(20.0)

    def order(self, word: str, how: Any = None) -> None:
        """``start stop restart reset reload prepared deaf``: done soon, in the order they came."""
        if word == "reload":
            self.reloading = True
        self._orders.put((word, how))

    @property
    def state(self) -> EngineState:
        """Of the engine that runs or, without one, what is being done about that."""
        state = self._succession.state
        if state is not None:
            return state
        if self.given_up:
            return EngineState.FAILED
        return EngineState.LOADING if self.maker.preparing else EngineState.STOPPED

    @property
    def given_up(self) -> bool:
        return self._supervisor.rung is Rung.GIVEN_UP

    # --- the thread ---

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
            self._succession.retire_incoming()
            self._succession.retire_current()
        elif order == "restart":
            self._wanted = True
            self._forgive()
            self._begin_beside("a restart was asked for")
        elif order == "reset":
            self._succession.reset(how)
        elif order == "reload":
            self.reloading = False
            self._reload()
        elif order == "deaf" and how is self._succession.client:
            error = SdbridgeError("SDB-ENGINE-SILENT", "it did not give the output's name back when told")
            self._note(str(error))
            self._fell(error, self._clock.now_ns())
        elif order == "prepared" and self.maker.preparing and self._wanted:
            if self._succession.client is None and not self.given_up:
                self._replace_now()
            else:
                self._reload()

    def _forgive(self) -> None:
        """The operator begins afresh: with the whole budget and the model of the config."""
        self._supervisor.forgive()
        self.maker.forgive()

    def _watch(self) -> None:
        now = self._clock.now_ns()
        incoming, client = self._succession.incoming, self._succession.client
        if incoming is not None:
            self._watch_incoming(incoming, now)
        if client is None or client is not self._succession.client or not self._wanted:
            return
        if now - self._pinged_ns >= PING_EVERY_NS:
            self._pinged_ns = now
            client.ping()
        if client.state is EngineState.FAILED:
            self._fell(client.last_error or SdbridgeError("SDB-ENGINE-DIED", "the engine failed"), now)
            return
        reason = self._supervisor.look(now, _seen(client))
        if reason is not None:
            self._note(str(reason))
            self._fell(reason, now)
        elif self._supervisor.is_settled(now) and client.state is EngineState.STREAMING:
            self.last_good = dict(client.values)

    # --- falls ---

    def _fell(self, error: SdbridgeError, now: int) -> None:
        """The running engine is lost: start the next one from the rung that the supervisor names."""
        if self._succession.incoming is not None:  # a successor is on its way already
            self._succession.retire_current(within_s=0.0)
            return
        rung = self._supervisor.fell(now, error.code, self.last_good is not None)
        if rung is Rung.LAST_GOOD and self.last_good is not None:
            self._say("SDB-ENGINE-LASTGOOD", f"the engine fell too often, last {error.what}")
            self._store.set_many(dict(self.last_good), LAST_GOOD)
        elif rung is Rung.SAFE_MODE:
            self._say("SDB-ENGINE-SAFEMODE", f"the engine does not run as it is set: {error.what}")
            self._store.set_many(dict(self.maker.enter_safe_mode()), SAFE_MODE)
        elif rung is Rung.GIVEN_UP:
            self._say("SDB-ENGINE-GIVENUP", f"the engine fell in safe mode too: {error.what}")
            self._succession.retire_current(within_s=0.0)
            return
        log.warning("starting the engine anew %s", WITH[rung])
        self._replace_now()

    def _replace_now(self) -> None:
        """End what runs, then start: for when it is lost, or when two do not fit."""
        self._succession.retire_current(within_s=0.0)
        try:
            client = self.maker.make()
        except SdbridgeError as error:  # the model cannot be had
            self._note(str(error))
            self._fell(error, self._clock.now_ns())
            return
        if client is None:
            return
        self._succession.install(client)
        self.maker.start(client)

    # --- swaps ---

    def _begin_beside(self, why: str) -> None:
        """Start a second engine beside the first, to take over when it streams."""
        self._succession.retire_incoming()
        if self._succession.client is None or self.state is not EngineState.STREAMING:
            self._replace_now()
            return
        log.info("a new engine loads beside the running one: %s", why)
        try:
            client = self.maker.make()
        except SdbridgeError as error:
            self._reload_failed(error, self._succession.client)
            return
        if client is None:
            return
        self._succession.announce(client)
        self._incoming_since_ns = 0
        self.maker.start(client)

    def _reload(self) -> None:
        """A parameter changed that only a new engine can follow."""
        if not self._wanted:
            return
        target = self._succession.incoming or self._succession.client
        wanted, _revision = self._store.snapshot()
        differ = [
            name
            for name, value in self.maker.reload_values(wanted).items()
            if target is not None and target.values.get(name) != value
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
                self._succession.take_over(incoming)  # there is no input that a frame could be made of

    def _incoming_failed(self, incoming: EngineClient) -> None:
        error = incoming.last_error or SdbridgeError("SDB-ENGINE-DIED", "the new engine failed")
        self._succession.retire_incoming()
        old = self._succession.client
        if error.code != "SDB-ENGINE-OOM" or old is None:
            self._reload_failed(error, old)
            return
        self._say("SDB-ENGINE-BESIDE", f"two engines do not fit: {error.what}")
        self._replace_now()
        if not self._wait_streaming() and not self._closing.is_set():
            alone = self._succession.client
            self._reload_failed((alone.last_error if alone is not None else None) or error, old)
            self._replace_now()

    def _reload_failed(self, error: SdbridgeError, old: EngineClient | None) -> None:
        self._say("SDB-ENGINE-RELOAD", f"the new engine does not load: {error.what}")
        if old is not None:
            # The store tells the truth again: its values are those of what runs.
            self._store.set_many(dict(self.maker.reload_values(old.values)), RELOAD_FAILED)

    def _wait_streaming(self) -> bool:
        while not self._closing.wait(0.02):
            if self.state in (EngineState.STREAMING, EngineState.FAILED, EngineState.STOPPED):
                break
        return self.state is EngineState.STREAMING

    # --- hearing and telling ---

    def _on_event(self, client: EngineClient, kind: str, what: Any) -> None:
        if kind == "state":
            log.info("engine %s: %s", client.config.kind, what)
            if what is EngineState.STREAMING:
                self._succession.greet(client)
        elif kind == "error":
            self._note(str(what))
        elif kind == "rejected":
            for rejection in what:
                self._note(rejection.message)

    def _say(self, code: str, what: str) -> None:
        self._note(str(SdbridgeError(code, what)))


def _seen(client: EngineClient) -> Seen:
    return Seen(
        engine=id(client),
        state=client.state,
        offered=client.frames_offered,
        made=client.frames_made,
        pings=client.pings,
        pongs=client.pongs,
        free_running=client.values.get("mode") == "txt2img",
    )
