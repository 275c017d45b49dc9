"""What every engine promises: the Engine protocol, its states, and the values that cross the pipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, cast

from sdbridge.frame import Chunk
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

ResetKind = Literal["soft", "recache", "hard"]


class EngineState(StrEnum):
    """Where the engine stands. ``building`` is not a state: it is progress beside ``streaming``."""

    STOPPED = "stopped"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    STREAMING = "streaming"
    FAILED = "failed"


#: state -> states it may go to. Anything else is a bug and raises.
TRANSITIONS: Mapping[EngineState, frozenset[EngineState]] = {
    EngineState.STOPPED: frozenset({EngineState.LOADING}),
    EngineState.LOADING: frozenset({EngineState.WARMING_UP, EngineState.FAILED, EngineState.STOPPED}),
    EngineState.WARMING_UP: frozenset({EngineState.STREAMING, EngineState.FAILED, EngineState.STOPPED}),
    EngineState.STREAMING: frozenset({EngineState.FAILED, EngineState.STOPPED}),
    EngineState.FAILED: frozenset({EngineState.LOADING, EngineState.STOPPED}),
}


@dataclass(frozen=True)
class EngineSpec:
    """Fixed facts of a loaded engine, from which the bridge sizes its slots and states latency truthfully.

    ``chunk_in`` main frames make one tick (``first_in`` for the first); a tick gives ``chunk_out``
    frames (``first_out`` for the first). ``pipeline_ticks`` is how many ticks a frame stays inside
    (n - 1 for a stream batch of n). ``capabilities`` names groups of parameters that mean something
    here, such as ``controlnet``; the others are accepted and reported as unused once.
    """

    kind: str
    chunk_in: int = 1
    first_in: int = 1
    chunk_out: int = 1
    first_out: int = 1
    size_multiple: int = 8
    pipeline_ticks: int = 0
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WarmUpReport:
    """How long getting ready took, and on what the engine runs."""

    load_s: float
    warm_up_s: float
    device: str
    dtype: str
    acceleration: str
    why: str
    imports_s: float = 0.0  # of the libraries, in a process of its own; the engine loop knows


@dataclass(frozen=True)
class EngineStats:
    """Numbers of the last second, plain floats so that they cross the pipe cheaply. Times in ms."""

    tick_ms: float = 0.0
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    vram_mb: float = 0.0
    vram_total_mb: float = 0.0
    gpu_load: float = 0.0  # 0 to 1, of the whole card
    ticks: int = 0
    skipped: int = 0
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Long work under way: ``done`` of ``total`` (0 total: unknown), with time left if it can be told."""

    stage: str
    done: float
    total: float
    message: str = ""
    left_s: float | None = None


class Engine(Protocol):
    """One engine. All calls come from one thread, the engine loop; only ``tick`` is hot.

    ``load`` reads local files only and raises SdbridgeError with an SDB-MODEL or SDB-ENGINE code.
    ``apply`` takes accepted, coerced values; it refuses (never raises) what this model cannot do.
    ``tick`` takes a Chunk, or None when no input came (txt2img, or to drain the pipe), and gives
    the oldest finished Chunk, or None while the pipe fills.
    ``flush`` gives what is still inside, oldest first. ``unload`` frees everything.
    """

    spec: EngineSpec

    def load(self, values: Mapping[str, Value]) -> None: ...
    def warm_up(self, width: int, height: int) -> WarmUpReport: ...
    def apply(self, changes: Mapping[str, Value], revision: int) -> tuple[Rejection, ...]: ...
    def tick(self, chunk: Chunk | None) -> Chunk | None: ...
    def reset(self, how: ResetKind) -> None: ...
    def flush(self) -> tuple[Chunk, ...]: ...
    def stats(self) -> EngineStats: ...
    def unload(self) -> None: ...


#: Ticks that an overlapping engine may have under way: one at work, one prepared behind it.
MOST_PENDING = 2


class OverlappingEngine(Engine, Protocol):
    """An engine whose device works on one frame while the host prepares the next. This pair is optional.

    An engine offers it by having a callable ``submit`` once ``warm_up`` is done (so it may decide by
    the device that it found); ``tick`` stays for everybody else. All calls come from one thread.

    ``submit`` reads the chunk's pixels to their end, queues the tick and returns without waiting for
    the device. Parameters are those that ``apply`` gave before; an ``apply`` between a ``submit`` and
    its ``collect`` concerns later ticks only. At most ``MOST_PENDING`` ticks are pending.
    ``collect`` takes the oldest tick out and gives what it made: a Chunk, or None while the pipe
    fills. With ``wait`` it waits for the device; without, a tick that is not finished stays where
    it is (None, and ``pending`` as before). Ticks come out in the order they were submitted.
    A ``submit`` that raises has queued nothing; a ``collect`` that raises has taken its tick out.
    ``pending`` counts ticks submitted and not collected. ``tick``, ``reset``, ``flush`` and
    ``unload`` are called with none pending.
    An engine may have an attribute ``most_pending``, asked before each ``submit``: how many ticks may be
    pending just now, where less than ``MOST_PENDING`` would keep frames from waiting for something else.

    Two more promises an engine may make, as attributes that are True, whichever way it ticks:
    ``keeps_no_frames`` (input pixels are read within ``tick`` or ``submit`` only, so the loop lends
    them from shared memory instead of copying) and ``lends_pictures`` (the pixels of a chunk it gave
    may change with its next call, so the loop copies what it keeps for longer; then the engine can
    use the same pinned buffers again, and the one copy is the one into shared memory).

    And one wish: an engine with an attribute ``gpu_output`` (None at first) finds a callable there
    after ``warm_up``. It calls it with each picture's uint8 RGBA tensor ``[H, W, 4]`` on the device,
    as soon as the work that makes it is queued on the current stream; it costs a copy on the device
    while a sender of this process shows the pictures, and next to nothing otherwise.

    An engine that may hold a value back for some frames, because what it needs is still being made, has an
    attribute ``shows_up_to``: the revision up to which all values are in the newest tick, None when all that
    were given are. ``frame_edge`` takes up what can be, without a tick, so that this is known before one.

    An engine with ``rests()`` hears when it has nothing to do: no tick is pending, and no frame is there for
    one. What it makes beside its frames need not keep out of their way then.

    An engine that has what no parameter says, such as a picture grabbed from the input, has ``keepsakes()``,
    bytes by name, asked once a second, and ``remember(keepsakes)``, called before ``load`` with those of the
    engine whose place it takes, even of one that crashed.
    """

    @property
    def pending(self) -> int: ...
    def submit(self, chunk: Chunk | None) -> None: ...
    def collect(self, wait: bool) -> Chunk | None: ...


def overlapping(engine: Engine) -> OverlappingEngine | None:
    """``engine`` as one that overlaps, if it does; ask after ``warm_up``."""
    return cast(OverlappingEngine, engine) if callable(getattr(engine, "submit", None)) else None


@dataclass(frozen=True)
class EngineConfig:
    """What the bridge tells a new engine, besides parameter values. Paths are local and exist.

    ``kind`` is a name in ``engine/registry.py``. ``options`` is the rest of the config's ``engine``
    section, for kinds that need more.
    """

    kind: str = "image"
    model: str = ""
    device: str = "auto"
    dtype: str = "auto"
    vae: str = "auto"
    acceleration: str = "auto"
    attention: str = "auto"
    threads: int = 0
    options: Mapping[str, object] = field(default_factory=dict)
