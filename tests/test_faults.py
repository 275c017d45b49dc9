"""The fault table on a whole show of real processes: each ends with new frames under the same name.

What is decided and when is tested under a fake clock (test_supervisor, test_hold); how long it takes
is measured by ``sdbridge bench --faults``. Here no time is asserted.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sdbridge.bench import faults
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


def engine_id(rig):
    return rig.engine_process().pid


def test_engine_killed(rig):
    before = engine_id(rig)
    faults.kill_engine(rig)
    assert engine_id(rig) != before
    assert any("SDB-ENGINE-DIED" in line and "SIGKILL" in line for line in rig.status()["errors"])


def test_engine_stopped(rig):
    rig.engine_process().send_signal(signal.SIGSTOP)
    rig.wait(lambda: any("SDB-ENGINE-STALLED" in line for line in rig.status()["errors"]), "the watchdog")
    rig.wait_fresh(10)


@pytest.mark.parametrize("fault", ["engine_raises", "out_of_memory", "engine_exits"])
def test_engine_faults(rig, fault):
    faults.FAULTS[fault](rig)
    rig.wait(lambda: rig.status()["state"] == "streaming", "the stream")


@pytest.mark.parametrize(
    "fault",
    [
        "source_killed",
        "source_resized",
        pytest.param("source_1_fps", marks=pytest.mark.slow),
        pytest.param("cpu_busy", marks=pytest.mark.slow),
    ],
)
def test_source_and_machine_faults(rig, fault):
    before = engine_id(rig)
    faults.FAULTS[fault](rig)
    assert engine_id(rig) == before, "the engine is not at fault and is left alone"


def test_source_sends_garbage(rig):
    """Bytes where a header should be: the reader must neither crash nor show them."""
    from multiprocessing import shared_memory

    from sdbridge.slot import _untracked
    from sdbridge.textures.shared_memory import block_name

    rig.kill_source()
    name = block_name(f"in{rig.port}")
    with _untracked(name):
        block = shared_memory.SharedMemory(name)
    block.buf[8:4096] = os.urandom(4088)
    time.sleep(0.3)  # let the daemon meet it
    block.close()
    block_file = Path("/dev/shm") / name
    if block_file.exists():
        block_file.unlink()
    rig.start_source()
    rig.wait_fresh(10)


def test_receiver_killed_and_back(rig):
    """A reader in another process dies in the middle of reading; ours and the next one go on."""
    code = (
        "import sys\nfrom sdbridge.textures.shared_memory import FrameReader\n"
        "with FrameReader(sys.argv[1]) as reader:\n"
        "    while True:\n"
        "        frame = reader.read(1.0)\n"
        "        if frame is not None: print(frame.frame_id, flush=True)\n"
    )
    for _again in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", code, rig.name], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None and int(reader.stdout.readline()) > 0
            reader.kill()
    rig.wait_fresh(10)


def test_a_live_parameter_still_arrives_after_all_that(rig):
    rig.set(strength=0.5)
    revision = rig.status()["revision"]
    rig.wait(lambda: rig.status()["applied_revision"] >= revision, "the change")


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="needs root to mount a small disk",
)
def test_disk_full_for_logs_and_presets(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        with FaultRig(home=small) as rig:
            filler = small / "filler"
            with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 1024)
            rig.engine_process().kill()  # much to log, nowhere to
            rig.set(engine__reset=True)
            rig.wait_fresh(10)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


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


def test_clock_set_back_an_hour(monkeypatch):
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
