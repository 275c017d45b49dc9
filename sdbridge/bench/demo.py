"""The demo as a newcomer meets it: how soon page, test card and first generated frame are there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdbridge.errors import SdbridgeError
from sdbridge.surfaces import free_port

PATIENCE_S = 180.0
SETTLE_S = 5.0


def demo(seconds: float = 10.0, config: Path | None = None, **options: Any) -> Mapping[str, object]:
    """Start ``sdbridge run`` in a process of its own, wait for its first frames, then watch ``seconds``.

    ``page_s``, ``card_s`` and ``first_frame_s`` count from the command. ``fps`` counts new pictures
    that the engine made (repeated ones do not count) while an MJPEG viewer watches, as a page does.
    ``engine_all_s`` is from the order to start it until it streams, and its parts stand beside it; what
    they leave is Python's own start and the way of messages.
    """
    port = free_port(lan=False)
    command = [
        sys.executable,
        "-m",
        "sdbridge",
        "run",
        *([str(config)] if config else []),
        "--port",
        str(port),
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, "SDBRIDGE_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            page_s = _until(process, lambda: _status(port), began)
            card_s = _until(process, lambda: _status(port)["frames_out"] > 0, began)
            first_s = _until(process, lambda: _has_generated(_status(port)), began)
            parts = _status(port)["engine_start_s"]
            time.sleep(SETTLE_S)
            figures = _watch(port, seconds)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    return {
        "page_s": page_s,
        "card_s": card_s,
        "first_frame_s": first_s,
        **{f"engine_{part}_s": seconds for part, seconds in parts.items()},
        **figures,
    }


def _watch(port: int, seconds: float) -> dict[str, object]:
    before, start = _status(port), time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/output.mjpeg", timeout=30) as viewer:
        while time.monotonic() - start < seconds:
            viewer.read(4096)
    after, spent = _status(port), time.monotonic() - start
    return {
        "fps": (_made(after) - _made(before)) / spent,
        "output_fps": after["fps"],
        "latency_p50_ms": after["latency_ms"]["p50"],
        "latency_p99_ms": after["latency_ms"]["p99"],
        "tick_ms": after["tick_ms"],
        "device": after["device"],
        "model": after["model"],
    }


def _has_generated(status: Mapping[str, Any]) -> bool:
    """Counts are read one by one while frames go out, so one picture of difference proves nothing."""
    return status["state"] == "streaming" and _made(status) > 1


def _made(status: Mapping[str, Any]) -> int:
    """Pictures sent that were new."""
    return int(status["frames_out"]) - int(status["held"])


def _status(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def _until(process: subprocess.Popen[bytes], reached: Callable[[], object], began: float) -> float:
    """Seconds since ``began`` until ``reached``."""
    while time.monotonic() - began < PATIENCE_S:
        if process.poll() is not None:
            raise SdbridgeError("SDB-BENCH-FAULT", f"the daemon ended with {process.returncode}")
        try:
            if reached():
                return time.monotonic() - began
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.01)
    raise SdbridgeError("SDB-BENCH-FAULT", f"nothing came in {PATIENCE_S:.0f} s")
