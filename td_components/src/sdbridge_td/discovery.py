"""Where a daemon that runs on this machine says that it is: the file ``sdbridge/instance.py`` writes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A daemon that says it runs. Whether it still does, its heartbeat tells."""

    pid: int
    port: int
    name: str


def runtime_folder() -> Path:
    """The folder of the discovery file; the same rules as ``sdbridge/paths.py`` has."""
    home = os.environ.get("SDBRIDGE_HOME")
    if home:
        return Path(home).expanduser() / "run"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "sdbridge" / "run"


def find_running(port: int = 0) -> Running | None:
    """The daemon that was started last, or the one on ``port``; None if there is none."""
    found: list[tuple[float, Running]] = []
    folder = runtime_folder()
    try:
        files = sorted(folder.glob("*.json"))
    except OSError:
        return None
    for file in files:
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            running = Running(int(said["pid"]), int(said["port"]), str(said.get("name", "")))
            when = file.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_alive(running.pid) and port in (0, running.port):
            found.append((when, running))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        code = ctypes.c_ulong()
        alive = bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == 259
        kernel.CloseHandle(handle)
        return alive
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
