"""The engine's side of the output slots: finished frames, several of one tick spread over its time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from sdbridge.clock import Clock
from sdbridge.engine.pipe import Wake
from sdbridge.frame import OUTPUT_ROLES, Chunk, Frame, Role
from sdbridge.slot import SharedSlot


class Outlet:
    """Writes finished frames and wakes the bridge.

    A slot holds one frame, so the frames of a chunk (or those flushed out of the pipe at its end)
    are written one after the other by a thread of their own, or only the last would be seen.
    """

    def __init__(self, clock: Clock, ready: Wake, outgrown: Callable[[str, int], None]) -> None:
        self._clock = clock
        self._ready = ready
        self._outgrown = outgrown
        self._slots: dict[Role, SharedSlot] = {}
        self._lock = threading.Lock()
        self._queue: deque[tuple[Mapping[Role, Frame], float]] = deque()
        self._arrival = threading.Condition()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False
        self.lent = False  # whether the engine writes its next pictures over those it gave

    def attach(self, names: Mapping[str, str]) -> None:
        """Open the output slots in ``names`` that are new."""
        for role in OUTPUT_ROLES:
            name = names.get(f"out:{role}")
            with self._lock:
                present = self._slots.get(role)
                if name is None or (present is not None and present.name.lstrip("/") == name.lstrip("/")):
                    continue
                try:
                    self._slots[role] = SharedSlot.attach(name, counting=False)
                except FileNotFoundError:
                    continue
                if present is not None:
                    present.close()

    def emit(self, chunk: Chunk, revision: int, spacing_s: float) -> None:
        """Publish every entry of ``chunk``, in order, ``spacing_s`` apart if there are several."""
        entries = [
            {role: replace(frame, revision=revision) for role, frame in entry.items() if role in OUTPUT_ROLES}
            for entry in chunk.frames
        ]
        if len(entries) == 1 and not self._busy():
            self._write(entries[0])
            return
        if self.lent:
            entries = [
                {role: replace(frame, pixels=frame.pixels.copy(), loan=None) for role, frame in entry.items()}
                for entry in entries
            ]
        with self._arrival:
            self._queue.extend((entry, spacing_s) for entry in entries)
            self._arrival.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
            self._thread.start()

    def _busy(self) -> bool:
        with self._arrival:
            return bool(self._queue) or self._writing

    def _run(self) -> None:
        while True:
            with self._arrival:
                self._writing = False
                self._arrival.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                self._writing = True
                entry, spacing_s = self._queue.popleft()
                behind = len(self._queue)
            self._write(entry)
            # A queue that grows means ticks come faster than they did: catch up gently.
            self._clock.sleep(spacing_s / 2 if behind > 8 else spacing_s)

    def _write(self, entry: Mapping[Role, Frame]) -> None:
        with self._lock:
            for role, frame in entry.items():
                slot = self._slots.get(role)
                if slot is None or not slot.fits(frame):
                    self._outgrown(f"out:{role}", frame.pixels.nbytes)
                else:
                    slot.write(frame)
        self._ready.set()

    def drop_waiting(self) -> None:
        """Forget frames that wait for their turn."""
        with self._arrival:
            self._queue.clear()

    def close(self) -> None:
        with self._arrival:
            self._closed = True
            self._queue.clear()
            self._arrival.notify_all()
        if self._thread is not None:
            self._thread.join(2.0)
        with self._lock:
            for slot in self._slots.values():
                slot.close()
            self._slots.clear()
