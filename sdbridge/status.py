"""The numbers now: one snapshot that the page, the HTTP API, OSC topics and ``--summary`` share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class LatencyMs:
    """Input received to output sent, over the last seconds."""

    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True)
class SourceStatus:
    """One input or output texture as people see it."""

    role: str
    backend: str
    name: str
    line: str
    connected: bool = False
    width: int = 0
    height: int = 0
    fps: float = 0.0


@dataclass(frozen=True)
class ProgressStatus:
    """Long work under way (a load, a build, a download), for the bar on the page."""

    stage: str
    done: float
    total: float
    message: str = ""
    left_s: float | None = None


@dataclass(frozen=True)
class ToldError:
    """One of ``Status.errors``: the same line told again has a new ``number``, and is young again."""

    text: str
    number: int
    age_s: float


@dataclass(frozen=True)
class Status:
    """Everything that changes by itself. ``state`` is the engine's, ``output`` the bridge's own.

    ``fps`` counts what is sent, ``fps_new`` what of it was newly painted: the rest are repeats.
    """

    state: str = "stopped"
    output: str = "holding"
    frames_in: int = 0
    frames_out: int = 0
    dropped: int = 0
    held: int = 0
    fps: float = 0.0
    fps_new: float = 0.0
    fps_in: float = 0.0
    latency_ms: LatencyMs = LatencyMs()
    applied_revision: int = 0
    revision: int = 0
    errors: tuple[str, ...] = ()
    errors_told: tuple[ToldError, ...] = ()
    uptime_s: float = 0.0
    engine_kind: str = ""
    engine_line: str = ""
    model: str = ""
    device: str = ""
    engine_start_s: dict[str, float] = field(default_factory=dict)
    tick_ms: float = 0.0
    parts_ms: dict[str, float] = field(default_factory=dict)
    vram_mb: float = 0.0
    vram_total_mb: float = 0.0
    gpu_load: float = 0.0
    queue: int = 0
    pipeline_ticks: int = 0
    restarts: int = 0
    safe_mode: bool = False
    unused: tuple[str, ...] = ()
    inputs: tuple[SourceStatus, ...] = ()
    outputs: tuple[SourceStatus, ...] = ()
    progress: tuple[ProgressStatus, ...] = ()
    fading: bool = False
    preset: str = ""
    cue: str = ""
    cue_follows: bool = False
    version: str = ""
    schema: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain values for JSON edges."""
        return asdict(self)
