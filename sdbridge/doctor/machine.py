"""Findings about the machine: Python, torch and GPU, disk, places that must be writable, ports."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sdbridge import __version__, paths
from sdbridge.doctor.finding import Finding, Grade

_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
p = torch.cuda.get_device_properties(0) if cuda else None
print(json.dumps({"torch": torch.__version__, "cuda_build": torch.version.cuda, "cuda": cuda,
  "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads(),
  "gpu": p.name if p else "", "vram_gb": round(p.total_memory / 2**30, 1) if p else 0.0,
  "capability": f"{p.major}.{p.minor}" if p else ""}))
"""


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        "python",
        "good" if good else "wrong",
        f"Python {version} on {platform.platform()}, sdbridge {__version__}",
        "" if good else "sdbridge is tested on Python 3.11 to 3.13.",
    )


def check_torch() -> Iterator[Finding]:
    """Torch is asked in a process of its own: importing it here would cost seconds and memory."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120
        )
        facts = json.loads(result.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        yield Finding("torch", "wrong", f"torch does not import: {error}", "Run python scripts/run.py again.")
        return
    if facts["cuda"]:
        card = f"{facts['gpu']}, {facts['vram_gb']} GB, capability {facts['capability']}"
        text = f"torch {facts['torch']} on {card}"
        yield Finding("torch", "good", text)
        return
    where = "Apple GPU (mps)" if facts["mps"] else f"CPU, {facts['threads']} threads"
    driver = nvidia_driver()
    if driver and not facts["cuda_build"]:
        yield Finding(
            "torch",
            "wrong",
            f"torch {facts['torch']} is a CPU build, though an NVIDIA driver answers ({driver})",
            "Delete .venv and run python scripts/run.py again: it adds the CUDA index.",
        )
    elif driver:
        yield Finding(
            "torch",
            "wrong",
            f"torch {facts['torch']} (CUDA {facts['cuda_build']}) cannot use the GPU; driver: {driver}",
            "Update the NVIDIA driver.",
        )
    else:
        yield Finding(
            "torch", "good" if facts["mps"] else "note", f"torch {facts['torch']} on {where}; no NVIDIA GPU"
        )


def nvidia_driver() -> str:
    """Name and driver version of the first NVIDIA card, or nothing."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    try:
        result = subprocess.run(
            [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip().splitlines()[0] if result.returncode == 0 and result.stdout.strip() else ""


def check_places() -> Iterator[Finding]:
    """Every place we write to, and the room left there."""
    for name, folder in paths.all_paths().items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            free_gb = shutil.disk_usage(folder).free / 2**30
        except OSError as error:
            step = "Free the disk or set SDBRIDGE_HOME to a folder that can be written."
            yield Finding(f"{name} folder", "wrong", f"{folder} cannot be written: {error}", step)
            continue
        grade: Grade = "good" if free_gb > 10 else "note"
        step = "" if free_gb > 10 else "Models take 2 to 7 GB each."
        yield Finding(f"{name} folder", grade, f"{folder} ({free_gb:.0f} GB free)", step)


def check_port(port: int, running: str) -> Iterator[Finding]:
    """Whether OSC (UDP) and page (TCP) can have their port; ``running`` is a daemon that holds it rightly."""
    taken = [
        name for name, kind in (("UDP", socket.SOCK_DGRAM), ("TCP", socket.SOCK_STREAM)) if _taken(port, kind)
    ]
    if not taken:
        yield Finding("port", "good", f"{port} is free for OSC (UDP) and the page (TCP)")
    elif running:
        yield Finding("port", "good", f"{port} is held by the running sdbridge ({running})")
    else:
        yield Finding(
            "port",
            "wrong",
            f"{' and '.join(taken)} port {port} is taken by another program",
            "Close it, or give another with --port.",
        )


def _taken(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def check_shared_memory() -> Iterator[Finding]:
    """Linux only: frames travel through /dev/shm, which containers make tiny."""
    folder = Path("/dev/shm")
    if not folder.exists():
        return
    free_mb = shutil.disk_usage(folder).free / 2**20
    good = free_mb > 256
    yield Finding(
        "shared memory",
        "good" if good else "wrong",
        f"{folder} has {free_mb:.0f} MB free",
        "" if good else "Give the container more, such as docker run --shm-size=1g.",
    )
