"""A real daemon in its own process, for tests: on a free port, asked over HTTP, stopped by SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import simplejpeg
from pythonosc.udp_client import SimpleUDPClient

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 90.0  # these machines may be busy with something else


def free_port() -> int:
    """A port that is free for both UDP and TCP just now."""
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def wait_for(what: Callable[[], Any], timeout_s: float = PATIENCE_S, why: str = "") -> Any:
    """Ask until the answer is true, and give it back; fail with ``why`` when patience ends."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {why or what}")


class Daemon:
    """``with Daemon(tmp_path, config_text) as daemon: daemon.status()``."""

    def __init__(self, home: Path, config: str, *arguments: str) -> None:
        self.home = home
        self.port = free_port()
        self.config = home / "show.yaml"
        self.config.write_text(config, encoding="utf-8")
        self._arguments = arguments
        self._log = home / "console.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        env = {**os.environ, "SDBRIDGE_HOME": str(self.home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-m", "sdbridge", "run", str(self.config), "--port", str(self.port)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._arguments],
                env=env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, why="the page to answer")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.console()}")
        try:
            return bool(self.status())
        except OSError:
            return False

    def console(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/api/status"))

    def post(self, path: str, body: object) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def set(self, **values: object) -> int:
        """Set parameters (double underscores stand for dots); the revision that holds them."""
        code, answer = self.post(
            "/api/parameters", {"values": {name.replace("__", "."): value for name, value in values.items()}}
        )
        assert code == 200, answer
        return int(answer["revision"])

    def osc(self, address: str, *arguments: object) -> None:
        with SimpleUDPClient("127.0.0.1", self.port) as client:
            client.send_message(address, list(arguments))

    def applied(self, revision: int) -> None:
        """Wait until frames made with ``revision`` are leaving."""
        wait_for(lambda: self.status()["applied_revision"] >= revision, why=f"revision {revision}")
        out = self.status()["frames_out"]
        wait_for(lambda: self.status()["frames_out"] >= out + 3, why="three more frames")

    def streaming(self) -> Self:
        """Wait until pictures of the engine leave; before that it is the test card."""

        def makes_pictures() -> bool:
            status = self.status()
            return status["state"] == "streaming" and status["frames_out"] - status["held"] > 3

        wait_for(makes_pictures, why="streaming")
        return self

    def output(self) -> np.ndarray:
        """One picture of the MJPEG stream, uint8 RGB."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/output.mjpeg", timeout=30) as stream:
            received = b""
            while True:
                received += stream.read(4096)
                start = received.find(b"\xff\xd8")
                end = received.find(b"\xff\xd9", start)
                if start >= 0 and end > 0:
                    return np.asarray(simplejpeg.decode_jpeg(received[start : end + 2]))

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise AssertionError(f"SIGTERM did not end the daemon:\n{self.console()}") from None
        return self.process.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self.stop()
        if kind is None:
            assert code == 0, self.console()
