"""Where the components' sources are, and a TouchDesigner with SdBridge in it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "td_components"
for folder in (COMPONENTS / "src", COMPONENTS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from tests.td.fake_td import Host  # noqa: E402


class Desk:
    """One component in one fake TouchDesigner, with a clock that can be moved on."""

    def __init__(self, host: Host, component: str = "SdBridge") -> None:
        from sdbridge_td.build import boot_text, code_texts, install

        self.host = host
        self.component = component
        self.later_s = 0.0
        self.comp: Any = install(
            host.root, component, code_texts(COMPONENTS, component), boot_text(COMPONENTS)
        )
        self.ext.clock = self.now

    @property
    def ext(self) -> Any:
        return self.comp.ext.Sdbridge

    @property
    def par(self) -> Any:
        return self.comp.par

    @property
    def status(self) -> str:
        return str(self.comp.par.Status.eval())

    def now(self) -> float:
        return time.monotonic() + self.later_s

    def connect(self, port: int) -> None:
        self.par.Connection = "manual"
        self.par.Oscport = port

    def until(self, done: Callable[[], Any], what: str) -> None:
        """Frames go by until it is so; only a fault reaches the end."""
        for _ in range(1500):
            self.host.step()
            if done():
                return
            time.sleep(0.005)
        raise AssertionError(f"{what}; Status says: {self.status}")

    def frames(self, count: int = 20) -> None:
        for _ in range(count):
            self.host.step()
            time.sleep(0.005)


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No daemon that happens to run on this machine is found, by its file or on the usual port."""
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    connect = socket.socket.connect

    def elsewhere(line: socket.socket, address: Any) -> None:
        connect(line, (address[0], 1) if address[1:] == (9000,) else address)

    monkeypatch.setattr(socket.socket, "connect", elsewhere)


@pytest.fixture
def host(nobody_else: None) -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)
