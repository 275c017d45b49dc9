"""Which engine runs, which one gets ready beside it, and how the second takes over from the first."""

from __future__ import annotations

import logging
import threading

from sdbridge.engine.client import EngineClient
from sdbridge.engine.interface import EngineState, ResetKind
from sdbridge.frame import Frame, Role

log = logging.getLogger(__name__)


class Succession:
    """At most two engines at a time. ``offer`` and ``take`` never wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards client and incoming, for moments
        self._newest: dict[Role, Frame] = {}  # for an engine that starts while its source stands still
        self._newest_ns = 0  # when the input of the newest picture that was taken came in
        self._dropped_before = 0  # by engines that are gone
        self._retiring: list[threading.Thread] = []
        self.client: EngineClient | None = None
        self.incoming: EngineClient | None = None

    @property
    def clients(self) -> list[EngineClient]:
        with self._lock:
            return [client for client in (self.incoming, self.client) if client is not None]

    @property
    def state(self) -> EngineState | None:
        """Of the engine that runs; None without one."""
        client = self.client
        return client.state if client is not None else None

    @property
    def dropped(self) -> int:
        """Input frames that were replaced before any engine took them."""
        client = self.client
        return self._dropped_before + (client.dropped if client is not None else 0)

    @property
    def retiring(self) -> bool:
        """Whether an engine is still on its way out."""
        return any(thread.is_alive() for thread in self._retiring)

    # --- frames ---

    def offer(self, role: Role, frame: Frame) -> None:
        """Put an input frame before the engine, and before the one that gets ready."""
        self._newest[role] = frame
        for client in (self.client, self.incoming):
            if client is not None:
                client.offer(role, frame)

    def withdraw(self, role: Role) -> None:
        """Nothing is offered as ``role`` any more."""
        self._newest.pop(role, None)
        for client in self.clients:
            client.withdraw(role)

    def greet(self, client: EngineClient) -> None:
        """Give an engine that begins to stream the newest frames, should their source stand still."""
        for role, frame in list(self._newest.items()):
            client.offer(role, frame)

    def take(self, role: Role) -> Frame | None:
        """The newest finished frame, once and lent. With the first one of a new engine that one takes over.

        It lies in the engine's slot and stays as it is until the next ``take``, whatever becomes of
        the engine.
        """
        incoming = self.incoming
        if incoming is not None and role == "generated":
            frame = incoming.borrow(role)
            if frame is not None:
                self.take_over(incoming)
                # It may have begun with an input that the old engine had painted: time never goes back.
                return frame if frame.received_at_ns >= self._newest_ns else None
        client = self.client
        frame = client.borrow(role) if client is not None else None
        if frame is not None and role == "generated":
            self._newest_ns = max(self._newest_ns, frame.received_at_ns)
        return frame

    def reset(self, how: ResetKind) -> None:
        for client in self.clients:
            client.reset(how)

    # --- coming and going ---

    def install(self, client: EngineClient) -> None:
        """``client`` runs, in nobody's place."""
        with self._lock:
            self.client = client

    def announce(self, client: EngineClient) -> None:
        """``client`` gets ready beside the one that runs."""
        with self._lock:
            self.incoming = client

    def take_over(self, incoming: EngineClient) -> None:
        """The one that got ready runs now; the one before it is retired."""
        with self._lock:
            if self.incoming is not incoming:
                return
            old, self.client, self.incoming = self.client, incoming, None
            self._dropped_before += old.dropped if old is not None else 0
        log.info("the new engine has taken over")
        if old is not None:
            self._retire(old)

    def retire_incoming(self) -> None:
        with self._lock:
            client, self.incoming = self.incoming, None
        if client is not None:
            self._retire(client)

    def retire_current(self, within_s: float | None = None) -> None:
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

    def stop(self) -> None:
        """End every engine and wait for that."""
        for client in self.clients:
            client.stop()
        for thread in self._retiring:
            thread.join(10.0)

    def kill(self) -> None:
        """End every engine at once, by force."""
        for client in self.clients:
            client.kill()
            client.stop(timeout_s=0.0)
