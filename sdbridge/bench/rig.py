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
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from sdbridge.engine.pipe import SPAWN
from sdbridge.errors import SdbridgeError
from sdbridge.surfaces import free_port
from sdbridge.testing import numbered_picture
from sdbridge.textures.shared_memory import FrameReader, FrameWriter


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
        more: Mapping[str, object] | None = None,
        source_fps: float = 60.0,
    ) -> None:
        self._stack = ExitStack()
        self.side = side
        self.source_fps = source_fps
        self.home = home or Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sdb-rig-")))
        self.port = free_port(lan=False)
        self.name = f"rig{self.port}"
        self._config: dict[str, object] = {
            "name": self.name,
            "port": self.port,
            "input": {"main": {"backend": "shared_memory", "name": f"in{self.port}", "fit": "stretch"}},
            "output": [{"backend": "shared_memory", "name": self.name}],
            "engine": {"kind": kind, "width": side, "height": side, "options": dict(options or {})},
            "hold": dict(hold or {}),
            **(more or {}),
        }
        self.sights: list[Sight] = []
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
        environment = {**os.environ, "SDBRIDGE_HOME": str(self.home / "sdb"), "OMP_NUM_THREADS": "1"}
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

    def start_source(self, fps: float = 0.0, width: int = 0, height: int = 0) -> None:
        self._source = SPAWN.Process(
            target=run_source,
            args=(f"in{self.port}", width or self.side, height or self.side, fps or self.source_fps),
            daemon=True,
        )
        self._source.start()

    def kill_source(self) -> None:
        if self._source is not None:
            self._source.kill()
            self._source.join()

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

    def wait_fresh(self, count: int = 10, timeout_s: float = 60.0) -> float:
        """Wait until ``count`` new pictures came out from now on; when the first of them did."""
        start = len(self.sights)

        def fresh() -> list[Sight]:
            seen = self.sights[max(0, start - 1) :]
            return [b for a, b in itertools.pairwise(seen) if a.shade != b.shade and b.shade != 0]

        self.wait(lambda: len(fresh()) >= count, f"{count} new pictures", timeout_s)
        return fresh()[0].at

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

    def engine_process(self) -> psutil.Process:
        """The engine's process. Raises SDB-BENCH-FAULT if there is none at this moment."""
        assert self.daemon is not None
        for child in psutil.Process(self.daemon.pid).children():
            if "resource_tracker" not in " ".join(child.cmdline()):
                return child
        raise SdbridgeError("SDB-BENCH-FAULT", "the daemon has no engine process")


def run_source(name: str, width: int, height: int, fps: float) -> None:
    """A program that shares numbered pictures; the number starts anew with each run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with FrameWriter(name, 1920, 1080) as writer:
        number, due = os.getpid() % 100, time.monotonic()
        while True:
            number += 1
            writer.write(numbered_picture(number, width, height))
            due = max(due + 1 / fps, time.monotonic() - 1 / fps)
            time.sleep(max(0.0, due - time.monotonic()))
