"""Fakes that keep the contracts, for our tests and for those of other people's backends and engines."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from sdbridge.config import OutputConfig, TextureConfig
from sdbridge.engine.interface import (
    MOST_PENDING,
    EngineConfig,
    EngineSpec,
    EngineStats,
    ResetKind,
    WarmUpReport,
)
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection
from sdbridge.textures.stub import Option, Receiver, Sender, Source
from sdbridge.textures.supply import Textures


class FakeClock:
    """Time that stands still until told otherwise; sleeping moves it on."""

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)


def numbered_picture(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """A picture that carries ``number`` in its first pixels and in every other, so that a mix shows."""
    pixels = np.full((height, width, 4), number % 251, np.uint8)
    pixels[0, 0] = (number & 255, number >> 8 & 255, number >> 16 & 255, 255)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The number that ``numbered_picture`` wrote."""
    red, green, blue = (int(part) for part in pixels[0, 0, :3])
    return red | green << 8 | blue << 16


class FakeReceiver(Receiver):
    """Gives numbered pictures at ``fps``, or what ``pictures`` gives; can lose its source and break.

    Options: ``fps`` (0 gives frames only through ``push``), ``width``, ``height``.
    """

    def __init__(self, name: str = "fake", options: Mapping[str, Option] = MappingProxyType({})) -> None:
        super().__init__(name, options)
        self.fps = float(options.get("fps", 60.0))
        self.width = int(options.get("width", 64))
        self.height = int(options.get("height", 64))
        self.number = 0
        self.is_open = False
        self.present = True
        self.broken: Exception | None = None
        self._due = 0.0
        self._pushed: deque[np.ndarray] = deque()
        self._arrival = threading.Condition()

    @classmethod
    def list_sources(cls) -> tuple[Source, ...]:
        return (Source("fake", "numbered pictures"),)

    def open(self) -> None:
        self.is_open = True
        self._due = time.monotonic()

    def push(self, pixels: np.ndarray) -> None:
        """Have the next ``receive`` give ``pixels``, whatever they are."""
        with self._arrival:
            self._pushed.append(pixels)
            self._arrival.notify()

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if self.broken is not None:
            raise self.broken
        with self._arrival:
            if self.fps <= 0 or not self.present:
                self._arrival.wait_for(lambda: bool(self._pushed), timeout_s)
            if self._pushed:
                return self._pushed.popleft()
        if self.fps <= 0 or not self.present:
            return None
        wait_s = self._due - time.monotonic()
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return None
        time.sleep(max(0.0, wait_s))
        self._due = max(self._due + 1 / self.fps, time.monotonic() - 1 / self.fps)
        self.number += 1
        return numbered_picture(self.number, self.width, self.height)

    @property
    def connected(self) -> bool:
        return self.is_open and self.present

    def describe(self) -> str:
        return f"fake {self.name}, {self.width}x{self.height} at {self.fps:g} fps"

    def close(self) -> None:
        self.is_open = False


