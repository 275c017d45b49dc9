"""Make the project's virtual environment, once per state of pyproject.toml. Standard library only."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("SDBRIDGE_VENV") or ROOT / ".venv")
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
SUPPORTED = ((3, 11), (3, 13))


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure_environment(extras: tuple[str, ...]) -> Path:
    """The environment's Python, with sdbridge and ``extras`` in it; installs only when something changed."""
    _check_python()
    stamp_file = VENV / f".sdbridge-{'-'.join(extras) or 'core'}"
    stamp = _stamp(extras)
    if venv_python().exists() and stamp_file.exists() and stamp_file.read_text() == stamp:
        return venv_python()
    started = time.monotonic()
    say(f"Installing into {VENV} (the first time takes a few minutes; later starts take none)")
    if not venv_python().exists():
        step("Creating the virtual environment", [sys.executable, "-m", "venv", str(VENV)])
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", *_quiet()]
    index = torch_index()
    if index:
        say(f"NVIDIA driver found: torch comes from {index}")
        pip += ["--extra-index-url", index]
    step("Updating pip", [*pip, "--upgrade", "pip>=24"])
    wanted = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    step("Installing sdbridge and what it needs", [*pip, "--editable", wanted])
    # An editable package is not compiled by pip: the first start would do it while somebody waits.
    subprocess.run([str(venv_python()), "-m", "compileall", "-qq", str(ROOT / "sdbridge")], check=False)
    stamp_file.write_text(stamp)
    say(f"Installed in {time.monotonic() - started:.0f} s")
    return venv_python()


def run_extras() -> tuple[str, ...]:
    """What ``run.py`` adds to the core: NDI where a wheel exists for this machine."""
    intel_mac = sys.platform == "darwin" and platform.machine() == "x86_64"
    return () if intel_mac else ("ndi",)


def torch_index() -> str | None:
    """The package index to add for torch: the user's, or CUDA's when an NVIDIA driver answers."""
    chosen = os.environ.get("SDBRIDGE_TORCH_INDEX")
    if chosen is not None:
        return chosen or None
    if sys.platform == "darwin" or not nvidia_driver_answers():
        return None
    return CUDA_INDEX


def nvidia_driver_answers() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return subprocess.run([program, "-L"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def hand_over(command: list[str]) -> int:
    """Run ``command`` as if it were this process: same terminal, same signals, its exit code."""
    if os.name != "nt":
        sys.stdout.flush()
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the child got the same Ctrl+C and decides


def say(text: str) -> None:
    print(f"sdbridge: {text}", flush=True)


def step(what: str, command: list[str]) -> None:
    """Run one step of the install; on failure say which, show its output, and end with 1."""
    say(f"{what} ...")
    try:
        result = subprocess.run(command)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if result.returncode:
        say(f"SDB-INSTALL-FAILED: '{what}' ended with {result.returncode}; the lines above say why.")
        say(f"Try again; if it stays so, delete {VENV} and start anew.")
        raise SystemExit(1)


def _check_python() -> None:
    here = sys.version_info[:2]
    low, high = SUPPORTED
    if not low <= here <= high:
        say(f"SDB-INSTALL-PYTHON: this is Python {here[0]}.{here[1]}; sdbridge runs on 3.11, 3.12 and 3.13.")
        say("Install Python 3.12 from python.org and run this script with it.")
        raise SystemExit(1)


def _stamp(extras: tuple[str, ...]) -> str:
    text = (ROOT / "pyproject.toml").read_bytes() + repr((extras, sys.version_info[:2], str(ROOT))).encode()
    return hashlib.sha256(text).hexdigest()


def _quiet() -> list[str]:
    """pip's own progress bars on a terminal, silence but for faults elsewhere."""
    return [] if sys.stdout.isatty() else ["--quiet"]
