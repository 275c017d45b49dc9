"""The sample patch for Pure Data, run in the real program without a window: a controller others can copy."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbridge.clock import SystemClock
from sdbridge.control.osc import OscServer
from sdbridge.parameters.addresses import COMMANDS, STATUS_TOPICS
from sdbridge.parameters.table import TABLE
from tests.control.fake_view import FakeView

PATCH = Path(__file__).parents[2] / "docs" / "examples" / "sdbridge.pd"
_SPY = "#N canvas 0 0 300 200 12;\n#X obj 10 10 r sdb-in;\n#X obj 10 40 print heard;\n#X connect 0 0 1 0;\n"


def test_every_address_in_the_patch_exists() -> None:
    known = {row.address for row in TABLE} | set(TABLE.by_address) | {command.address for command in COMMANDS}
    sent = re.findall(r"oscformat ([a-z_ ]+);", PATCH.read_text())
    assert sent and all("/" + words.replace(" ", "/") in known for words in sent)
    topics = re.search(r"route (fps [a-z_ ]+);", PATCH.read_text())
    assert topics and set(topics.group(1).split()) <= {topic.name for topic in STATUS_TOPICS} | {"heartbeat"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[OscServer, FakeView]]:
    view = FakeView(tmp_path / "presets", clock=SystemClock())  # type: ignore[arg-type]  # the real one serves too
    server = OscServer(view)
    server.start()
    yield server, view
    server.close()


@pytest.mark.skipif(not shutil.which("pd"), reason="needs Debian's puredata-core")
def test_pure_data_steers_and_follows(server: tuple[OscServer, FakeView], tmp_path: Path) -> None:
    osc, view = server
    view.store.set("delta", 0.5)
    view.show.save("one")
    view.store.set("delta", 1.5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spy = tmp_path / "spy.pd"
    spy.write_text(_SPY)
    said = tmp_path / "pd.txt"
    messages = [f"sdb-listen {port}", f"sdb-connect 127.0.0.1 {osc.port}", "sdb-strength 0.25"]
    messages += ["sdb-prompt list a red fox", "sdb-preset-1 bang"]
    command = ["pd", "-nogui", "-noaudio", "-nomidi", "-stderr", "-open", str(PATCH), "-open", str(spy)]
    for message in messages:
        command += ["-send", message]
    with open(said, "wb") as out:
        pd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=os.setsid)
        try:
            _until(lambda: len(osc.subscriptions) == 1, "Pd subscribes")
            view.store.set("guidance_scale", 3.0)
            _until(lambda: "heard: guidance_scale 3" in said.read_text(), "Pd hears the echo")
            _until(lambda: "heard: status state streaming" in said.read_text(), "Pd hears the state")
        finally:
            os.killpg(pd.pid, signal.SIGKILL)
            pd.wait()
    assert (view.store.get("strength"), view.store.get("prompt")) == (0.25, "a red fox")
    assert not [line for line in said.read_text().splitlines() if line.startswith("error")]
    assert any(entry.address == "/sdbridge/preset/recall" and entry.verdict == "ok" for entry in osc.log)
    assert not [entry for entry in osc.log if entry.verdict in ("unknown", "invalid")]


def _until(done: object, what: str) -> None:
    for _ in range(2000):
        if done():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")