class FakeSender(Sender):
    """Keeps the newest frames it was given, with the time of each; can break."""

    def __init__(self, name: str = "fake", options: Mapping[str, Option] = MappingProxyType({})) -> None:
        super().__init__(name, options)
        self.frames: deque[Frame] = deque(maxlen=int(options.get("keep", 1000)))
        self.abouts: deque[Mapping[str, str]] = deque(maxlen=int(options.get("keep", 1000)))
        self.times: deque[float] = deque(maxlen=100_000)
        self.is_open = False
        self.opened = 0
        self.broken: Exception | None = None
        self._arrival = threading.Condition()

    def open(self) -> None:
        self.is_open = True
        self.opened += 1

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self.broken is not None:
            raise self.broken
        with self._arrival:
            self.frames.append(frame)
            self.abouts.append(about)
            self.times.append(time.monotonic())
            self._arrival.notify_all()

    def wait_for(self, wanted: Callable[[Frame, Mapping[str, str]], bool], timeout_s: float = 60.0) -> Frame:
        """The first frame from now on that is ``wanted``. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._arrival:
            seen = self.frames[-1] if self.frames else None
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no wanted frame in {timeout_s} s; the last was {seen}")
                self._arrival.wait(left)
                if self.frames and self.frames[-1] is not seen:
                    seen = self.frames[-1]
                    if wanted(seen, self.abouts[-1]):
                        return seen

    @property
    def receivers(self) -> int:
        return 1

    def describe(self) -> str:
        return f"fake {self.name}"

    def close(self) -> None:
        self.is_open = False


class FakeTextures(Textures):
    """Hands out the fakes given, by role and by index, whatever the config names."""

    def __init__(self, receivers: Mapping[str, Receiver], senders: Sequence[Sender]) -> None:
        super().__init__()
        self.receivers = dict(receivers)
        self.senders = list(senders)
        self._given = 0

    def receiver(self, config: TextureConfig) -> tuple[str, Receiver]:
        return "fake", self.receivers[config.name or "main"]

    def sender(self, config: OutputConfig, default_name: str) -> tuple[str, Sender]:
        if config.name in ("", default_name):
            return "fake", self.senders[0]
        return "fake", next(sender for sender in self.senders if sender.name == config.name)

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        return [("fake", True, "a fake runs everywhere")]

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        return [("fake", "numbered pictures")]


class FakeEngine:
    """An engine without a model: inverts the colours and paints parameters where tests can read them.

    Pixel (0, 1) holds strength in its red (0 to 255), the first seed in its green and the number of
    triggers so far in its blue. Options in the config's ``engine.options``: ``pipeline`` ticks that
    a frame stays inside, ``load_s``, ``tick_s``.
    """

    def __init__(self, config: EngineConfig) -> None:
        options = config.options
        self.spec = EngineSpec(kind="fake", pipeline_ticks=int(str(options.get("pipeline", 0))))
        self._load_s = float(str(options.get("load_s", 0.0)))
        self._tick_s = float(str(options.get("tick_s", 0.0)))
        self._values: dict[str, Value] = {}
        self._inside: deque[Frame] = deque()
        self._made = 0
        self.triggers: list[str] = []

    def load(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        time.sleep(self._load_s)

    def warm_up(self, width: int, height: int) -> WarmUpReport:
        return WarmUpReport(self._load_s, 0.0, "cpu", "uint8", "eager", "the fake engine computes little")

    def apply(self, changes: Mapping[str, Value], revision: int) -> tuple[Rejection, ...]:
        self.triggers += [name for name in changes if name not in self._values]
        self._values.update({name: value for name, value in changes.items() if name in self._values})
        return ()

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        return self._work(chunk, self._values, len(self.triggers))

    def _work(self, chunk: Chunk | None, values: Mapping[str, Value], triggers: int) -> Chunk | None:
        if self._tick_s:
            time.sleep(self._tick_s)
        if chunk is None:
            size = int(values["height"]), int(values["width"])
            chunk = Chunk.of(Frame(np.zeros((*size, 4), np.uint8), self._made, time.monotonic_ns()))
        self._made += 1
        self._inside.append(chunk.main)
        if len(self._inside) <= self.spec.pipeline_ticks:
            return None
        return _generated(self._paint(self._inside.popleft(), values, triggers))

    def _paint(self, frame: Frame, values: Mapping[str, Value], triggers: int) -> Frame:
        pixels = frame.pixels.copy()
        pixels[1:, :, :3] = 255 - pixels[1:, :, :3]
        strength, seed = float(values.get("strength", 0.0)), int(values.get("seed.1.value", 0))
        if values.get("post.upscale") == "2x":
            pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
        pixels[0, 1] = (round(strength * 255), seed % 256, triggers % 256, 255)
        return Frame(pixels, frame.frame_id, frame.received_at_ns)

    def reset(self, how: ResetKind) -> None:
        self._inside.clear()

    def flush(self) -> tuple[Chunk, ...]:
        triggers = len(self.triggers)
        chunks = tuple(_generated(self._paint(frame, self._values, triggers)) for frame in self._inside)
        self._inside.clear()
        return chunks

    def stats(self) -> EngineStats:
        return EngineStats(unused=("clip_skip",))

    def unload(self) -> None:
        self._inside.clear()


class FakeChunkEngine(FakeEngine):
    """Takes and gives four frames a tick, as causal video models do; the first tick takes one."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.spec = EngineSpec(
            kind="fake_chunks", chunk_in=4, first_in=1, chunk_out=4, first_out=1, size_multiple=16
        )

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        if chunk is None:
            return None
        if self._tick_s:
            time.sleep(self._tick_s)
        entries: list[Mapping[Role, Frame]] = []
        for entry in chunk.frames:
            painted = self._paint(entry["main"], self._values, len(self.triggers))
            entries.append(MappingProxyType({"generated": painted}))
        return Chunk(tuple(entries))

    def flush(self) -> tuple[Chunk, ...]:
        return ()


