"""A whole show in processes of its own, to break and to watch: source, daemon, and an observer outside."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from sdbridge.bench.sources import run_source
from sdbridge.engine.pipe import SPAWN
from sdbridge.errors import SdbridgeError
from sdbridge.surfaces import free_port
from sdbridge.textures.shared_memory import FrameReader


@dataclass(frozen=True)
class Sight:
    """One frame as the observer got it. ``shade`` changes with every picture that the source sends."""

    at: float
    number: int
    shade: int


class FaultRig:
    """Starts everything on enter and ends it on exit. The daemon is the real command, ``sdbridge run``."""

    def __init__(
        self,
        kind: str = "faulty",
        side: int = 128,
        hold: Mapping[str, object] | None = None,
        options: Mapping[str, object] | None = None,
        home: Path | None = None,
        backend: str = "shared_memory",
        more: Mapping[str, object] | None = None,
        source: Callable[..., None] = run_source,
        source_fps: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.side = side
        self.source_fps = source_fps
        self._run_source = source
        self._environment = dict(environment or {})
        self.home = home or Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sdb-rig-")))
        self.port = free_port(lan=False)
        self.name = f"rig{self.port}"
        self.source_name = f"in{self.port}"
        self._config: dict[str, object] = {
            "name": self.name,
            "port": self.port,
            "input": {"main": {"backend": backend, "name": self.source_name, "fit": "stretch"}},
            "output": [{"backend": "shared_memory", "name": self.name}],
            "engine": {"kind": kind, "width": side, "height": side, "options": dict(options or {})},
            "hold": dict(hold or {}),
            **(more or {}),
        }
        self.sights: list[Sight] = []
        self.states: list[tuple[float, str]] = []
        self.daemon: subprocess.Popen[bytes] | None = None
        self._source: Any = None
        self._over = threading.Event()
        self._observer = threading.Thread(target=self._observe, name="observer", daemon=True)

    # --- life ---

    def __enter__(self) -> Self:
        with self._stack:
            self.start_daemon()
            self._stack.callback(self.end_daemon)
            self.start_source()
            self._stack.callback(self.end_source)
            self._observer.start()
            self._stack.callback(self._stop_observing)
            self.wait_fresh(5)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_daemon(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        file = self.home / "rig.yaml"
        file.write_text(yaml.safe_dump(self._config), encoding="utf-8")
        environment = {
            **os.environ,
            "SDBRIDGE_HOME": str(self.home / "sdb"),
            "OMP_NUM_THREADS": "1",
            **self._environment,
        }
        with (self.home / "daemon.out").open("ab") as out:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "sdbridge", "run", str(file)],
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )

    def end_daemon(self) -> int:
        """Stop in good order; the exit code."""
        if self.daemon is None:
            return 0
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
        try:
            return self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            return self.daemon.wait(10)

    def start_source(self, fps: float = 0.0, width: int = 0, height: int = 0, **more: object) -> None:
        self._source = SPAWN.Process(
            target=self._run_source,
            args=(self.source_name, width or self.side, height or self.side, fps or self.source_fps),
            kwargs=more,
            daemon=True,
        )
        self._source.start()
        if hasattr(os, "sched_setscheduler"):
            # Under ``chrt`` its start would have the show's own priority, as no other program's has.
            os.sched_setscheduler(self._source.pid, os.SCHED_OTHER, os.sched_param(0))

    def kill_source(self) -> None:
        if self._source is not None:
            self._source.kill()
            self._source.join()

    @property
    def source_id(self) -> int:
        """Its process."""
        return int(self._source.pid)

    def end_source(self) -> None:
        """Have the source close its block, as a program does that is quit."""
        if self._source is not None:
            self._source.terminate()
            self._source.join(5)
        self.kill_source()

    # --- looking ---

    def _observe(self) -> None:
        with FrameReader(self.name) as reader:
            while not self._over.is_set():
                frame = reader.read(0.1)
                if frame is not None:
                    shade = int(frame.pixels[frame.height // 2, frame.width // 2, 1])
                    self.sights.append(Sight(time.monotonic(), frame.frame_id, shade))

    def _stop_observing(self) -> None:
        self._over.set()
        self._observer.join(5)

    def wait(self, wanted: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not wanted():
            if time.monotonic() > deadline:
                tail = (self.home / "daemon.out").read_text(errors="replace")[-2000:]
                raise SdbridgeError("SDB-BENCH-FAULT", f"waited {timeout_s:.0f} s in vain for {what}\n{tail}")
            time.sleep(0.01)

    def wait_fresh(self, count: int = 10, timeout_s: float = 60.0, since: float | None = None) -> float:
        """Wait until ``count`` new pictures came out ``since`` then, or from now on; when the first did."""
        start = time.monotonic() if since is None else since

        def fresh() -> list[Sight]:
            seen = self._since(start)
            return [b for a, b in itertools.pairwise(seen) if a.shade != b.shade and b.shade != 0]

        self.wait(lambda: len(fresh()) >= count, f"{count} new pictures", timeout_s)
        return fresh()[0].at

    def _since(self, start: float) -> list[Sight]:
        """What was seen from ``start`` on, and the one before it."""
        first = len(self.sights)
        while first > 0 and self.sights[first - 1].at >= start:
            first -= 1
        return self.sights[max(0, first - 1) :]

    def watch_state(self) -> None:
        """Note when the engine's state changes, from now on, as the status tells it."""

        def look() -> None:
            while not self._over.wait(0.05):
                try:
                    state = self.status()["state"]
                except (OSError, ValueError, HTTPException):
                    continue  # the daemon is busy or gone; the faults' own waits say so
                if not self.states or self.states[-1][1] != state:
                    self.states.append((time.monotonic(), state))

        threading.Thread(target=look, name="states", daemon=True).start()

    def loaded_at(self, since: float) -> float | None:
        """When an engine that was loading first streamed again after ``since``; None if none loaded."""
        changes = [(at, state) for at, state in self.states if at >= since]
        return next((at for at, state in changes if state == "streaming"), None)

    def gaps_ms(self, since: float) -> list[float]:
        """Times between frames of the output from ``since`` on, sorted."""
        times = [sight.at for sight in self.sights if sight.at >= since]
        return sorted((b - a) * 1e3 for a, b in itertools.pairwise(times)) or [0.0]

    # --- asking and telling the daemon ---

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=10) as answer:
            read: dict[str, Any] = json.load(answer)
            return read

    def set(self, **values: object) -> None:
        """Parameters by name, ``__`` for a dot."""
        body = json.dumps({"values": {name.replace("__", "."): value for name, value in values.items()}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/parameters",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def save_preset(self, name: str) -> bool:
        """Whether the look of now could be saved."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/presets/save",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError:
            return False
        return True

    def engine_process(self) -> psutil.Process:
        """The engine's process. Raises SDB-BENCH-FAULT if there is none at this moment."""
        assert self.daemon is not None
        for child in psutil.Process(self.daemon.pid).children():
            if "resource_tracker" not in " ".join(child.cmdline()):
                return child
        raise SdbridgeError("SDB-BENCH-FAULT", "the daemon has no engine process")
