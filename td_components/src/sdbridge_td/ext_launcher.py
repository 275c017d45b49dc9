"""SdBridgeLauncher: starts a daemon that outlives TouchDesigner, finds a running one, shows its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .discovery import Running, find_running, is_alive
from .ext_base import BaseExt, never_raises
from .link import monotonic
from .pages import PageSpec, Spec

if TYPE_CHECKING:
    import td

LAUNCHER_PAGES: tuple[PageSpec, ...] = (
    (
        "Launcher",
        (
            Spec("Status", "Str", "Status", "What is going on.", "", read_only=True),
            Spec("Start", "Pulse", "Start", "Start the daemon, unless one runs on this port already."),
            Spec("Stop", "Pulse", "Stop", "End the daemon that runs on this port, in good order."),
            Spec("Restart", "Pulse", "Restart", "Stop, then start."),
            Spec("Autostart", "Toggle", "Autostart", "Start the daemon when the project opens.", False),
            Spec(
                "Folder",
                "Folder",
                "Folder",
                "Folder of the sdbridge repository; empty if sdbridge is installed in the Python below.",
                "",
                section=True,
            ),
            Spec(
                "Python",
                "File",
                "Python",
                "Python that sdbridge is installed in. Empty: the .venv that scripts/run.py made there. "
                "Never TouchDesigner's own.",
                "",
            ),
            Spec("Config", "File", "Config", "Configuration file. Empty: the demo.", ""),
            Spec("Port", "Int", "Port", "Port of the daemon, UDP and TCP.", 9000, 1, 65535),
            Spec(
                "Pid", "Int", "Process", "Number of the daemon's process, 0 if none runs.", 0, read_only=True
            ),
        ),
    ),
)
_LOOK_S = 1.0
_LOG_LINES = 60
_STOP_S = 15.0
#: Variables by which TouchDesigner's Python would leak into ours.
_NOT_OURS = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "PYTHONSTARTUP", "VIRTUAL_ENV")
_SECRET = ("token", "password", "secret", "authorization")


class LauncherExt(BaseExt):
    """The extension of SdBridgeLauncher. The daemon is no child that dies with us."""

    def __init__(self, comp: td.COMP, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(comp, clock)
        self.running: Running | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""
        self._look_at = 0.0
        self._start_after_stop = False
        self._stopping: tuple[int, float] | None = None  # pid, until when we ask nicely
        self._log_size = -1

    @never_raises
    def Built(self, missing: list[str]) -> None:
        if self.value("Autostart", False):
            self.Start()

    @never_raises
    def Frame(self) -> None:
        now = self.clock()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        self.running = find_running(self.value("Port", 9000))
        self._follow_process()
        self._follow_stop(now)
        self.show("Pid", self.running.pid if self.running else 0)
        self._show_log()
        if self._stopping:
            text = f"stopping process {self._stopping[0]}"
        elif self.running:
            text = f"running: process {self.running.pid} on port {self.running.port}"
        elif self._process is not None:
            text = f"starting: process {self._process.pid}"
        else:
            text = "not running"
        self.say(f"{text}; {self._problem}" if self._problem else text)

    @never_raises
    def Pulse(self, par: td.Par) -> None:
        action = {"Start": self.Start, "Stop": self.Stop, "Restart": self.Restart}.get(par.name)
        if action is not None:
            action()

    @never_raises
    def Start(self) -> None:
        """Start the daemon, detached; one that runs on this port is left alone."""
        self._look_at = 0.0
        self._problem = ""
        self.running = find_running(self.value("Port", 9000))
        if self.running is not None or (self._process is not None and self._process.poll() is None):
            return
        python, wrong = self._python()
        if wrong:
            self._problem = wrong
            return
        command = [python, "-m", "sdbridge", "run"]
        config = self.value("Config", "").strip()
        if config:
            command.append(config)
        command += ["--port", str(self.value("Port", 9000))]
        folder = self.value("Folder", "").strip()
        try:
            self._process = start_detached(command, folder or None, self.log_file())
        except OSError as error:
            self._problem = f"{python} cannot be started ({error.strerror or error})"

    @never_raises
    def Stop(self) -> None:
        """Ask the daemon to end; it holds the last picture until its sender closes."""
        self._look_at = 0.0
        self.running = find_running(self.value("Port", 9000))
        if self.running is None:
            return
        self._stopping = (self.running.pid, self.clock() + _STOP_S)
        ask_to_end(self.running.pid)

    @never_raises
    def Restart(self) -> None:
        self.Stop()
        self._start_after_stop = True

    def log_file(self) -> Path:
        """What the daemon prints, one file for each port."""
        return Path(tempfile.gettempdir()) / f"sdbridge-{self.value('Port', 9000)}.log"

    def _python(self) -> tuple[str, str]:
        """The Python to start, or what is wrong."""
        given = self.value("Python", "").strip()
        folder = self.value("Folder", "").strip()
        if given:
            return (given, "") if Path(given).is_file() else ("", f"there is no Python at {given}")
        if not folder:
            return "", "name the sdbridge folder, or the Python that sdbridge is installed in"
        inside = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
        python = Path(folder, ".venv", *inside)
        if not python.is_file():
            return "", f"there is no {python}: run `python scripts/run.py` in {folder} once"
        return str(python), ""

    def _follow_process(self) -> None:
        if self._process is None:
            return
        code = self._process.poll()
        if code is not None:
            if self.running is None and code != 0:
                self._problem = f"the daemon ended with code {code}; its log says why"
            self._process = None

    def _follow_stop(self, now: float) -> None:
        if self._stopping is not None:
            pid, until = self._stopping
            if is_alive(pid):  # its file goes first, its ports a moment later
                if now >= until:
                    self._problem = f"process {pid} does not end"
                    self._stopping = None
                    self._start_after_stop = False
                return
            self._stopping = None
        if self._start_after_stop:
            self._start_after_stop = False
            self.Start()

    def _show_log(self) -> None:
        """The newest lines, without what should not be read over a shoulder."""
        file = self.log_file()
        try:
            size = file.stat().st_size
            if size == self._log_size:
                return
            self._log_size = size
            with file.open("rb") as handle:
                handle.seek(max(0, size - 16_384))
                lines = handle.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return
        log: Any = self.comp.op("log")
        if log is not None:
            log.text = "\n".join(without_secret(line) for line in lines[-_LOG_LINES:])


def without_secret(line: str) -> str:
    """A log line that names a secret is cut where it does."""
    low = line.lower()
    at = min((low.find(word) for word in _SECRET if word in low), default=-1)
    return line if at < 0 else line[:at] + "(not shown)"


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment for the daemon: ours, without what belongs to TouchDesigner's own Python."""
    return {key: value for key, value in base.items() if key.upper() not in _NOT_OURS}


def start_detached(command: Sequence[str], folder: str | None, log: Path) -> subprocess.Popen[bytes]:
    """Start a process that goes on when TouchDesigner ends or crashes. Raises OSError."""
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            cwd=folder,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            creationflags=flags,
            start_new_session=sys.platform != "win32",
            close_fds=True,
        )


def ask_to_end(pid: int) -> None:
    """SIGTERM where there is one; on Windows the process tree is ended, since no console is shared."""
    if sys.platform == "win32":
        subprocess.Popen(
            ["taskkill", "/PID", str(pid), "/T", "/F"], creationflags=subprocess.CREATE_NO_WINDOW
        )
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
