"""Breaks a running show on purpose and times it from outside: gaps of the output, and the way back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from sdbridge.bench.rig import FaultRig
from sdbridge.engine.pipe import SPAWN
from sdbridge.meters import percentile

#: Engine silence before it is replaced, as in the default config.
STALL_S = 10.0


def fault_gaps(seconds: float = 10.0, **options: Any) -> Mapping[str, object]:
    """Every fault of the table, one after the other, on one show. Gaps in ms, recovery in seconds."""
    figures: dict[str, object] = {}
    with FaultRig(hold={"stall_s": STALL_S}) as rig:
        began = time.monotonic()
        time.sleep(2.0)
        figures.update(_figures(rig, "quiet", began, None))
        for name, fault in FAULTS.items():
            began = time.monotonic()
            recovered = fault(rig)
            time.sleep(0.5)
            figures.update(_figures(rig, name, began, recovered))
            _rest(rig)
        gaps = rig.gaps_ms(rig.sights[0].at)
        figures["all_gap_p99_ms"] = percentile(gaps, 99)
        figures["all_gap_max_ms"] = gaps[-1]
        figures["restarts"] = rig.status()["restarts"]
    return figures


def _figures(rig: FaultRig, name: str, began: float, recovered: float | None) -> dict[str, object]:
    gaps = rig.gaps_ms(began)
    figures: dict[str, object] = {
        f"{name}_gap_p99_ms": percentile(gaps, 99),
        f"{name}_gap_max_ms": gaps[-1],
    }
    if recovered is not None:
        figures[f"{name}_recovery_s"] = max(0.0, recovered - began)
    return figures


def _rest(rig: FaultRig) -> None:
    """Between two faults: everything as it was, and no restart left to count."""
    rig.set(prompt="", engine__start=True)
    rig.wait_fresh(30)


def kill_engine(rig: FaultRig) -> float:
    rig.engine_process().send_signal(signal.SIGKILL)
    return rig.wait_fresh(10)


def stop_engine_10_s(rig: FaultRig) -> float:
    process = rig.engine_process()
    process.send_signal(signal.SIGSTOP)
    time.sleep(10.0)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be replaced already
        process.send_signal(signal.SIGCONT)
    return rig.wait_fresh(10)


def engine_raises(rig: FaultRig) -> float:
    rig.set(prompt="raise")
    rig.wait(lambda: rig.status()["state"] != "streaming", "the engine to be given up")
    rig.set(prompt="")
    return rig.wait_fresh(10)


def out_of_memory(rig: FaultRig) -> float:
    rig.set(prompt="oom")
    rig.wait(lambda: rig.status()["state"] != "streaming", "the engine to fail")
    rig.set(prompt="")
    return rig.wait_fresh(10)


def engine_exits(rig: FaultRig) -> float:
    rig.set(prompt="exit")
    rig.wait(lambda: rig.status()["state"] != "streaming", "the engine to end")
    rig.set(prompt="")
    return rig.wait_fresh(10)


def source_killed(rig: FaultRig) -> float:
    rig.kill_source()
    time.sleep(1.0)
    rig.start_source()
    return rig.wait_fresh(10)


def source_changes_size(rig: FaultRig) -> float:
    rig.kill_source()
    rig.start_source(width=333, height=217)
    rig.wait_fresh(10)
    rig.kill_source()
    rig.start_source()
    return rig.wait_fresh(10)


def source_at_1_fps(rig: FaultRig) -> float:
    rig.kill_source()
    rig.start_source(fps=1.0)
    rig.wait_fresh(3)
    rig.kill_source()
    rig.start_source()
    return rig.wait_fresh(10)


def cpu_is_busy(rig: FaultRig) -> float:
    """Every core busy with something else for three seconds."""
    burners = [SPAWN.Process(target=_burn, args=(3.0,), daemon=True) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    for burner in burners:
        burner.join()
    return rig.wait_fresh(10)


def _burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(10_000))


FAULTS: Mapping[str, Callable[[FaultRig], float]] = {
    "engine_killed": kill_engine,
    "engine_stopped": stop_engine_10_s,
    "engine_raises": engine_raises,
    "out_of_memory": out_of_memory,
    "engine_exits": engine_exits,
    "source_killed": source_killed,
    "source_resized": source_changes_size,
    "source_1_fps": source_at_1_fps,
    "cpu_busy": cpu_is_busy,
}
