"""The engine loop on a simulated host and device: time is a number, and every step is counted."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np

from sdbridge.engine.interface import EngineConfig, EngineSpec, EngineStats, WarmUpReport
from sdbridge.engine.loop import EngineLoop
from sdbridge.engine.told import EngineStart
from sdbridge.frame import Chunk, Frame
from sdbridge.parameters.table import TABLE
from sdbridge.slot import SharedSlot
from sdbridge.testing import FakeClock

MS = 1_000_000


class Timeline(FakeClock):
    """A fake clock on whose way events happen, each at its own time."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_ns = self.now_ns()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, ms: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.begin_ns + round(ms * MS), next(self._order), event))

    def next_ns(self) -> int | None:
        return self._events[0][0] if self._events else None

    def advance(self, seconds: float) -> None:
        self.go_to(self.now_ns() + round(seconds * 1e9))

    def go_to(self, target_ns: int) -> None:
        while self._events and self._events[0][0] <= target_ns:
            when, _, event = heapq.heappop(self._events)
            self._now_ns = max(self._now_ns, when)
            event()
        self._now_ns = max(self._now_ns, target_ns)


class SimulatedWake:
    """Set by the source; waiting moves time on to the next event or to the end of the wait."""

    def __init__(self, clock: Timeline) -> None:
        self._clock = clock
        self._set = False

    def set(self) -> None:
        self._set = True

    def wait(self, timeout_s: float) -> bool:
        end = self._clock.now_ns() + max(1, round(timeout_s * 1e9))  # a wait of nothing still takes time
        while not self._set and self._clock.now_ns() < end:
            upcoming = self._clock.next_ns()
            self._clock.go_to(end if upcoming is None else min(end, upcoming))
        was, self._set = self._set, False
        return was


class SimulatedInbox:
    own_process = False

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.waiting_changes: list[tuple[dict[str, object], int]] = []
        self.waiting_resets: list[str] = []
        self.sent: list[tuple[object, ...]] = []

    def send(self, *message: object) -> None:
        self.sent.append(message)

    def slots(self) -> None:
        return None

    def withdrawn(self) -> list[str]:
        return []

    def resets(self) -> list[str]:
        resets, self.waiting_resets = self.waiting_resets, []
        return resets

    def changes(self, revision: int, timeout_s: float) -> list[tuple[dict[str, object], int]]:
        changes, self.waiting_changes = self.waiting_changes, []
        return changes


class SimulatedEngine:
    """Spends ``host_ms`` in the call and ``device_ms`` on a device that does one tick after the other."""

    def __init__(self, config: EngineConfig) -> None:
        self.clock: Timeline = config.options["clock"]
        self.host_ms: float = config.options["host_ms"]
        self.device_ms: float = config.options["device_ms"]
        frames = config.options.get("chunk", 1)
        self.behind: int = config.options.get("behind", 0)  # a picture comes out so many ticks later
        self.inside: deque[Chunk] = deque()
        self.spec = EngineSpec("simulated", frames, frames, pipeline_ticks=self.behind)
        self.strength = 0.0
        self.device_free_ns = 0
        self.device_busy_ns = 0
        self.idle_ns: list[int] = []  # before each tick
        self.taken: list[int] = []
        self.resets: list[int] = []
        self.rested: list[int] = []  # at which it heard that there is nothing to do
        self.breaks: set[int] = set()  # frames whose tick fails on the device
        config.options["engines"].append(self)

    def load(self, values): ...

    def warm_up(self, width, height):
        return WarmUpReport(0, 0, "simulated", "uint8", "eager", "time is a number here")

    def apply(self, changes, revision):
        self.strength = changes.get("strength", self.strength)
        return ()

    def queue(self, chunk):
        """The host's part; gives when the device will be done."""
        if chunk is None:  # painted from the prompt alone
            grey = np.zeros((8, 8, 4), np.uint8)
            chunk = Chunk.of(Frame(grey, len(self.taken) + 1, self.clock.now_ns()))
        self.taken += [entry["main"].frame_id for entry in chunk.frames]
        # One picture a tick: several would be spread by a thread, which has no place in simulated time.
        made = Chunk(({"generated": self.paint(chunk.main)},))
        self.clock.advance(self.host_ms / 1e3)
        start = max(self.clock.now_ns(), self.device_free_ns)
        self.idle_ns.append(start - self.device_free_ns)
        self.device_free_ns = start + round(self.device_ms * MS)
        self.device_busy_ns += round(self.device_ms * MS)
        return made, self.device_free_ns

    def paint(self, frame: Frame) -> Frame:
        pixels = frame.pixels.copy()
        pixels[0, 0, 0] = round(self.strength * 255)
        return Frame(pixels, frame.frame_id, frame.received_at_ns)

    def finish(self, made, done_ns):
        self.clock.go_to(done_ns)
        if any(entry["generated"].frame_id in self.breaks for entry in made.frames):
            raise ValueError("the device broke")
        self.inside.append(made)
        return self.inside.popleft() if len(self.inside) > self.behind else None

    def tick(self, chunk):
        return self.finish(*self.queue(chunk))

    def rests(self):
        assert not getattr(self, "pending", 0)
        self.rested.append(self.clock.now_ns())

    def reset(self, how):
        self.resets.append(self.clock.now_ns())

    def flush(self):
        left = tuple(self.inside)
        self.inside.clear()
        return left

    def stats(self):
        return EngineStats()

    def unload(self): ...


