"""One engine as the bridge sees it: started, fed, told, watched and ended; in a child process or a thread."""

from __future__ import annotations

import atexit
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from sdbridge.engine.child import say_exit, start_deaf_to_signals
from sdbridge.engine.gpu_output import GpuState
from sdbridge.engine.inbox import Inbox
from sdbridge.engine.interface import (
    EngineConfig,
    EngineSpec,
    EngineState,
    EngineStats,
    Progress,
    ResetKind,
    WarmUpReport,
)
from sdbridge.engine.pipe import SPAWN, Message, Wake
from sdbridge.engine.states import StateTrack
from sdbridge.engine.told import EngineStart, engine_size, merge_changes
from sdbridge.engine.worker import run_engine, run_engine_process
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection
from sdbridge.slot import SharedSlot

log = logging.getLogger(__name__)

#: Called in the client's own thread with the client and what happened: "state", "error" or "rejected".
OnEvent = Callable[["EngineClient", str, Any], None]


class EngineClient:
    """Everything the bridge may ask of one engine. Methods may be called from any thread.

    No method waits for the engine but ``stop``: changes go out through a thread of their own, and
    every frame carries the revision it was sent after, so that the engine can wait for a change
    that is still on its way.
    """

    def __init__(
        self,
        config: EngineConfig,
        values: Mapping[str, Value],
        revision: int,
        ready: Wake,
        on_event: OnEvent,
        *,
        in_process: bool = False,
        keepsakes: dict[str, bytes] | None = None,
    ) -> None:
        """``keepsakes`` of the engine before it, which this one's are added to (``interface.py``)."""
        self.config = config
        self.values = dict(values)  # what the engine was told so far
        self.in_process = in_process
        self._keepsakes = {} if keepsakes is None else keepsakes
        self.spec = EngineSpec(kind=config.kind)
        self.report: WarmUpReport | None = None
        self.began_ns = self.took_ns = 0  # from ``start`` until it streamed
        self.stats = EngineStats()
        self.progress: Progress | None = None
        self.applied_revision = 0
        self.last_error: SdbridgeError | None = None
        self.gpu_outputs: dict[str, tuple[GpuState, str]] = {}  # what it said of its own senders, and why
        self.pongs = 0
        self.pings = 0
        self._revision = revision
        self._ready = ready
        self._on_event = on_event
        self._track = StateTrack()
        self._wake = Wake()
        self._slots: dict[str, SharedSlot] = {}
        self._slots_lock = threading.Lock()
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._ending = False
        self._ended = threading.Event()
        self._runner: Any = None  # Process or Thread
        self._threads: list[threading.Thread] = []
        self._connection: Connection | None = None
        self._far_end: Connection | None = None

    # --- life ---

    def start(self) -> None:
        """Begin to load. Returns at once; ``state`` tells how it goes."""
        self.began_ns = time.monotonic_ns()
        self._make_slots()
        self._connection, self._far_end = SPAWN.Pipe(duplex=True)
        self._track.move(EngineState.LOADING)
        birth = EngineStart(
            self.config, dict(self.values), self._revision, self._names(), dict(self._keepsakes)
        )
        if self.in_process:
            self._runner = threading.Thread(target=self._run_here, args=(birth,), name="engine", daemon=True)
            self._runner.start()
        else:
            self._runner = SPAWN.Process(
                target=run_engine_process,
                args=(birth, self._far_end, self._wake, self._ready),
                name=f"sdbridge-engine-{self.config.kind}",
                daemon=True,
            )
            start_deaf_to_signals(self._runner)
            # multiprocessing would wait for it for ever at exit, since it does not hear SIGTERM.
            atexit.register(self.kill)
            self._far_end.close()  # or the end of the child would not be seen here
        for work in (self._read, self._write):
            thread = threading.Thread(target=work, name=f"engine-{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run_here(self, birth: EngineStart) -> None:
        assert self._far_end is not None
        inbox = Inbox(self._far_end, self._wake, birth.revision, own_process=False)
        try:
            run_engine(birth, inbox, self._wake, self._ready)
        finally:
            self._far_end.close()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the engine, by force if it does not leave in time, and remove its shared memory."""
        if self._ending:
            self._ended.wait(timeout_s + 2.0)
            return
        self._ending = True
        self._outbox.put(("stop",))
        self._outbox.put(None)
        if self._runner is not None:
            self._runner.join(timeout_s if self.alive else 0.1)
            self.kill()
        self._close()
        atexit.unregister(self.kill)
        self._track.move(EngineState.STOPPED)
        self._ended.set()

    def kill(self) -> None:
        """End the process now, whatever it does; an engine in a thread cannot be killed."""
        if self.in_process or self._runner is None:
            return
        if self._runner.is_alive():
            self._runner.kill()
        self._runner.join(5.0)

    def _close(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)
        if self._connection is not None:
            self._connection.close()
        with self._slots_lock:
            for slot in self._slots.values():
                slot.close()
        if not (self.in_process and self.alive):
            self._wake.close()

    @property
    def state(self) -> EngineState:
        return self._track.now

    @property
    def alive(self) -> bool:
        return self._runner is not None and bool(self._runner.is_alive())

    @property
    def process_id(self) -> int | None:
        return None if self.in_process else getattr(self._runner, "pid", None)

    @property
    def start_parts_s(self) -> dict[str, float]:
        """Where the time from ``start`` to the first stream went; empty until then."""
        report = self.report
        if report is None or not self.took_ns:
            return {}
        parts = {"imports": report.imports_s, "load": report.load_s, "warm_up": report.warm_up_s}
        return {**parts, "all": self.took_ns / 1e9}

    # --- frames ---

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that frames must have to be taken."""
        return engine_size(self.values, self.spec.size_multiple)

    def offer(self, role: Role, frame: Frame) -> None:
        """Put an input frame, already fitted to ``size``, before the engine."""
        if self.state is not EngineState.STREAMING:
            return
        slot = self._slot_for(f"in:{role}", frame.pixels.nbytes)
        if slot is not None and slot.write(replace(frame, revision=self._revision)):
            self._wake.set()

    def take(self, role: Role = "generated") -> Frame | None:
        """The newest finished frame, once, to keep."""
        slot = self._slots.get(f"out:{role}")
        return slot.take() if slot is not None else None

    def borrow(self, role: Role = "generated") -> Frame | None:
        """The newest finished frame, once, where the engine left it: unchanging until the next ``borrow``.

        The end of the engine, even a violent one, and of its slot changes nothing about it.
        """
        slot = self._slots.get(f"out:{role}")
        return slot.borrow() if slot is not None else None

    @property
    def frames_made(self) -> int:
        """How many generated frames came out so far: the sign that work goes on."""
        return self._count("out:generated")

    @property
    def frames_offered(self) -> int:
        return self._count("in:main")

    def _count(self, place: str) -> int:
        with self._slots_lock:
            slot = self._slots.get(place)
            return slot.writes if slot is not None and not self._ending else 0

    @property
    def dropped(self) -> int:
        """Input frames replaced before the engine took them."""
        with self._slots_lock:
            slot = self._slots.get("in:main")
            return slot.drops if slot is not None and not self._ending else 0

    @property
    def waiting(self) -> int:
        """Input frames that lie before the engine now, 0 or 1."""
        with self._slots_lock:
            slot = self._slots.get("in:main")
            return slot.waiting if slot is not None and not self._ending else 0

    # --- telling ---

    @property
    def sent_revision(self) -> int:
        """The newest revision that this engine was told."""
        return self._revision

    def change(self, values: Mapping[str, Value], revision: int) -> None:
        """Send values (triggers as True); they show in the next frame offered after this call."""
        self.values.update({name: value for name, value in values.items() if name in self.values})
        self._revision = max(self._revision, revision)
        self._outbox.put(("change", dict(values), revision))

    def reset(self, how: ResetKind) -> None:
        self._outbox.put(("reset", how))

    def withdraw(self, role: Role) -> None:
        """The input ``role`` was switched off: its last frame is not to be used any more."""
        self._outbox.put(("withdraw", role))

    def ping(self) -> None:
        """Ask for a sign of life; ``pongs`` catches up with ``pings``."""
        self.pings += 1
        self._outbox.put(("ping", self.pings))

    def order_gpu_output(self, order: str, name: str, backend: str, options: Mapping[str, Any]) -> None:
        """``prepare``, ``take``, ``release`` or ``drop`` a sender in the engine's process."""
        self._outbox.put(("gpu_output", order, name, backend, dict(options)))

    # --- slots ---

    def _make_slots(self) -> None:
        width, height = self.size
        with self._slots_lock:
            for place in ("in:main", "out:generated", "out:control"):
                self._slots[place] = _create(place, width * height * 4)

    def _slot_for(self, place: str, size: int) -> SharedSlot | None:
        """The slot of ``place``, replaced by a larger one if ``size`` bytes do not fit."""
        with self._slots_lock:
            slot = self._slots.get(place)
            if self._ending or (slot is not None and size <= slot.capacity):
                return None if self._ending else slot
            made = self._slots[place] = _create(place, size)
            names = {at: other.name for at, other in self._slots.items()}
        self._outbox.put(("slots", names))
        if slot is not None:
            slot.close()
        return made

    def _names(self) -> dict[str, str]:
        with self._slots_lock:
            return {place: slot.name for place, slot in self._slots.items()}

    # --- the pipe ---

    def _write(self) -> None:
        """Send what is queued. Changes that pile up go as one, for an engine may be slow to read."""
        assert self._connection is not None
        try:
            while True:
                for message in _merged(self._queued()):
                    if message is None:
                        return
                    self._connection.send(message)
        except (OSError, ValueError):
            return  # the engine is gone; the reading thread says so

    def _queued(self) -> list[Message | None]:
        messages = [self._outbox.get()]
        while True:
            try:
                messages.append(self._outbox.get_nowait())
            except queue.Empty:
                return messages

    def _read(self) -> None:
        connection = self._connection
        assert connection is not None
        while True:
            try:
                message: Message = connection.recv()
            except (EOFError, OSError, TypeError):  # TypeError: closed by stop() while waiting
                break
            self._note(message)
        if self._ending:
            return
        if self._runner is not None and not self.in_process:
            self._runner.join(1.0)
        if self.state not in (EngineState.FAILED, EngineState.STOPPED):
            code = getattr(self._runner, "exitcode", None)
            self._fail(
                SdbridgeError("SDB-ENGINE-DIED", f"the engine process ended by itself ({say_exit(code)})")
            )

    def _fail(self, error: SdbridgeError) -> None:
        self.last_error = error
        self._on_event(self, "error", error)
        if self._track.move(EngineState.FAILED):
            self._on_event(self, "state", EngineState.FAILED)

    def _note(self, message: Message) -> None:
        word = message[0]
        if word == "state":
            self.spec = message[2].get("spec", self.spec)
            self.report = message[2].get("report", self.report)
            if message[1] == EngineState.STREAMING:
                self.took_ns = time.monotonic_ns() - self.began_ns
            if not self._ending and self._track.move(EngineState(message[1])):
                self._on_event(self, "state", self.state)
        elif word == "applied":
            self.applied_revision = message[1]
        elif word == "rejected":
            rejections: tuple[Rejection, ...] = message[1]
            self._on_event(self, "rejected", rejections)
        elif word == "progress":
            self.progress = message[1]
        elif word == "stats":
            self.stats, self.spec = message[1], message[2]
        elif word == "error":
            self.last_error = message[1]
            self._on_event(self, "error", message[1])
        elif word == "pong":
            self.pongs = message[1]
        elif word == "gpu_output":
            self.gpu_outputs[message[1]] = (message[2], message[3])
        elif word == "keepsake":
            self._keepsakes[message[1]] = message[2]
        elif word == "need_slot":
            self._slot_for(message[1], message[2])
        elif word == "log":
            logging.getLogger(message[2]).log(message[1], "%s", message[3])


def _create(place: str, size: int) -> SharedSlot:
    return SharedSlot.create(size, counting=place.startswith("out:"))


def _merged(messages: list[Message | None]) -> list[Message | None]:
    """``messages`` with neighbouring changes made one, as the engine would merge them anyway."""
    out: list[Message | None] = []
    for is_change, group in itertools.groupby(messages, lambda m: m is not None and m[0] == "change"):
        if is_change:
            changes = merge_changes([(m[1], m[2]) for m in group if m is not None])
            out.extend(("change", values, revision) for values, revision in changes)
        else:
            out.extend(group)
    return out


def wait_for_state(client: EngineClient, state: EngineState, timeout_s: float) -> bool:
    """Wait until ``client`` is in ``state``; for tests and benches, the bridge never waits."""
    deadline = time.monotonic() + timeout_s
    while client.state is not state and time.monotonic() < deadline:
        if client.state is EngineState.FAILED:
            return False
        time.sleep(0.005)
    return client.state is state
