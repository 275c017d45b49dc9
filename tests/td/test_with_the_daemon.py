"""The whole story with the real daemon: launched, found, steered, killed, launched again, recovered."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.td.conftest import ROOT, Desk
from tests.td.fake_td import Host

CONFIG = """
name: sdbridge
input:
  main: {backend: test_pattern}
output:
  - backend: "null"
engine: {kind: passthrough}
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def daemon_has(port: int, name: str) -> object:
    """What the daemon says over HTTP, which the component does not use."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/parameters", timeout=10) as answer:
        return find_value(json.load(answer), name)


def find_value(tree: object, name: str) -> object:
    """The value of a parameter, wherever the answer keeps it."""
    if isinstance(tree, dict):
        if tree.get("name") == name and "value" in tree:
            return tree["value"]
        if name in tree and not isinstance(tree[name], dict | list):
            return tree[name]
        tree = list(tree.values())
    for branch in tree if isinstance(tree, list) else ():
        found = find_value(branch, name)
        if found is not None:
            return found
    return None


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_launch_find_steer_kill_recover(host: Host, tmp_path: Path) -> None:
    config = tmp_path / "show.yaml"
    config.write_text(CONFIG)
    port = free_port()
    launcher, bridge = Desk(host, "SdBridgeLauncher"), Desk(host)
    launcher.par.Folder, launcher.par.Python = str(ROOT), sys.executable
    launcher.par.Config, launcher.par.Port = str(config), port

    def soon(done: object, what: str) -> None:
        def look() -> bool:
            launcher.later_s += 0.5  # the launcher looks once a second
            return bool(done())  # type: ignore[operator]

        for _ in range(3):  # a loaded machine may take its time to start a process
            try:
                return bridge.until(look, what)
            except AssertionError as error:
                last = AssertionError(f"{error}; launcher: {launcher.status}\n{launcher.comp.op('log').text}")
        raise last

    try:
        launcher.par.Start.pulse()
        soon(lambda: launcher.status.startswith("running"), "launched")
        soon(lambda: bridge.status.startswith("online"), "found by its discovery file")
        assert f":{port}" in bridge.status and "differ" not in bridge.status
        soon(lambda: bridge.par.Daemonstate.eval() == "streaming", "the engine streams")
        soon(lambda: bridge.ext.shown.state == "live", "live")
        bridge.later_s += 5  # past the first fetching of everything
        bridge.frames(10)
        soon(lambda: bridge.status.startswith("online"), "still there")
        bridge.par.Holdaction, bridge.par.Holdfade, bridge.par.Holdrecover = "black", 0.1, 3
        bridge.par.Strength, bridge.par.Prompt0text = 0.35, "by way of the component"
        soon(lambda: daemon_has(port, "prompt.1.text") == "by way of the component", "the text arrives")
        assert daemon_has(port, "strength") == pytest.approx(0.35)
        soon(lambda: bridge.par.Daemonappliedrevision.eval() > 0, "and is applied")

        first = launcher.par.Pid.eval()
        os.kill(first, signal.SIGKILL)
        launcher.ext._process.wait()
        host.step(1)  # held in the very next frame, long before the heartbeat is late
        assert bridge.status.startswith(f"offline: the daemon has ended (process {first})")
        assert bridge.comp.op("hold").par.active.eval() is False
        bridge.later_s += 3
        soon(lambda: bridge.comp.op("fade").par.cross.eval() == 1.0, "black after the hold")
        soon(lambda: launcher.status.startswith("not running"), "the launcher knows")

        launcher.par.Start.pulse()
        soon(lambda: launcher.par.Pid.eval() not in (0, first), "another process")
        soon(lambda: bridge.ext.shown.state == "live", "live again")
        soon(lambda: daemon_has(port, "prompt.1.text") == "by way of the component", "it was told again")
        launcher.par.Stop.pulse()
        soon(lambda: launcher.status.startswith("not running"), "ended in good order")
    finally:
        pid = launcher.par.Pid.eval()
        if pid:
            os.kill(pid, signal.SIGKILL)
        if launcher.ext._process is not None:
            launcher.ext._process.kill()
            launcher.ext._process.wait()
