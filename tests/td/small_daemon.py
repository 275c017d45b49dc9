"""The daemon's OSC server over its real parameter store, without engine or textures; also as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from sdbridge.clock import SystemClock
from sdbridge.config import Config, CueConfig
from sdbridge.control.osc import OscServer
from sdbridge.parameters.table import TABLE
from sdbridge.status import LatencyMs, Status
from tests.control.fake_view import FakeView

ROOT = Path(__file__).resolve().parents[2]


class SmallDaemon:
    """Started at once; ``store`` is the truth."""

    def __init__(
        self, folder: Path, port: int = 0, schema: str = "", cues: tuple[CueConfig, ...] = ()
    ) -> None:
        self.view = FakeView(folder, Config(port=port), clock=SystemClock(), cues=cues)  # type: ignore[arg-type]
        self.view.now = Status(
            state="streaming",
            output="live",
            fps=30.0,
            latency_ms=LatencyMs(12.0, 20.0),
            version="0.1",
            schema=schema or TABLE.schema_hash(),
        )
        self.store = self.view.store
        self.show = self.view.show
        self.revisions: list[dict[str, object]] = []
        self.store.subscribe(lambda change: self.revisions.append(dict(change.values)))
        self.server = OscServer(self.view)
        self.server.start()

    @property
    def port(self) -> int:
        return self.server.port

    def close(self) -> None:
        self.server.close()


def start_process(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """A SmallDaemon in a process of its own; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.td.small_daemon", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """End a process and everything that we hold of it."""
    process.send_signal(how)
    process.communicate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        daemon = SmallDaemon(Path(home), int(sys.argv[1]))
        print(daemon.port, flush=True)
        sys.stdin.read()  # until the parent goes
        daemon.close()
