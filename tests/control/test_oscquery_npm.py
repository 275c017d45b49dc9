"""An OSCQuery client that others wrote (npm: oscquery) reads our tree over HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sdbridge.clock import SystemClock
from sdbridge.config import Config, CueConfig
from sdbridge.control.web import WebServer
from sdbridge.parameters.addresses import COMMANDS, STATUS_TOPICS
from sdbridge.parameters.table import TABLE
from tests.control.fake_view import FakeView

_PACKAGE = "oscquery@1.1.1"
_ASK = """
const { OSCQueryDiscovery } = require("oscquery");
(async () => {
    const service = await new OSCQueryDiscovery().queryNewService("127.0.0.1", Number(process.argv[2]));
    const found = JSON.stringify({ host: service.hostInfo, methods: service.flat() });
    process.stdout.write(found, () => process.exit(0));
})().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node") or not shutil.which("npm"), reason="needs node and npm")
def test_the_npm_client_finds_every_method_with_type_range_and_value(tmp_path: Path) -> None:
    installed = subprocess.run(
        [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            str(tmp_path),
            _PACKAGE,
        ],
        capture_output=True,
        timeout=110,
        check=False,
    )
    if installed.returncode != 0:
        pytest.skip(f"npm could not fetch {_PACKAGE}")
    (tmp_path / "ask.js").write_text(_ASK)
    cues = (CueConfig(name="open"),)
    view = FakeView(tmp_path / "presets", Config(port=0, name="stage left"), SystemClock(), cues)  # type: ignore[arg-type]
    view.show.save("night")
    with WebServer(view) as server:
        asked = subprocess.run(
            ["node", "ask.js", str(server.port)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["host"]["name"] == "stage left"
    methods = {method["full_path"]: method for method in answer["methods"]}
    expected = (
        {row.address for row in TABLE} | {c.address for c in COMMANDS} | {t.address for t in STATUS_TOPICS}
    )
    assert expected <= set(methods)
    scale = methods["/sdbridge/guidance_scale"]
    assert scale["arguments"][0]["type"] == "f" and scale["arguments"][0]["value"] == 1.0
    assert (scale["arguments"][0]["range"]["min"], scale["arguments"][0]["range"]["max"]) == (0, 12)
    assert "/sdbridge/preset/recall/1" in methods and "/sdbridge/cue/go/1" in methods
