"""Which of several ways to compute a layer is the fastest on this card? Measured once, remembered in a file.

Timing is as in a frame: many calls in one CUDA graph, each with other weights, so that they come from memory
and not from the L2 cache (a frame streams all of the model's weights through it). Never inside a frame: a
choice that was not measured yet is left to the layer's own default.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sdbridge.errors import first_line

log = logging.getLogger(__name__)

_FORMAT = 1
_MOST_CALLS = 256  # in one graph
_LEAST_CALLS = 16  # enough to see who is far behind
_FINALISTS = 10
_REPLAYS = 5


class Tunable(Protocol):
    """A layer's problem: what can solve it, and calls to time."""

    @property
    def key(self) -> str:
        """What the choice is remembered under."""

    @property
    def weight_bytes(self) -> int:
        """What one call reads of weights."""

    def candidates(self) -> tuple[str, ...]:
        """Every way worth timing."""

    def allowed(self, candidate: str) -> bool:
        """Whether a name read from a file is a way of this problem."""

    def agrees(self, device: torch.device, candidate: str) -> bool:
        """Whether the candidate's answer on this card is right."""

    def bind(
        self, device: torch.device, slab: Tensor, copies: int
    ) -> Callable[[str], list[Callable[[], object]]]:
        """For a candidate, ``copies`` calls, each with other weights out of the flat random ``slab``."""


@dataclass(frozen=True)
class Timing:
    """One candidate's time, with its share of the gaps between kernels."""

    candidate: str
    microseconds: float


@dataclass(frozen=True)
class Progress:
    """How far a tuning is: problems done, all of them, and what was found last."""

    done: int
    total: int
    key: str
    best: Timing | None


def identity_of(device: torch.device) -> dict[str, str]:
    """What a measured choice holds for: card, driver, torch, Triton and the kernels' source."""
    try:
        from importlib.metadata import version

        triton_version = version("triton")
    except ImportError:  # PackageNotFoundError is one
        triton_version = "none"
    return {
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "driver": _driver(device),
        "torch": torch.__version__,
        "triton": triton_version,
        "source": source_hash(),
    }


