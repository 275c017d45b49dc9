"""The fault table on a whole show of real processes: each ends with new frames under the same name.

What is decided and when is tested under a fake clock (test_supervisor, test_hold); how long it takes
is measured by ``sdbridge bench --faults``. Here no time is asserted.
"""

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from sdbridge.bench import fault_shows, faults
from sdbridge.bench.rig import FaultRig

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals and /dev/shm of POSIX"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def rig():
    with FaultRig(hold={"stall_s": 1.0}) as rig:
        yield rig


@pytest.fixture(autouse=True)
def as_before(request):
    """Each fault finds a show that streams, and leaves one."""
    yield
    if "rig" in request.fixturenames:
        rig = request.getfixturevalue("rig")
        rig.set(prompt="", engine__start=True)
        rig.wait_fresh(5)
        assert rig.status()["state"] == "streaming"


@pytest.fixture
def show():
    """Another rig than the common one; skips where this machine lacks what it needs."""
    with ExitStack() as stack:

        def enter(made):
            try:
                return stack.enter_context(made)
            except fault_shows.UnableError as why:
                pytest.skip(str(why))

        yield enter


def engine_id(rig):
    return rig.engine_process().pid


def test_engine_killed(rig):
    before = engine_id(rig)
    faults.meet(rig, faults.kill_engine)
    assert engine_id(rig) != before
    assert any("SDB-ENGINE-DIED" in line and "SIGKILL" in line for line in rig.status()["errors"])


def test_engine_stopped(rig):
    rig.engine_process().send_signal(signal.SIGSTOP)
    # With a frame inside it stalls; stopped between two, it is the ping that nobody answers.
    watchdog = ("SDB-ENGINE-STALLED", "SDB-ENGINE-SILENT")
    rig.wait(lambda: any(line.startswith(watchdog) for line in rig.status()["errors"]), "the watchdog")
    rig.wait_fresh(10)


@pytest.mark.parametrize("fault", ["engine_raises", "out_of_memory", "engine_exits"])
def test_engine_faults(rig, fault):
    faults.meet(rig, faults.FAULTS[fault])


@pytest.mark.parametrize(
    "fault",
    [
        "source_killed",
        "source_resized",
        "source_garbage",
        "receiver_killed",
        pytest.param("source_1_fps", marks=pytest.mark.slow),
        pytest.param("cpu_busy", marks=pytest.mark.slow),
    ],
)
def test_source_receiver_and_machine_faults(rig, fault):
    before = engine_id(rig)
    faults.meet(rig, faults.FAULTS[fault])
    assert engine_id(rig) == before, "the engine is not at fault and is left alone"


@pytest.mark.slow
def test_source_changes_format(show):
    rig = show(fault_shows.format_rig())
    before = engine_id(rig)
    faults.meet(rig, faults.source_changes_format)
    assert engine_id(rig) == before and rig.status()["errors"] == []


@pytest.mark.slow
def test_source_restarted_on_another_port():
    try:
        fault_shows.outcome_of_another_port()
    except fault_shows.UnableError as why:
        pytest.skip(str(why))


@pytest.mark.slow
def test_engine_with_the_embedded_model_killed():
    assert "model_killed_after_load_s" in fault_shows.embedded_model()


def test_what_the_bench_breaks_is_the_whole_table():
    """A fault that the issue names and the bench forgot would be seen here."""
    shows = {show.__name__ for show in fault_shows.SHOWS}
    assert shows == {
        "common_faults", "another_format", "another_port", "full_disk", "clock_back", "embedded_model"
    }  # fmt: skip
    assert set(faults.FAULTS) == {
        "engine_killed", "engine_stopped", "engine_raises", "out_of_memory", "engine_exits", "source_killed",
        "source_resized", "source_garbage", "source_1_fps", "receiver_killed", "cpu_busy",
    }  # fmt: skip


def test_a_live_parameter_still_arrives_after_all_that(rig):
    rig.set(strength=0.5)
    revision = rig.status()["revision"]
    rig.wait(lambda: rig.status()["applied_revision"] >= revision, "the change")


@pytest.mark.slow
def test_disk_full_for_logs_and_presets(show):
    home = show(fault_shows.small_disk())
    rig = show(FaultRig(home=home))
    faults.meet(rig, faults.disk_is_full)
    rig.wait(lambda: rig.save_preset("room again"), "a preset once there is room again")


def test_clock_set_back_an_hour_under_bridge_and_engine(show):
    rig, set_back = show(fault_shows.shifted_rig())
    before = engine_id(rig)
    faults.meet(rig, set_back)
    status = rig.status()
    assert engine_id(rig) == before and status["output"] == "live" and status["errors"] == []


def family(rig):
    assert rig.daemon is not None
    parent = psutil.Process(rig.daemon.pid)
    return [parent, *parent.children(recursive=True)]


def blocks(rig):
    """Shared memory that the show's processes have open."""
    found = set()
    for process in family(rig):
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            if "/dev/shm/sdb" in line:
                found.add(line.split()[5])
    return found


ENDS = {
    "SIGTERM": lambda rig: rig.daemon.terminate(),
    "SIGINT twice": lambda rig: (
        rig.daemon.send_signal(signal.SIGINT),
        rig.daemon.send_signal(signal.SIGINT),
    ),
    "SIGTERM with a stopped engine": lambda rig: (
        rig.engine_process().send_signal(signal.SIGSTOP),
        rig.daemon.terminate(),
    ),
    "SIGTERM to the whole group": lambda rig: os.killpg(rig.daemon.pid, signal.SIGTERM),
    "SIGKILL": lambda rig: rig.daemon.kill(),
}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "end", [pytest.param(end, marks=[pytest.mark.slow] if "stopped" in end else []) for end in ENDS]
)
def test_no_end_leaves_an_orphan_or_a_block(end):
    with FaultRig() as rig:
        members, shared = family(rig), blocks(rig)
        assert len(members) >= 2 and len(shared) >= 3
        ENDS[end](rig)
        _gone, alive = psutil.wait_procs(members, timeout=60)
        assert not alive, [process.cmdline() for process in alive]
        if end.startswith("SIGTERM"):
            assert rig.daemon.wait() == 0
            assert "SDB-" not in (rig.home / "daemon.out").read_text()  # an end in good order is no fault
        ours = {block for block in shared if "sdbtex_in" not in block}  # the source is another program's
        rig.wait(lambda: not [block for block in ours if Path(block).exists()], "the blocks to go", 30)


def test_the_frame_path_never_asks_for_the_time_of_day(monkeypatch):
    """Nothing on the frame path may look at the wall clock; in-process, so that we can turn it back."""
    from sdbridge.bridge import Bridge
    from sdbridge.config import Config
    from sdbridge.testing import FakeReceiver, FakeSender, FakeTextures

    sender = FakeSender()
    config = Config.model_validate(
        {
            "port": 0,
            "engine": {"kind": "passthrough", "width": 64, "height": 64, "in_process": True},
            "input": {"main": {"name": "main"}},
        }
    )
    textures = FakeTextures({"main": FakeReceiver("main")}, [sender])
    with Bridge(config, textures=textures, control=False) as bridge:
        bridge.start()
        sender.wait_for(lambda frame, about: about["new"] == "1")
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        for _ in range(30):
            sender.wait_for(lambda frame, about: about["new"] == "1")
        assert bridge.status().output == "live" and not bridge.status().errors
