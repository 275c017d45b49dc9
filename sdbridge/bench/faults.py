"""Breaks a running show on purpose and times it from outside: gaps of the output, and the way back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from sdbridge.bench.rig import FaultRig
from sdbridge.bench.sources import run_garbage_source
from sdbridge.engine.pipe import SPAWN
from sdbridge.meters import percentile

#: Engine silence before it is replaced, as in the default config.
STALL_S = 10.0

#: Breaks something and mends it again as far as a user would; the time at which the cause was gone.
Fault = Callable[[FaultRig], float]


@dataclass(frozen=True)
class Outcome:
    """What an outside program saw of one fault, from its beginning until new pictures flowed."""

    gap_p99_ms: float
    gap_max_ms: float
    frames: int
    long_gaps: int  # of more than 100 ms
    recovery_s: float  # from the end of the cause to the first new picture
    after_load_s: float | None  # from the new engine's "streaming", if one was started

    def figures(self, name: str) -> dict[str, object]:
        figures: dict[str, object] = {
            f"{name}_gap_p99_ms": self.gap_p99_ms,
            f"{name}_gap_max_ms": self.gap_max_ms,
            f"{name}_long_gaps": f"{self.long_gaps} of {self.frames - 1}",
            f"{name}_recovery_s": self.recovery_s,
        }
        if self.after_load_s is not None:
            figures[f"{name}_after_load_s"] = self.after_load_s
        return figures


def meet(rig: FaultRig, fault: Fault, watch_s: float = 0.0) -> Outcome:
    """Let ``fault`` happen, wait for new pictures, watch for ``watch_s`` in all.

    Raises SDB-BENCH-FAULT if none come.
    """
    began = time.monotonic()
    gone = fault(rig)
    recovered = rig.wait_fresh(10, since=gone)
    rig.wait(lambda: rig.status()["state"] == "streaming", "the engine to stream")
    time.sleep(max(0.0, began + watch_s - time.monotonic()))  # enough frames for a percentile
    gaps = rig.gaps_ms(began)
    loaded = rig.loaded_at(began)
    return Outcome(
        gap_p99_ms=percentile(gaps, 99),
        gap_max_ms=gaps[-1],
        frames=len(gaps) + 1,
        long_gaps=sum(gap > 100 for gap in gaps),
        recovery_s=max(0.0, recovered - gone),
        after_load_s=None if loaded is None else max(0.0, recovered - loaded),
    )


def rest(rig: FaultRig) -> None:
    """Between two faults: everything as it was, and no restart left to count."""
    rig.set(prompt="", engine__start=True)
    rig.wait_fresh(30)


# --- the engine ---


def kill_engine(rig: FaultRig) -> float:
    rig.engine_process().send_signal(signal.SIGKILL)
    return time.monotonic()


def stop_engine_10_s(rig: FaultRig) -> float:
    process = rig.engine_process()
    process.send_signal(signal.SIGSTOP)
    time.sleep(10.0)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be replaced already
        process.send_signal(signal.SIGCONT)
    return time.monotonic()


def engine_raises(rig: FaultRig) -> float:
    return _told(rig, "raise")


def out_of_memory(rig: FaultRig) -> float:
    return _told(rig, "oom")


def engine_exits(rig: FaultRig) -> float:
    return _told(rig, "exit")


def _told(rig: FaultRig, how: str) -> float:
    rig.set(prompt=how)
    rig.wait(lambda: rig.status()["state"] != "streaming", "the engine to be given up")
    rig.set(prompt="")
    return time.monotonic()


# --- the source ---


def source_killed(rig: FaultRig) -> float:
    rig.kill_source()
    time.sleep(1.0)
    rig.start_source()
    return time.monotonic()


def source_changes_size(rig: FaultRig) -> float:
    rig.kill_source()
    rig.start_source(width=333, height=217)
    rig.wait_fresh(10)
    rig.kill_source()
    rig.start_source()
    return time.monotonic()


def source_sends_garbage(rig: FaultRig) -> float:
    """A program that writes noise where header and pictures should be, for a second; then a sound one."""
    rig.kill_source()
    garbage = SPAWN.Process(target=run_garbage_source, args=(rig.source_name,), daemon=True)
    garbage.start()
    time.sleep(1.0)
    garbage.terminate()
    garbage.join()
    rig.start_source()
    return time.monotonic()


def source_at_1_fps(rig: FaultRig) -> float:
    rig.kill_source()
    rig.start_source(fps=1.0)
    rig.wait_fresh(3)
    rig.kill_source()
    rig.start_source()
    return time.monotonic()


def source_changes_format(rig: FaultRig) -> float:
    """BGRA, 16 bits, floats, bytes again; each is shown before the next comes."""
    for pixel_format in ("bgra8", "rgba16", "rgba32f"):
        rig.kill_source()
        rig.start_source(pixel_format=pixel_format)
        rig.wait_fresh(10)
    rig.kill_source()
    rig.start_source()
    return time.monotonic()


# --- receivers, and the machine ---

_READER = """
import sys
from sdbridge.textures.shared_memory import FrameReader
with FrameReader(sys.argv[1]) as reader:
    while True:
        frame = reader.read(1.0)
        if frame is not None:
            sys.stdout.write(f"{frame.frame_id}\\n")
            sys.stdout.flush()
"""


def receiver_killed(rig: FaultRig) -> float:
    """A program that reads our output is killed while it reads; the next one gets pictures at once."""
    for _again in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _READER, rig.name], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            reader.kill()
    return time.monotonic()


def cpu_is_busy(rig: FaultRig) -> float:
    """Every core busy with something else for three seconds."""
    burners = [SPAWN.Process(target=_burn, args=(3.0,), daemon=True) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    for burner in burners:
        burner.join()
    return time.monotonic()


def _burn(seconds: float) -> None:
    if hasattr(os, "sched_setscheduler"):  # not with the bench's own priority, should it have a higher one
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


def disk_is_full(rig: FaultRig) -> float:
    """Nothing can be written where logs and presets go, while there is much to log and one to save."""
    filler = rig.home / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)
    broken = kill_engine(rig)
    rig.wait(lambda: not rig.save_preset("while the disk is full"), "the refusal to save")
    rig.wait_fresh(10, since=broken)
    filler.unlink(missing_ok=True)
    return broken


FAULTS: Mapping[str, Fault] = {
    "engine_killed": kill_engine,
    "engine_stopped": stop_engine_10_s,
    "engine_raises": engine_raises,
    "out_of_memory": out_of_memory,
    "engine_exits": engine_exits,
    "source_killed": source_killed,
    "source_resized": source_changes_size,
    "source_garbage": source_sends_garbage,
    "source_1_fps": source_at_1_fps,
    "receiver_killed": receiver_killed,
    "cpu_busy": cpu_is_busy,
}
