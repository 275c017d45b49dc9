"""How the image engine is driven in a benchmark: what is new in each frame, and when each came out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdbridge.frame import Chunk, Frame
from sdbridge.parameters.parameter import Value

INPUTS = 16  # different pictures, so that no cache answers
IN_FLIGHT = 2  # chunks inside an engine that takes the next before it gave the last

Moves = Callable[[int], Mapping[str, Value]]


def moves(number: int) -> dict[str, Value]:
    """New embedding (blend of two prompts) and new noise (seed) for every chunk."""
    return {"prompt.2.weight": 0.1 + 0.8 * (number % 97) / 97, "seed.1.value": number % 1000}


def moves_with_lora(number: int) -> dict[str, Value]:
    """The same, and the first LoRA's fader."""
    return {**moves(number), "lora.1.weight": 0.2 + 0.6 * (number % 31) / 31}


@dataclass(frozen=True)
class Recipe:
    """What is painted: the values at the start, what moves with each chunk, and frames a chunk.

    ``endless`` says that a picture depends on all frames before it (feature bank, feedback), so that only a
    replay from the first one can give it again.
    """

    values: Mapping[str, Value]
    width: int = 512
    height: int = 512
    moves: Moves = moves
    endless: bool = False

    @property
    def rows(self) -> int:
        return int(self.values.get("frame_batch", 1))

    def start_values(self) -> dict[str, Value]:
        """All values that the engine is loaded with."""
        given: dict[str, Value] = {
            "prompt.1.text": "fire",
            "prompt.2.text": "ocean",
            "prompt_transition": 0.0,
        }
        return {**given, **self.values, "width": self.width, "height": self.height}


@dataclass
class Drive:
    """Gives chunk after chunk to one engine and notes when each came out, and the pictures asked for.

    Uses ``submit`` and ``collect`` where the engine has them, so that host and GPU work side by side as
    they do in the engine's loop, else ``tick``.
    """

    engine: Any
    recipe: Recipe
    wanted: frozenset[int] = frozenset()  # numbers of chunks whose pictures are kept
    number: int = 0  # of the next chunk
    out_at: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)  # what each chunk kept the host busy until queued
    wait_ms: list[float] = field(default_factory=list)  # and then waiting for the device
    kept: dict[int, np.ndarray] = field(default_factory=dict)  # picture by frame id
    coming: dict[int, Mapping[str, Value]] = field(default_factory=dict)  # what else moves, by chunk
    still: bool = False  # nothing moves but the picture

    def __post_init__(self) -> None:
        self._pixels = make_pixels(self.recipe.width, self.recipe.height)
        self.ahead = overlapping(self.engine)

    def run(
        self,
        chunks: int,
        seconds: float = float("inf"),
        at_least: int = 0,
        enough: Callable[[], bool] = lambda: False,
    ) -> list[float]:
        """Milliseconds a frame between chunks that came out, one for each of up to ``chunks`` chunks.

        ``enough`` is asked after each and may end it earlier.
        """
        self.finish()
        self._turn()
        began, start = time.perf_counter(), len(self.out_at)
        made = 0
        while made < chunks and (made < at_least or time.perf_counter() - began < seconds):
            self._turn()
            made += 1
            if enough():
                break
        self.finish()
        times = [began, *self.out_at[start:]]
        return [(b - a) * 1e3 / self.recipe.rows for a, b in itertools.pairwise(times)]

    def one(self) -> float:
        """One chunk alone, from pixels in memory to pixels in memory: milliseconds."""
        self.finish()
        self.engine.apply(self.recipe.moves(self.number), self.number + 1)
        chunk = self.chunk(self.number)
        began = time.perf_counter()
        if self.ahead:
            self.engine.submit(chunk)
            self._note(self.engine.collect(True))
        else:
            self._note(self.engine.tick(chunk))
        took = (time.perf_counter() - began) * 1e3
        self.number += 1
        return took

    def paced(self, fps: float, enough: Callable[[], bool]) -> list[float]:
        """Frames of a source slower than the engine, which rests between them, until ``enough``.

        Milliseconds of each from pixels in memory to pixels in memory.
        """
        times: list[float] = []
        due = time.perf_counter()
        while not enough():
            due = max(due + 1 / fps, time.perf_counter())
            times.append(self.one())
            self.engine.rests()
            time.sleep(max(0.0, due - time.perf_counter()))
        return times

    def tick(self) -> float:
        """One blocking tick, also where the engine could do better: milliseconds."""
        self.finish()
        began = time.perf_counter()
        self.engine.apply(self.recipe.moves(self.number), self.number + 1)
        self._note(self.engine.tick(self.chunk(self.number)))
        self.number += 1
        return (time.perf_counter() - began) * 1e3

    def finish(self) -> None:
        """Bring out what is still in flight."""
        while self.ahead and self.engine.pending:
            self._collect(0)

    def chunk(self, number: int) -> Chunk:
        """The pictures of chunk ``number``; ids count on from chunk to chunk."""
        rows = self.recipe.rows
        entries = []
        for offset in range(rows):
            frame_id = number * rows + offset
            entries.append({"main": Frame(self._pixels[frame_id % INPUTS], frame_id, time.monotonic_ns())})
        return Chunk(tuple(entries))  # type: ignore[arg-type]

    def _turn(self) -> None:
        if self.ahead:
            self._collect(getattr(self.engine, "most_pending", IN_FLIGHT) - 1)
        began = time.perf_counter()
        also = self.coming.pop(self.number, {})
        moved = {} if self.still else self.recipe.moves(self.number)
        self.engine.apply({**moved, **also}, self.number + 1)
        chunk = self.chunk(self.number)
        self.number += 1
        if self.ahead:
            self.engine.submit(chunk)
            queued = time.perf_counter()
            self._collect(IN_FLIGHT - 1)
            self.host_ms.append((queued - began) * 1e3)
            self.wait_ms.append((time.perf_counter() - queued) * 1e3)
        else:
            self._note(self.engine.tick(chunk))

    def _collect(self, leave: int) -> None:
        while self.engine.pending > leave:
            before = self.engine.pending
            self._note(self.engine.collect(True))
            if self.engine.pending >= before:
                return

    def _note(self, made: Chunk | None) -> None:
        self.out_at.append(time.perf_counter())
        for entry in made.frames if made is not None else ():
            frame = entry["generated"]
            if frame.frame_id // self.recipe.rows in self.wanted:
                self.kept[frame.frame_id] = frame.pixels.copy()  # its buffer may come again


