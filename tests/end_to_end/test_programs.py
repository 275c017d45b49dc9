"""Outside programs, each in a process of its own, send to the daemon and receive from it over NDI."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sdbridge.textures.ndi import library
from tests.end_to_end.daemon import Daemon, wait_for

able, why = library.available()
pytestmark = [pytest.mark.skipif(not able, reason=why), pytest.mark.timeout(300)]

PEERS = Path(__file__).resolve().parent.parent / "textures" / "peers"

NDI_BOTH_WAYS = """
name: e2e
input: {{main: {{backend: ndi, name: "{address}"}}}}
output: [{{backend: ndi, name: {stage}}}, {{backend: mjpeg}}]
engine: {engine}
parameters: {{prompt: "fire", strength: 0.6}}
"""
PASSTHROUGH = "{kind: passthrough, width: 256, height: 192}"
IMAGE = "{model: embedded, width: 128, height: 128, device: cpu}"


@pytest.fixture
def program() -> Iterator:
    """Starts an outside program; it ends when its standard input is closed or the test is over."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(PEERS / script), *map(str, arguments)]
        started.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ndi_port(process: int) -> int | None:
    """Where a process offers NDI pictures; 5960 is NDI's own, for messages."""
    ports = [c.laddr.port for c in psutil.Process(process).net_connections() if c.status == "LISTEN"]
    return min((port for port in ports if 5961 <= port < 6100), default=None)


def seen_by(viewer: subprocess.Popen[str]) -> dict:
    assert viewer.stdout is not None
    return json.loads(viewer.stdout.readline())


def test_an_ndi_program_feeds_the_daemon_and_another_receives_its_output(tmp_path, program):
    source = program("ndi_source.py", f"e2e camera {os.getpid()}", 256, 192, 30)
    address = f"127.0.0.1:{wait_for(lambda: ndi_port(source.pid), why='the source to be up')}"
    with Daemon(
        tmp_path, NDI_BOTH_WAYS.format(address=address, stage=f"e2e stage {os.getpid()}", engine=PASSTHROUGH)
    ) as daemon:
        port = wait_for(lambda: ndi_port(daemon.process.pid), why="our NDI sender")
        viewer = program("ndi_viewer.py", f"127.0.0.1:{port}")
        first = wait_for(lambda: (s := seen_by(viewer))["number"] and s, why="a numbered picture")
        later = wait_for(lambda: (s := seen_by(viewer))["number"] and s, why="another")
        assert first["size"] == later["size"] == [256, 192]
        wait_for(
            lambda: (seen_by(viewer)["number"] or 0) > first["number"] + 20, why="the camera's count to go on"
        )


def test_what_an_ndi_viewer_sees_is_generated_and_follows_osc(tmp_path, program):
    source = program("ndi_source.py", f"e2e camera 2 {os.getpid()}", 256, 256, 15)
    address = f"127.0.0.1:{wait_for(lambda: ndi_port(source.pid), why='the source to be up')}"
    with Daemon(
        tmp_path, NDI_BOTH_WAYS.format(address=address, stage=f"e2e stage {os.getpid()}", engine=IMAGE)
    ) as daemon:
        daemon.streaming()
        port = wait_for(lambda: ndi_port(daemon.process.pid), why="our NDI sender")
        viewer = program("ndi_viewer.py", f"127.0.0.1:{port}")
        generated = wait_for(lambda: (s := seen_by(viewer)) and s, why="a picture")
        assert generated["size"] == [128, 128]
        wait_for(lambda: seen_by(viewer)["number"] is None, why="pictures that are repainted, not passed on")
        daemon.osc("/sdbridge/mode", "bypass")
        wait_for(lambda: seen_by(viewer)["number"] is not None, why="the camera's own number after bypass")
        daemon.osc("/sdbridge/mode", "img2img")
        wait_for(lambda: seen_by(viewer)["number"] is None, why="generated pictures again")
