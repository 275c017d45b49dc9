"""The text that each system is given, and the commands around it; nothing is run here."""

import plistlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sdbridge import service

COMMAND = ["/opt/my python/bin/python", "-m", "sdbridge", "run", "/home/a b/show & tell.yaml"]


class FakeRunner:
    def __init__(self, code: int = 0, said: str = "") -> None:
        self.code, self.said, self.ran = code, said, []

    def __call__(self, command):
        self.ran.append(tuple(command))
        return self.code, self.said


def test_the_plan_starts_this_very_python_with_the_config(tmp_path):
    plan = service.plan_for_this_system(tmp_path / "show.yaml", platform="linux")
    assert sys.executable in plan.text and str(tmp_path / "show.yaml") in plan.text
    assert "-m sdbridge run" in plan.text


def test_systemd_quotes_blanks_and_stops_politely(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    plan = service.systemd_plan(COMMAND, tmp_path)
    assert plan.file == tmp_path / ".config/systemd/user/sdbridge.service"
    assert "ExecStart='/opt/my python/bin/python' -m sdbridge run '/home/a b/show & tell.yaml'" in plan.text
    assert "KillMode=mixed" in plan.text  # SIGTERM to the bridge first: it ends its engine itself
    assert ("systemctl", "--user", "enable", "--now", "sdbridge.service") in plan.install


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_itself_accepts_the_unit(tmp_path):
    plan = service.systemd_plan([sys.executable, "-m", "sdbridge", "run"], tmp_path)
    file = tmp_path / "sdbridge.service"
    file.write_text(plan.text)
    done = subprocess.run(["systemd-analyze", "verify", "--user", str(file)], capture_output=True, text=True)
    assert "sdbridge.service" not in done.stderr, done.stderr


def test_a_launch_agent_runs_in_the_graphical_session(tmp_path):
    plan = service.launch_agent_plan(COMMAND, tmp_path)
    about = plistlib.loads(plan.text.encode())
    assert about["ProgramArguments"] == [*COMMAND, "--quiet"]  # service.log would grow for ever
    assert about["RunAtLoad"] is True and about["LimitLoadToSessionType"] == "Aqua"
    assert plan.file == tmp_path / "Library/LaunchAgents/org.sdbridge.bridge.plist"


def test_the_task_is_valid_xml_with_everything_escaped():
    plan = service.task_scheduler_plan([r"C:\Program Files\py\python.exe", *COMMAND[1:]], user="STUDIO\\a&b")
    root = ElementTree.fromstring(plan.text.replace(' encoding="UTF-16"', ""))
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert root.find(f".//{space}Command").text == r"C:\Program Files\py\python.exe"
    assert root.find(f".//{space}Arguments").text == '-m sdbridge run "/home/a b/show & tell.yaml"'
    assert root.find(f".//{space}LogonTrigger/{space}UserId").text == "STUDIO\\a&b"
    assert root.find(f".//{space}ExecutionTimeLimit").text == "PT0S"  # a show may run for days


def plan_in(folder: Path) -> service.Plan:
    return service.systemd_plan(COMMAND, folder)


def test_install_writes_then_runs_and_remove_undoes(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    plan, run = plan_in(tmp_path), FakeRunner()
    good, text = service.install(plan, run)
    assert good and str(plan.file) in text and plan.file.read_text() == plan.text
    assert run.ran == list(plan.install)
    assert service.status(plan, FakeRunner(0, "active")) == (True, "active")
    assert service.remove(plan, run)[0] and not plan.file.exists()
    assert service.remove(plan, run) == (True, "It is not installed.")


def test_a_system_that_refuses_is_quoted(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    plan, run = plan_in(tmp_path), FakeRunner(1, "Failed to connect to bus")
    good, text = service.install(plan, run)
    assert not good and not plan.file.exists() and run.ran[-1] == plan.remove[-1], "nothing was changed"
    assert (
        "Failed to connect to bus" in text
        and "SDB-SERVICE-REFUSED: systemctl --user daemon-reload gave 1" in text
    )


def test_a_program_that_is_not_there_is_an_answer():
    code, said = service.run_command(["no-such-program-anywhere"])
    assert code == 127 and "no-such-program-anywhere" in said
