"""The whole daemon as a user meets it: starts, streams, is steered, survives bad input, ends cleanly."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.end_to_end.daemon import ROOT, Daemon, free_port, wait_for

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name == "nt", reason="signals and /dev/shm of POSIX"),
]

RUN = [sys.executable, "-m", "sdbridge", "run"]
PASSTHROUGH = """
name: e2e
input: {main: {backend: test_pattern}}
output: [{backend: mjpeg}]
engine: {kind: passthrough, width: 128, height: 128}
"""

STILL = """
name: e2e
input: {{main: {{backend: image_file, name: "{image}"}}}}
output: [{{backend: mjpeg}}]
engine: {{model: embedded, width: 128, height: 128, device: cpu}}
parameters: {{prompt: "fire, warm colors", strength: 0.6, steps: 1}}
"""


@pytest.fixture
def still(tmp_path):
    """A picture that does not move, so that whatever changes in the output was changed by us."""
    from PIL import Image

    rows, columns = np.mgrid[0:128, 0:128]
    picture = np.stack([rows * 2, columns * 2, (rows ^ columns) * 2], axis=-1).astype(np.uint8)
    file = tmp_path / "still.png"
    Image.fromarray(picture).save(file)
    return STILL.format(image=file)


def shared_memory_of(pids: list[int]) -> set[Path]:
    """The blocks that these processes have open; other daemons on this machine come and go."""
    found = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/dev/shm/sdb" in line:
                found.add(Path(line.split()[5]))
    return found


def test_the_demo_runs_for_n_frames_and_writes_its_summary(tmp_path):
    summary = tmp_path / "summary.json"
    env = {**os.environ, "SDBRIDGE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env["SDBRIDGE_NAME"] = f"e2e-{os.getpid()}"  # NDI refuses a name that a demo beside us has
    result = subprocess.run(
        [*RUN, "--frames", "40", "--summary", str(summary), "--port", str(free_port())],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    numbers = json.loads(summary.read_text())
    assert numbers["frames_out"] >= 40 and numbers["frames_in"] > 0
    assert numbers["state"] == "streaming" and numbers["errors"] == []
    assert 0 < numbers["latency_ms"]["p50"] <= numbers["latency_ms"]["p99"]


def test_frames_flow_and_the_page_and_api_answer(tmp_path):
    with Daemon(tmp_path, PASSTHROUGH) as daemon:
        daemon.streaming()
        assert daemon.get("/api/output.png").startswith(b"\x89PNG")
        assert daemon.get("/api/input.png").startswith(b"\x89PNG")
        first = daemon.output()
        assert first.shape == (128, 128, 3)
        wait_for(lambda: not np.array_equal(daemon.output(), first), why="the test pattern to move")


def test_an_osc_message_changes_the_picture_and_the_way_back_restores_it(tmp_path, still):
    with Daemon(tmp_path, still) as daemon:
        daemon.streaming()
        before = daemon.output()
        assert np.array_equal(before, daemon.output()), "a still input and a fixed seed give a still output"
        daemon.osc("/sdbridge/strength", 0.95)
        daemon.osc("/sdbridge/seed", 77)
        wait_for(lambda: not np.array_equal(daemon.output(), before), why="another picture")
        revision = daemon.set(strength=0.6, seed=2)
        daemon.applied(revision)
        assert np.array_equal(daemon.output(), before)


@pytest.mark.skipif(shutil.which("oscsend") is None, reason="needs Debian's liblo-tools")
def test_oscsend_moves_a_parameter_and_oscdump_sees_the_echo(tmp_path):
    with Daemon(tmp_path, PASSTHROUGH) as daemon:
        listening = free_port()
        dump = subprocess.Popen(
            ["stdbuf", "-oL", "oscdump", str(listening)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            seen = b""

            def heard() -> bool:
                nonlocal seen
                daemon.osc("/sdbridge/subscribe", listening, "/sdbridge/guidance_scale", 30)
                subprocess.run(
                    ["oscsend", "localhost", str(daemon.port), "/sdbridge/guidance_scale", "f", "2.5"],
                    check=True,
                )
                subprocess.run(
                    ["oscsend", "localhost", str(daemon.port), "/sdbridge/guidance_scale", "f", "2.75"],
                    check=True,
                )
                os.set_blocking(dump.stdout.fileno(), False)
                seen += dump.stdout.read() or b""
                return b"/sdbridge/guidance_scale" in seen and b"2.75" in seen

            wait_for(heard, why="oscdump to print the echo")
        finally:
            dump.kill()
            dump.communicate()


def test_bad_input_is_refused_by_name_and_the_output_goes_on(tmp_path):
    with Daemon(tmp_path, PASSTHROUGH) as daemon:
        daemon.streaming()
        code, answer = daemon.post("/api/parameters", {"values": {"guidence_scale": 1, "strength": "loud"}})
        assert code == 422
        assert {r["code"] for r in answer["rejected"]} == {"SDB-PARAM-UNKNOWN", "SDB-PARAM-TYPE"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hostile:
            for datagram in (
                b"",
                b"\x00" * 8,
                b"/" + b"*" * 24 + b"!\x00\x00\x00",
                b"#bundle\x00" + b"\xff" * 64,
            ):
                hostile.sendto(datagram, ("127.0.0.1", daemon.port))
            hostile.sendto(
                b"/sdbridge/prompt\x00\x00\x00\x00,s\x00\x00" + b"x" * 65_000, ("127.0.0.1", daemon.port)
            )
        daemon.osc("/sdbridge/strength", float("nan"))
        out = daemon.status()["frames_out"]
        wait_for(lambda: daemon.status()["frames_out"] > out + 20, why="frames after bad input")
        assert daemon.set(strength=0.25) > 0


def test_a_killed_engine_comes_back_and_the_output_never_stops(tmp_path):
    with Daemon(tmp_path, PASSTHROUGH) as daemon:
        daemon.streaming()
        engines = [p for p in psutil.Process(daemon.process.pid).children(recursive=True) if _is_engine(p)]
        assert engines, "the engine is a process of its own"
        for engine in engines:
            engine.kill()
        out = daemon.status()["frames_out"]
        wait_for(lambda: daemon.status()["frames_out"] > out + 5, why="held frames while the engine is away")
        wait_for(
            lambda: daemon.status()["restarts"] >= 1 and daemon.status()["state"] == "streaming",
            why="restart",
        )
        frames = daemon.status()["frames_in"]
        wait_for(lambda: daemon.status()["frames_in"] > frames + 5, why="new frames")


def _is_engine(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline()) and "resource_tracker" not in " ".join(
        process.cmdline()
    )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=["term", "double int"]
)
def test_signals_leave_no_process_and_no_shared_memory(tmp_path, signals):
    daemon = Daemon(tmp_path, PASSTHROUGH).start().streaming()
    family = [
        daemon.process.pid,
        *(p.pid for p in psutil.Process(daemon.process.pid).children(recursive=True)),
    ]
    blocks = shared_memory_of(family)
    assert len(blocks) >= 2, "the slots in and out of the engine"
    for number in signals:
        daemon.process.send_signal(number)
    daemon.process.wait(30)
    wait_for(lambda: not any(_alive(pid) for pid in family), why="every process to end")
    wait_for(lambda: not [block for block in blocks if block.exists()], why="shared memory to be freed")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_taken_port_is_one_clear_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = tmp_path / "c.yaml"
        config.write_text(PASSTHROUGH)
        result = subprocess.run(
            [*RUN, str(config), "--port", str(taken.getsockname()[1]), "--frames", "5"],
            env={**os.environ, "SDBRIDGE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert result.returncode == 1
    assert "SDB-" in result.stderr and port in result.stderr and "Traceback" not in result.stderr


def test_a_missing_model_is_told_and_the_input_or_card_is_shown(tmp_path):
    config = PASSTHROUGH.replace("kind: passthrough", "model: /no/such/model")
    with Daemon(tmp_path, config) as daemon:
        wait_for(lambda: any("SDB-MODEL" in e for e in daemon.status()["errors"]), why="the error")
        out = daemon.status()["frames_out"]
        wait_for(lambda: daemon.status()["frames_out"] > out + 5, why="an output all the same")
