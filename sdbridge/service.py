"""Starting by itself at log-on: what is written where on each system, and which commands run."""

from __future__ import annotations

import getpass
import os
import plistlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from sdbridge import paths
from sdbridge.errors import SdbridgeError

NAME = "sdbridge"
LABEL = "org.sdbridge.bridge"

#: Runs a command and gives (exit code, what it said). Passed in, so that tests run nothing.
Runner = Callable[[Sequence[str]], tuple[int, str]]


@dataclass(frozen=True)
class Plan:
    """A service on one system: the file to write and the commands around it."""

    file: Path
    text: str
    install: tuple[tuple[str, ...], ...]
    remove: tuple[tuple[str, ...], ...]
    status: tuple[str, ...]
    after: str
    encoding: str = "utf-8"


def plan_for_this_system(config: Path | None, platform: str = sys.platform) -> Plan:
    """The plan that fits ``platform``; the bridge is started with this very Python and ``config``."""
    command = [sys.executable, "-m", "sdbridge", "run", *([str(config.resolve())] if config else [])]
    if platform == "win32":
        return task_scheduler_plan(command)
    if platform == "darwin":
        return launch_agent_plan(command)
    return systemd_plan(command)


def systemd_plan(command: Sequence[str], home: Path | None = None) -> Plan:
    """A unit of the user's own systemd. It stops with SIGTERM, which the bridge answers in good order."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or (home or Path.home()) / ".config")
    text = f"""[Unit]
Description=sdbridge: live textures in, generated frames out
After=graphical-session.target network.target

[Service]
ExecStart={shlex.join(command).replace("%", "%%")}
Restart=on-failure
RestartSec=2
TimeoutStopSec=15
KillMode=mixed

[Install]
WantedBy=default.target
"""
    unit = f"{NAME}.service"
    return Plan(
        file=base / "systemd" / "user" / unit,
        text=text,
        install=(
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", "--now", unit),
        ),
        remove=(("systemctl", "--user", "disable", "--now", unit),),
        status=("systemctl", "--user", "--no-pager", "status", unit),
        after="It starts with your session. To run it without anybody logged in: loginctl enable-linger",
    )


def launch_agent_plan(command: Sequence[str], home: Path | None = None) -> Plan:
    """A LaunchAgent, not a daemon: Syphon and the GPU need the user's graphical session.

    launchd rotates no file: ``--quiet`` leaves service.log to what our own log, which is rotated, cannot say,
    such as a Python that is gone.
    """
    file = (home or Path.home()) / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    log = str(paths.log_dir() / "service.log")
    text = plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [*command, "--quiet"],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "LimitLoadToSessionType": "Aqua",
            "ExitTimeOut": 15,
            "StandardErrorPath": log,
        }
    ).decode()
    domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 501}"
    return Plan(
        file=file,
        text=text,
        install=(("launchctl", "bootstrap", domain, str(file)),),
        remove=(("launchctl", "bootout", f"{domain}/{LABEL}"),),
        status=("launchctl", "print", f"{domain}/{LABEL}"),
        after="It starts at log-in.",
    )


def task_scheduler_plan(command: Sequence[str], user: str | None = None) -> Plan:
    """A task at log-on of this user, in the session that owns the GPU and Spout."""
    user = user or _windows_user()
    arguments = subprocess.list2cmdline(command[1:])
    text = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>sdbridge: live textures in, generated frames out</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled><UserId>{escape(user)}</UserId></LogonTrigger></Triggers>
  <Principals><Principal id="Author"><UserId>{escape(user)}</UserId><LogonType>InteractiveToken</LogonType><RunLevel>LeastPrivilege</RunLevel></Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>4</Priority>
    <RestartOnFailure><Interval>PT1M</Interval><Count>3</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author"><Exec><Command>{escape(command[0])}</Command><Arguments>{escape(arguments)}</Arguments></Exec></Actions>
</Task>
"""  # noqa: E501  the schema's own shape reads best a row a line
    file = paths.config_dir() / "sdbridge-task.xml"
    return Plan(
        file=file,
        text=text,
        install=(
            ("schtasks", "/Create", "/TN", NAME, "/XML", str(file), "/F"),
            ("schtasks", "/Run", "/TN", NAME),
        ),
        remove=(("schtasks", "/End", "/TN", NAME), ("schtasks", "/Delete", "/TN", NAME, "/F")),
        status=("schtasks", "/Query", "/TN", NAME, "/V", "/FO", "LIST"),
        after="It starts when you log on.",
        encoding="utf-16",
    )


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Run for real; a program that is not there is an answer too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def install(plan: Plan, run: Runner = run_command) -> tuple[bool, str]:
    """Write the file and switch the service on. (good, what to tell)."""
    try:
        plan.file.parent.mkdir(parents=True, exist_ok=True)
        plan.file.write_text(plan.text, encoding=plan.encoding)
    except OSError as error:
        return False, str(SdbridgeError("SDB-SERVICE-REFUSED", f"{plan.file} cannot be written: {error}"))
    for command in plan.install:
        code, said = run(command)
        if code != 0:
            for undoing in plan.remove:
                run(undoing)
            plan.file.unlink(missing_ok=True)
            return (
                False,
                f"{said}\n{SdbridgeError('SDB-SERVICE-REFUSED', f'{shlex.join(command)} gave {code}')}",
            )
    return True, f"Installed: {plan.file}\n{plan.after}"


def remove(plan: Plan, run: Runner = run_command) -> tuple[bool, str]:
    """Switch the service off and take the file away; a service that is not there is no fault."""
    if not plan.file.exists():
        return True, "It is not installed."
    said = [run(command)[1] for command in plan.remove]
    plan.file.unlink(missing_ok=True)
    return True, "\n".join([*filter(None, said), f"Removed: {plan.file}"])


def status(plan: Plan, run: Runner = run_command) -> tuple[bool, str]:
    """What the system says of the service."""
    if not plan.file.exists():
        return True, "It is not installed. `sdbridge service install` does that."
    code, said = run(plan.status)
    return code == 0, said


def _windows_user() -> str:
    domain = os.environ.get("USERDOMAIN", "")
    return f"{domain}\\{getpass.getuser()}" if domain else getpass.getuser()
