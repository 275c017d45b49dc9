"""The shows that faults happen to: which rig each fault needs, and what it needs of the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from sdbridge.bench import faults
from sdbridge.bench.faults import FAULTS, STALL_S, Fault, Outcome, meet, rest
from sdbridge.bench.rig import FaultRig
from sdbridge.bench.shifted_clock import ShiftedClock
from sdbridge.bench.sources import run_ndi_source, run_touchdesigner_source
from sdbridge.engine.pipe import SPAWN
from sdbridge.errors import SdbridgeError
from sdbridge.meters import percentile
from sdbridge.textures.ndi import library as ndi

SETBACK_S = 3600
#: How long each fault is watched at least: some hundred frames.
WATCH_S = 5.0


def fault_gaps(seconds: float = 10.0, only: tuple[str, ...] = (), **options: Any) -> Mapping[str, object]:
    """Every fault of the table, each seen by an outside program. Gaps in ms, recovery in seconds.

    What this machine cannot do (no root for a small disk, no avahi) is named with the reason.
    """
    figures: dict[str, object] = {}
    for show in SHOWS:
        try:
            figures.update(show())
        except UnableError as why:
            figures[f"not measured: {show.__name__}"] = str(why)
        except SdbridgeError as error:  # the others are worth having all the same
            figures["error"] = f"{show.__name__}: {error}"
    worst = [value for name, value in figures.items() if name.endswith("_gap_p99_ms")]
    slowest = [value for name, value in figures.items() if name.endswith("_after_load_s")]
    figures["worst_gap_p99_ms"] = max((float(str(value)) for value in worst), default=0.0)
    figures["slowest_after_load_s"] = max((float(str(value)) for value in slowest), default=0.0)
    figures["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return figures


class UnableError(Exception):
    """This machine lacks what a fault needs."""


def common_faults() -> dict[str, object]:
    """One show over shared memory with a torch-free engine, broken in every way one after the other."""
    figures: dict[str, object] = {}
    with FaultRig(hold={"stall_s": STALL_S}) as rig:
        rig.watch_state()
        began = time.monotonic()
        time.sleep(2.0)
        quiet = rig.gaps_ms(began)
        figures.update({"quiet_gap_p99_ms": percentile(quiet, 99), "quiet_gap_max_ms": quiet[-1]})
        for name, fault in FAULTS.items():
            figures.update(meet(rig, fault, WATCH_S).figures(name))
            rest(rig)
    return figures


def embedded_model() -> dict[str, object]:
    """The same show with the embedded model: here the weights take their time to load."""
    engine = {"kind": "image", "model": "embedded", "width": 256, "height": 256}
    with FaultRig(side=256, more={"engine": engine}) as rig:
        rig.watch_state()
        return meet(rig, faults.kill_engine, WATCH_S).figures("model_killed")


def another_format() -> dict[str, object]:
    """A Shared Mem Out TOP whose pixel format is changed."""
    with format_rig() as rig:
        return meet(rig, faults.source_changes_format, WATCH_S).figures("source_format")


@contextmanager
def format_rig() -> Iterator[FaultRig]:
    with FaultRig(backend="touchdesigner_memory", source=run_touchdesigner_source) as rig:
        yield rig


def full_disk() -> dict[str, object]:
    """Logs, presets and the home folder on a disk of 256 KB that is full."""
    with small_disk() as home, FaultRig(home=home) as rig:
        rig.watch_state()
        return meet(rig, faults.disk_is_full, WATCH_S).figures("disk_full")


@contextmanager
def small_disk() -> Iterator[Path]:
    """A folder that holds 256 KB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        raise UnableError("mounting a small disk needs root on Linux")
    with tempfile.TemporaryDirectory(prefix="sdb-small-") as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnableError(f"mounting is not allowed here: {done.stderr.strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=False)


def clock_back() -> dict[str, object]:
    """The wall clock of bridge and engine goes back an hour."""
    with shifted_rig() as (rig, fault):
        return meet(rig, fault, WATCH_S).figures("clock_back")


@contextmanager
def shifted_rig() -> Iterator[tuple[FaultRig, Fault]]:
    if not sys.platform.startswith("linux") or not ShiftedClock.available():
        raise UnableError("shifting a clock needs Linux and a C compiler")
    with tempfile.TemporaryDirectory(prefix="sdb-clock-") as folder:
        clock = ShiftedClock(Path(folder))
        clock.build()

        def set_back(rig: FaultRig) -> float:
            clock.set_back(SETBACK_S)
            time.sleep(2.0)
            return time.monotonic()

        with FaultRig(environment=clock.environment) as rig:
            yield rig, set_back


# --- a source that comes back on another port: NDI by name, in a network of its own with avahi ---

# Arguments: the program to become. The network has one cable whose both ends are here.
_NETWORK = """
mount -t tmpfs tmpfs /run && mkdir -p /run/dbus && hostname sdb-stage || exit 90
ip link set lo up
ip link add sdb-a type veth peer name sdb-b || exit 91
ip addr add 10.98.7.1/24 dev sdb-a && ip link set sdb-a up && ip link set sdb-b up || exit 92
ip route add 224.0.0.0/4 dev sdb-a
dbus-daemon --system --fork --nopidfile >&2 || exit 93
avahi-daemon --daemonize --no-chroot --no-rlimits >&2 || exit 94
"$@"
code=$?
avahi-daemon --kill
kill $(cat /run/dbus/pid 2>/dev/null) 2>/dev/null
exit $code
"""


def another_port() -> dict[str, object]:
    """An NDI source that is killed and comes back on another port, found again by its name."""
    return outcome_of_another_port().figures("source_port")


def outcome_of_another_port() -> Outcome:
    able, why = ndi.available()
    programs = [p for p in ("unshare", "ip", "avahi-daemon", "dbus-daemon") if not shutil.which(p)]
    if not able or programs:
        raise UnableError(why if not able else f"not installed: {', '.join(programs)}")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise UnableError("a network of its own needs root")
    # A namespace of processes too: whatever is left over in it ends with it.
    spaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = ["unshare", *spaces, "--propagation", "private", "sh", "-c", _NETWORK, "sh"]
    command += [sys.executable, "-m", "sdbridge.bench.fault_shows"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode in range(90, 95):
        raise UnableError(f"no network of its own here: {done.stderr.strip()[-200:]}")
    if done.returncode or not answers:
        raise SdbridgeError("SDB-BENCH-FAULT", f"NDI by name: {done.stderr.strip()[-500:]}")
    return Outcome(**json.loads(answers[-1]))


def _in_the_network() -> None:
    """The part of ``another_port`` that runs inside its network."""
    # Another program's source is there first and has the first port; when it has left, that port is free.
    other = SPAWN.Process(target=run_ndi_source, args=("somebody else", 64, 64, 1.0), daemon=True)
    other.start()
    _port_of(other.pid)

    def port_changes(rig: FaultRig) -> float:
        before = _port(rig)
        rig.kill_source()
        other.kill()
        other.join()
        for _attempt in range(10):  # the library may choose its old port again
            rig.start_source()
            if _port_of(rig.source_id) != before:
                break
            rig.kill_source()
        up = time.monotonic()
        rig.wait(lambda: _port(rig) not in (0, before), "the source on another port")
        return up

    with FaultRig(backend="ndi", source=run_ndi_source) as rig:
        outcome = meet(rig, port_changes, WATCH_S)
    sys.stdout.write(json.dumps(vars(outcome)) + "\n")


def _port_of(process: int | None) -> int:
    """The port on which an NDI source offers its pictures, once it does; 5960 is for messages."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for one in psutil.Process(process).net_connections("tcp"):
            port = int(one.laddr[1]) if one.laddr else 0
            if one.status == psutil.CONN_LISTEN and 5961 <= port < 6100:
                return port
        time.sleep(0.01)
    raise SdbridgeError("SDB-BENCH-FAULT", "an NDI source did not begin to listen within 30 s")


def _port(rig: FaultRig) -> int:
    """Where the daemon says that its input is, ``ndi SDB-STAGE (name) at 10.98.7.1:5961, 128x128``."""
    line = str(next((source["line"] for source in rig.status()["inputs"] if source["connected"]), ""))
    port = line.partition(" at ")[2].partition(",")[0].rpartition(":")[2]
    return int(port) if port.isdigit() else 0


SHOWS: tuple[Callable[[], dict[str, object]], ...] = (
    common_faults,
    another_format,
    another_port,
    full_disk,
    clock_back,
    embedded_model,
)

if __name__ == "__main__":
    _in_the_network()