def source_hash() -> str:
    """Hash of the kernels' Python files: a changed kernel is measured anew."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


class Tuner:
    """Remembers the fastest candidate of each problem in ``file`` (None: only while it lives)."""

    def __init__(
        self,
        file: Path | None,
        identity: dict[str, str],
        measure: Callable[[Tunable, torch.device], list[Timing]] | None = None,
    ) -> None:
        self._measure = measure or time_candidates
        self._file = file
        self._identity = dict(identity)
        self._choices: dict[str, str] = {}
        self._unkept = False  # it could not be written
        if file is not None:
            self._choices = _read(file, self._identity)

    def choice(self, problem: Tunable) -> str | None:
        """What was measured for this problem, or None. Cheap enough for a frame."""
        found = self._choices.get(problem.key)
        return found if found is not None and problem.allowed(found) else None

    @property
    def choices(self) -> dict[str, str]:
        """All that was measured: problem by problem the fastest way."""
        return dict(self._choices)

    def tune(
        self,
        problems: Iterable[Tunable],
        device: torch.device,
        progress: Callable[[Progress], None] = lambda _: None,
        *,
        again: bool = False,
    ) -> dict[str, list[Timing]]:
        """Time every candidate of each problem not known yet (all with ``again``); remember the fastest.

        Takes seconds per problem and the whole card. Returns all timings, the fastest first.
        """
        wanted = list({p.key: p for p in problems if again or self.choice(p) is None}.values())
        measured: dict[str, list[Timing]] = {}
        for done, problem in enumerate(wanted, 1):
            timings = self._measure(problem, device)
            measured[problem.key] = timings
            if timings:
                self._choices[problem.key] = timings[0].candidate
                self._keep()  # one by one: who breaks off loses nothing
            progress(Progress(done, len(wanted), problem.key, timings[0] if timings else None))
        return measured

    def _keep(self) -> None:
        if self._file is None or self._unkept:
            return
        try:
            _write(self._file, self._identity, self._choices)
        except OSError as error:
            self._unkept = True
            log.warning("measured kernel choices cannot be kept in %s (%s)", self._file, error)


def time_candidates(
    problem: Tunable,
    device: torch.device,
    candidates: Sequence[str] = (),
    slab: Tensor | None = None,
    threads: int = 0,
) -> list[Timing]:
    """Times of the candidates (all of the problem's) that run here, the fastest first.

    All run a little; the best ten, and the first named, run long. ``slab`` is flat random float16, larger
    than the L2 cache, when the caller keeps one.
    """
    slab = random_slab(device) if slab is None else slab
    candidates = candidates or problem.candidates()
    bound = problem.bind(device, slab, _copies(problem.weight_bytes, slab.nbytes))

    def timed(names: Iterable[str], calls: int, replays: int) -> list[Timing]:
        timings = []
        for name in names:
            try:
                timings.append(Timing(name, _time_us(bound(name)[:calls], replays)))
            except refusals() as error:  # too much shared memory, say: another will do
                log.info("%s: %s does not run (%s)", problem.key, name, first_line(error, 160, kind=True))
        return sorted(timings, key=lambda timing: timing.microseconds)

    quick = timed(compile_candidates(bound, candidates, threads), _LEAST_CALLS, 2)
    finalists = [timing.candidate for timing in quick[:_FINALISTS]]
    if candidates[0] not in finalists and any(timing.candidate == candidates[0] for timing in quick):
        finalists.append(candidates[0])  # the plainest way, for comparison
    return timed((name for name in finalists if _right(problem, device, name)), _MOST_CALLS, _REPLAYS)


def _right(problem: Tunable, device: torch.device, candidate: str) -> bool:
    with torch.inference_mode():
        right = problem.agrees(device, candidate)
    if not right:
        log.warning("%s: %s gives wrong numbers on this card; it is left out", problem.key, candidate)
    return right


def compile_candidates(
    bound: Callable[[str], list[Callable[[], object]]], candidates: Sequence[str], threads: int = 0
) -> list[str]:
    """Run each candidate once, which compiles it; in threads, since ptxas and LLVM work outside the GIL."""
    stream = torch.cuda.current_stream()

    def first(candidate: str) -> str | None:
        try:
            with torch.cuda.stream(stream), torch.inference_mode():
                bound(candidate)[0]()
        except refusals() as error:
            log.info("%s does not compile (%s)", candidate, first_line(error, 160, kind=True))
            return None
        return candidate

    with ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
        return [name for name in pool.map(first, candidates) if name is not None]


def _time_us(calls: list[Callable[[], object]], replays: int) -> float:
    """Median over replays of a graph of all calls, by the call."""
    with torch.inference_mode():
        calls[0]()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        times = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times) * 1000 / len(calls)


def random_slab(device: torch.device) -> Tensor:
    """Random float16 weights of twice the L2 cache's size."""
    cache_bytes = int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 50 << 20
    return torch.randn(cache_bytes, device=device, dtype=torch.float32).mul_(0.05).to(torch.float16)


def _copies(weight_bytes: int, slab_bytes: int) -> int:
    return max(_LEAST_CALLS, min(_MOST_CALLS, slab_bytes // max(1, weight_bytes)))


def _read(file: Path, identity: dict[str, str]) -> dict[str, str]:
    """The choices in ``file``, or none: a file that is damaged or of another card is never trusted."""
    try:
        content: Any = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no object")
        if content.get("format") != _FORMAT or content.get("identity") != identity:
            log.info("kernel choices in %s are of another card, driver or version; they are not used", file)
            return {}
        choices = content["choices"]
        if content.get("seal") != _seal(choices):
            raise ValueError("its seal does not fit")
        return {str(key): str(value) for key, value in choices.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        log.warning(
            "kernel choices in %s cannot be used (%s); defaults are", file, first_line(error, 160, kind=True)
        )
        return {}


def _write(file: Path, identity: dict[str, str], choices: dict[str, str]) -> None:
    """Whole or not at all."""
    content = {"format": _FORMAT, "identity": identity, "choices": choices, "seal": _seal(choices)}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except OSError:
        with suppress(OSError):
            Path(part).unlink()
        raise


def _seal(choices: object) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def _driver(device: torch.device) -> str:
    """The driver's version where the system tells (Linux), and PyTorch's CUDA version."""
    if device.type != "cuda":
        return "none"
    brings = f"CUDA {torch.version.cuda}"
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        found = re.search(r"\d+\.\d+(\.\d+)*", text)
        return f"{found.group() if found else '?'} ({brings})"
    return brings


def refusals() -> tuple[type[Exception], ...]:
    """What a candidate that cannot run raises; Triton's own errors are no RuntimeError."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return (RuntimeError, ValueError, TypeError)
    return (RuntimeError, ValueError, TypeError, TritonError)
