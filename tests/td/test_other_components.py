"""SdBridgeCues, SdBridgeMonitor and SdBridgeLauncher in the fake TouchDesigner."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdbridge.config import CueConfig
from tests.td.conftest import Desk
from tests.td.fake_td import Host
from tests.td.small_daemon import SmallDaemon

# --- cues ---


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[SmallDaemon]:
    cues = (CueConfig(name="one", values={"strength": 0.2}), CueConfig(name="two", values={"strength": 0.9}))
    daemon = SmallDaemon(tmp_path / "presets", cues=cues)
    yield daemon
    daemon.close()


@pytest.fixture
def cues(host: Host, daemon: SmallDaemon) -> Desk:
    desk = Desk(host, "SdBridgeCues")
    desk.connect(daemon.port)
    desk.until(lambda: desk.status.startswith("online"), "online")
    return desk


def test_a_cue_of_the_table_goes_out_as_one_bundle(cues: Desk, daemon: SmallDaemon) -> None:
    table = cues.comp.op("cues")
    table.clear()
    table.appendRows(
        [
            ["id", "name", "preset", "fade", "follow", "prompt", "strength", "guidance_mode"],
            ["1", "Open", "", "", "", "first words", "0.25", "full"],
            ["2", "Close", "", "", "", "last words", "0.75", ""],
        ]
    )
    before = daemon.store.revision
    cues.par.Go.pulse()
    cues.until(lambda: daemon.store.get("prompt.1.text") == "first words", "it arrives")
    assert daemon.store.revision == before + 1
    assert daemon.store.get("strength") == 0.25 and daemon.store.get("guidance_mode") == "full"
    cues.par.Next.pulse()
    cues.until(lambda: daemon.store.get("strength") == 0.75, "the next")
    assert cues.par.Current.eval() == "Close"
    cues.par.Next.pulse()
    cues.until(lambda: "ends here" in cues.status, "the end is said")
    cues.par.Cue = "Open"
    cues.par.Go.pulse()
    cues.until(lambda: daemon.store.get("strength") == 0.25, "by name")
    cues.par.Cue = "Nowhere"
    cues.par.Go.pulse()
    cues.until(lambda: "no cue 'Nowhere'" in cues.status, "an unknown one is said")


def test_a_cue_with_a_fade_and_one_that_follows(cues: Desk, daemon: SmallDaemon) -> None:
    table = cues.comp.op("cues")
    table.clear()
    table.appendRows(
        [
            ["id", "name", "preset", "fade", "follow", "strength"],
            ["1", "A", "", "0.05", "5", "0.3"],
            ["2", "B", "", "", "", "0.8"],
        ]
    )
    cues.par.Go.pulse()

    def faded() -> bool:
        daemon.show.tick()
        return daemon.store.get("strength") == pytest.approx(0.3)

    cues.until(faded, "the daemon fades it")
    assert cues.par.Current.eval() == "A"
    cues.later_s += 5
    cues.until(lambda: cues.par.Current.eval() == "B", "the next follows by itself")
    cues.until(lambda: daemon.store.get("strength") == pytest.approx(0.8), "and arrives")


def test_the_daemons_own_list_presets_and_the_morph_fader(cues: Desk, daemon: SmallDaemon) -> None:
    cues.par.Source = "daemon"
    cues.par.Cue = "two"
    cues.par.Go.pulse()

    def at(value: float) -> Any:
        def look() -> bool:
            daemon.show.tick()
            return daemon.store.get("strength") == pytest.approx(value)

        return look

    cues.until(at(0.9), "a cue of the daemon's list")
    cues.par.Preset = "high"
    cues.par.Snapshot.pulse()
    cues.until(lambda: [p.name for p in daemon.show.presets.list()] == ["high"], "saved")
    daemon.store.set("strength", 0.1, "someone")
    cues.par.Preset = "low"
    cues.par.Snapshot.pulse()
    cues.until(lambda: len(daemon.show.presets.list()) == 2, "saved too")
    cues.par.Preset, cues.par.Fade = "high", 0.0
    cues.par.Recall.pulse()
    cues.until(at(0.9), "recalled")
    cues.par.Morphfrom, cues.par.Morphto = "low", "high"
    cues.par.Morph = 0.5
    cues.until(at(0.5), "half way")
    cues.par.Preset = ""
    cues.par.Recall.pulse()
    cues.until(lambda: "no preset is named" in cues.status, "said")


# --- monitor ---


def test_the_monitor_shows_the_numbers_and_turns_red(host: Host, daemon: SmallDaemon) -> None:
    bridge, monitor = Desk(host), Desk(host, "SdBridgeMonitor")
    monitor.later_s += 1
    host.step()
    words = monitor.comp.op("words")
    assert monitor.par.Alarm.eval() is True and words.par.bgcolorr.eval() > 0.5
    monitor.par.Bridge = bridge.comp
    bridge.connect(daemon.port)
    bridge.until(lambda: bridge.ext.shown.state == "live", "live")
    monitor.later_s += 1
    bridge.until(lambda: "fps 30.0" in words.par.text.eval(), "the numbers")
    assert "latency 12.0 ms" in words.par.text.eval()
    assert monitor.par.Alarm.eval() is False and words.par.bgcolorr.eval() < 0.1
    daemon.view.now = type(daemon.view.now)(errors=("SDB-ENGINE-DEAD: it died",))

    def red() -> bool:
        monitor.later_s += 1
        return bool(monitor.par.Alarm.eval()) and "SDB-ENGINE-DEAD" in words.par.text.eval()

    bridge.until(red, "an error is an alarm")
    assert [op.name for op in monitor.comp.op("out1").inputs] == ["monitor"]


# --- launcher ---

STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time
assert sys.argv[1:4] == ["-m", "sdbridge", "run"], sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
if "broken.yaml" in sys.argv:
    print("SDB-CONFIG-INVALID: no such thing"); sys.exit(2)
assert "PYTHONHOME" not in os.environ
folder = pathlib.Path(os.environ["SDBRIDGE_HOME"], "run"); folder.mkdir(parents=True, exist_ok=True)
file = folder / f"{{port}}.json"
file.write_text(json.dumps({{"pid": os.getpid(), "port": port, "name": "x", "started": "", "version": ""}}))
def end(*_):
    file.unlink(); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("listening; token=abc123", flush=True)
print("session", os.getsid(0) == os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def launcher(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    if os.name == "nt":
        pytest.skip("the stand-in is a script for POSIX systems")
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # as TouchDesigner has it
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=f"{sys.executable} -E"))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    desk = Desk(host, "SdBridgeLauncher")
    desk.par.Python, desk.par.Port = str(python), 19_555
    yield desk
    if desk.ext.running:
        desk.ext.Stop()
        subprocess.run(["kill", "-9", str(desk.par.Pid.eval())], check=False, capture_output=True)
    if desk.ext._process is not None:
        desk.ext._process.wait(timeout=10)


def soon(desk: Desk, done: Any, what: str) -> None:
    def look() -> bool:
        desk.later_s += 0.5
        return bool(done())

    desk.until(look, what)


def test_it_starts_finds_shows_the_log_and_stops(launcher: Desk) -> None:
    launcher.par.Start.pulse()
    soon(launcher, lambda: launcher.status.startswith("running"), "running")
    pid = launcher.par.Pid.eval()
    assert pid > 0
    soon(launcher, lambda: "session True" in launcher.comp.op("log").text, "the log, and it is detached")
    assert "abc123" not in launcher.comp.op("log").text
    launcher.par.Start.pulse()  # once is enough
    soon(launcher, lambda: True, "")
    assert launcher.par.Pid.eval() == pid
    launcher.par.Restart.pulse()
    soon(launcher, lambda: launcher.par.Pid.eval() not in (0, pid), "another one")
    launcher.par.Stop.pulse()
    soon(launcher, lambda: launcher.status == "not running", "stopped")


def test_it_finds_a_daemon_that_it_did_not_start(launcher: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "run"
    folder.mkdir(parents=True)
    about = {"pid": os.getpid(), "port": 19_555, "name": "x", "started": "", "version": ""}
    (folder / "19555.json").write_text(json.dumps(about))
    soon(launcher, lambda: f"process {os.getpid()}" in launcher.status, "found")
    launcher.par.Start.pulse()
    assert launcher.ext._process is None
    (folder / "19555.json").write_text(json.dumps({**about, "pid": 2**22 + 1}))  # a process that is no more
    soon(launcher, lambda: launcher.status == "not running", "gone")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"Python": "/no/python"}, "there is no Python at /no/python"),
        ({"Python": "", "Folder": ""}, "name the sdbridge folder"),
        ({"Python": "", "Folder": "/tmp"}, "scripts/run.py"),
        ({"Config": "broken.yaml"}, "ended with code 2"),
    ],
)
def test_what_is_wrong_is_said(launcher: Desk, settings: dict[str, str], says: str) -> None:
    for name, value in settings.items():
        launcher.par[name].val = value
    launcher.par.Start.pulse()
    soon(launcher, lambda: says in launcher.status, says)


def test_discovery_reads_what_the_daemon_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The component's own reader against the daemon's own writer, and the same folder on every system."""
    from sdbridge import paths
    from sdbridge.instance import Instance
    from sdbridge_td.discovery import find_running, runtime_folder

    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    assert runtime_folder() == paths.runtime_dir()
    assert find_running() is None
    with Instance(19_556, "here"):
        found = find_running()
        assert found is not None and (found.pid, found.port, found.name) == (os.getpid(), 19_556, "here")
        assert find_running(1) is None
    assert find_running() is None
    monkeypatch.delenv("SDBRIDGE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert runtime_folder() == paths.runtime_dir()


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_discovery_looks_in_the_same_folder_on_other_systems(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against platformdirs' own classes for those systems, which the daemon's paths come from."""
    from platformdirs.macos import MacOS
    from platformdirs.windows import Windows, get_win_folder_from_env_vars

    from sdbridge_td import discovery

    monkeypatch.delenv("SDBRIDGE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    monkeypatch.setattr("platformdirs.windows.get_win_folder", get_win_folder_from_env_vars)
    monkeypatch.setattr(discovery.sys, "platform", system)
    theirs = {"darwin": MacOS, "win32": Windows}[system]("sdbridge", appauthor=False).user_data_dir
    assert discovery.runtime_folder() == Path(theirs) / "run"