def make_pixels(width: int, height: int) -> Sequence[np.ndarray]:
    """Pictures with large shapes and noise in them, all different."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(INPUTS):
        coarse = generator.integers(0, 256, (8, 8, 4), dtype=np.uint8)
        large = np.kron(coarse, np.ones((-(-height // 8), -(-width // 8), 1), np.uint8))[:height, :width]
        fine = generator.integers(0, 64, (height, width, 4), dtype=np.uint8)
        pixels = np.ascontiguousarray(large // 4 * 3 + fine)
        pixels[..., 3] = 255
        made.append(pixels)
    return made


def overlapping(engine: Any) -> bool:
    """Whether the engine takes the next chunk before it gave the last; to be asked after its warm-up."""
    return callable(getattr(engine, "submit", None))


def until_loaded(drive: Drive, timeout_s: float = 300.0) -> None:
    """Tick until nothing is loaded beside the stream any more (LoRA, ControlNet)."""
    end = time.perf_counter() + timeout_s
    while is_loading(drive.engine) and time.perf_counter() < end:
        drive.tick()


def until_settled(drive: Drive, timeout_s: float = 400.0) -> float:
    """Frames until nothing is loaded or made faster any more; the longest frame meanwhile, in ms."""
    end = time.perf_counter() + timeout_s
    longest = drive.tick()
    while (is_loading(drive.engine) or is_building(drive.engine)) and time.perf_counter() < end:
        longest = max(longest, drive.tick())
        if not is_loading(drive.engine) and not is_building(drive.engine):
            longest = max(longest, drive.tick())  # what just came may be a new shape to make faster
    return longest


def is_loading(engine: Any) -> bool:
    return any(getattr(extension, "loading", False) for extension in engine._extensions)


def is_building(engine: Any) -> bool:
    """Whether the acceleration still makes something faster beside the stream."""
    settled = getattr(engine.painter.acceleration, "settled", None)
    return settled is not None and not settled(0.0)