class FakeOverlapEngine(FakeEngine):
    """The fake engine with a device: a thread that works its queue off while the host goes on.

    It makes every promise of ``interface.OverlappingEngine`` and takes it at its word: frames are read
    in ``submit`` only, and the picture it gave last is spoilt at its next call. The prompt ``raise``
    breaks the tick on the device, which shows at ``collect``.
    """

    keeps_no_frames = True
    lends_pictures = True

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="fake-device")
        self._queue: deque[Future[Chunk | None]] = deque()
        self._given: Chunk | None = None

    @property
    def pending(self) -> int:
        return len(self._queue)

    def submit(self, chunk: Chunk | None) -> None:
        assert self.pending < MOST_PENDING
        self._spoil()
        if chunk is not None:  # the host's part: all that is read of the frame is read now
            chunk = Chunk.of(replace(chunk.main, pixels=chunk.main.pixels.copy(), loan=None))
        told = dict(self._values), len(self.triggers)
        self._queue.append(self._device.submit(self._on_device, chunk, *told))

    def collect(self, wait: bool) -> Chunk | None:
        self._spoil()
        if not self._queue or not (wait or self._queue[0].done()):
            return None
        self._given = self._queue.popleft().result()
        return self._given

    def _on_device(self, chunk: Chunk | None, values: Mapping[str, Value], triggers: int) -> Chunk | None:
        if values.get("prompt.1.text") == "raise":
            raise ValueError("the device was told to raise")
        return self._work(chunk, values, triggers)

    def _spoil(self) -> None:
        given, self._given = self._given, None
        for entry in given.frames if given is not None else ():
            entry["generated"].pixels[:] = 0

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        assert not self.pending
        self._spoil()
        return super().tick(chunk)

    def reset(self, how: ResetKind) -> None:
        assert not self.pending
        super().reset(how)

    def flush(self) -> tuple[Chunk, ...]:
        assert not self.pending
        return super().flush()

    def unload(self) -> None:
        assert not self.pending
        self._device.shutdown(wait=True)
        super().unload()


class FaultyEngine(FakeEngine):
    """Breaks as the prompt says: ``raise`` each frame, ``oom``, ``exit`` the process, ``hang`` in a tick.

    Options: ``load_error`` is a code raised by ``load`` when the model's name is ``bad``.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._model = config.model

    def load(self, values: Mapping[str, Value]) -> None:
        super().load(values)
        if self._model == "bad":
            raise SdbridgeError("SDB-ENGINE-FAULT", "the model 'bad' cannot be loaded")
        if self._model == "oom":
            raise SdbridgeError("SDB-ENGINE-OOM", "no room for the model 'oom'")

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        how = str(self._values.get("prompt.1.text", ""))
        if how == "raise":
            raise ValueError("the engine was told to raise")
        if how == "oom":
            raise MemoryError("the engine was told to run out of memory")
        if how == "exit":
            os._exit(7)
        while how == "hang":
            time.sleep(0.1)
        return super().tick(chunk)


def _generated(frame: Frame) -> Chunk:
    return Chunk((MappingProxyType({"generated": frame}),))