class SimulatedOverlap(SimulatedEngine):
    """The same, with ``submit`` and ``collect``."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._queue: deque[tuple[Chunk, int]] = deque()
        self.highest_pending = 0
        self.submits: list[tuple[int, int]] = []  # when, and how many were pending from then on

    @property
    def pending(self) -> int:
        return len(self._queue)

    def submit(self, chunk):
        assert self.pending < getattr(self, "most_pending", 2)
        self.submits.append((self.clock.now_ns(), self.pending + 1))
        self._queue.append(self.queue(chunk))
        self.highest_pending = max(self.highest_pending, self.pending)

    def collect(self, wait):
        if not self._queue or not (wait or self._queue[0][1] <= self.clock.now_ns()):
            return None
        return self.finish(*self._queue.popleft())

    def tick(self, chunk):
        raise AssertionError("an engine that overlaps is not ticked by the loop")

    def reset(self, how):
        assert not self.pending
        super().reset(how)

    def unload(self):
        assert not self.pending


class Run:
    """A source every ``every_ms`` before the loop for ``last_ms``; what came out, with the time of each."""

    def __init__(
        self, every_ms: float, last_ms: float, *, host_ms=2.0, device_ms=5.0, overlap=True, chunk=1, behind=0
    ):
        self.clock = Timeline()
        self.inbox = SimulatedInbox()
        self.wake = SimulatedWake(self.clock)
        self.out: list[tuple[Frame, int]] = []
        self.offered = 0
        self.last_ms = last_ms
        self._slots = {place: SharedSlot.create(8 * 8 * 4) for place in ("in:main", "out:generated")}
        self._reader = SharedSlot.attach(self._slots["out:generated"].name)
        engines: list[SimulatedEngine] = []
        options = {"clock": self.clock, "host_ms": host_ms, "device_ms": device_ms}
        options |= {"chunk": chunk, "behind": behind, "engines": engines}
        kind = f"tests.engine.overlap_rig:{'SimulatedOverlap' if overlap else 'SimulatedEngine'}"
        values = {**TABLE.defaults(), "width": 8, "height": 8}
        names = {place: slot.name for place, slot in self._slots.items()}
        start = EngineStart(EngineConfig(kind=kind, options=options), values, 0, names)
        self.loop = EngineLoop(start, self.inbox, self.wake, self, self.clock)
        self._engines = engines
        # Frames come at odd fractions, so that nothing happens at the same instant by chance.
        for number in range(1, int(last_ms / every_ms)):
            self.clock.at(number * every_ms + 0.137, self._offer)
        self.clock.at(last_ms, self._stop)

    @property
    def engine(self) -> SimulatedEngine:
        return self._engines[0]

    def _offer(self) -> None:
        self.offered += 1
        pixels = np.full((8, 8, 4), self.offered % 251, np.uint8)
        self._slots["in:main"].write(Frame(pixels, self.offered, self.clock.now_ns()))
        self.wake.set()

    def _stop(self) -> None:
        self.inbox.stopping.set()
        self.wake.set()

    def set(self) -> None:
        """The loop says that a picture lies in the output slot."""
        frame = self._reader.take()
        if frame is not None:
            self.out.append((frame, self.clock.now_ns()))

    def go(self) -> Run:
        try:
            self.loop.run()
        finally:
            self.loop.close()
            self._reader.close()
            self.drops = self._slots["in:main"].drops
            for slot in self._slots.values():
                slot.close()
        return self

    @property
    def ids(self) -> list[int]:
        return [frame.frame_id for frame, _ in self.out]

    @property
    def latencies_ms(self) -> list[float]:
        return [(when - frame.received_at_ns) / MS for frame, when in self.out]

    def told(self, word: str) -> list[tuple[object, ...]]:
        return [message for message in self.inbox.sent if message[0] == word]
