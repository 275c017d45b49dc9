"""The engine's side of the pipe: reads all the time, answers pings, keeps changes for the frame edge."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from sdbridge.engine.interface import ResetKind
from sdbridge.engine.pipe import Message, Wake
from sdbridge.frame import Role
from sdbridge.parameters.parameter import Value

#: Seconds that an engine deep in a call has to leave by itself once it was told to stop.
GRACE_S = 5.0


class Inbox:
    """Everything the bridge says, sorted. The reading thread does nothing else, so a pong means
    that the process lives, and frames that come out mean that the engine works."""

    def __init__(self, connection: Connection, wake: Wake, received: int, *, own_process: bool) -> None:
        self._connection = connection
        self._wake = wake
        self.own_process = own_process
        self._sending = threading.Lock()
        self._arrival = threading.Condition()
        self._changes: deque[tuple[Mapping[str, Value], int]] = deque()
        self._resets: deque[ResetKind] = deque()
        self._withdrawn: deque[Role] = deque()
        self._slots: Mapping[str, str] | None = None
        self._received = received
        #: Called here in the reading thread, so that a long tick does not keep it waiting.
        self.on_gpu_output: Callable[..., None] = lambda *order: None
        self.stopping = threading.Event()
        self.finished = threading.Event()
        threading.Thread(target=self._read, name="engine-inbox", daemon=True).start()

    def send(self, *message: object) -> None:
        """Tell the bridge; silent if it is gone, since the reading thread notices that."""
        try:
            with self._sending:
                self._connection.send(message)
        except (OSError, ValueError):
            self.stopping.set()

    def slots(self) -> Mapping[str, str] | None:
        """The slots announced since the last call, if any were."""
        with self._arrival:
            slots, self._slots = self._slots, None
            return slots

    def resets(self) -> list[ResetKind]:
        with self._arrival:
            resets = list(self._resets)
            self._resets.clear()
            return resets

    def withdrawn(self) -> list[Role]:
        """The inputs that were switched off since the last call."""
        if not self._withdrawn:
            return []
        with self._arrival:
            roles = list(self._withdrawn)
            self._withdrawn.clear()
            return roles

    def changes(self, revision: int, timeout_s: float) -> list[tuple[Mapping[str, Value], int]]:
        """All changes so far, and surely those up to ``revision``, which the frame at hand was sent after."""
        with self._arrival:
            self._arrival.wait_for(lambda: self._received >= revision or self.stopping.is_set(), timeout_s)
            changes = list(self._changes)
            self._changes.clear()
            return changes

    def _read(self) -> None:
        try:
            while not self.stopping.is_set():
                self._sort(self._connection.recv())
        except (EOFError, OSError):
            pass  # the bridge is gone: leave too
        self.stopping.set()
        self._wake.set()
        with self._arrival:
            self._arrival.notify_all()
        if self.own_process and not self.finished.wait(GRACE_S):
            logging.getLogger(__name__).warning("the engine did not stop within %g s: leaving", GRACE_S)
            os._exit(1)

    def _sort(self, message: Message) -> None:
        word = message[0]
        if word == "ping":
            self.send("pong", message[1])
            return
        if word == "gpu_output":
            self.on_gpu_output(*message[1:])
            return
        with self._arrival:
            if word == "change":
                self._changes.append((message[1], message[2]))
                self._received = max(self._received, message[2])
            elif word == "reset":
                self._resets.append(message[1])
            elif word == "withdraw":
                self._withdrawn.append(message[1])
            elif word == "slots":
                self._slots = message[1]
            elif word == "stop":
                self.stopping.set()
            self._arrival.notify_all()
        self._wake.set()
