"""The self-test that people run inside TouchDesigner, run in the fake: it passes, and it can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.td.conftest import COMPONENTS
from tests.td.fake_td import OPERATORS, Host


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import shutil

    folder = tmp_path / "td_components"
    for part in ("src", "schema"):
        shutil.copytree(COMPONENTS / part, folder / part)
    scope: dict[str, Any] = {"SDBRIDGE_TD_NO_RUN": True}
    exec((COMPONENTS / "selftest_td.py").read_text(encoding="utf-8"), scope)

    def run_it(licence: str = "Commercial") -> dict[str, Any]:
        with Host(licence=licence) as host:
            scope["run_selftest"](folder)
            assert host.root.op("sdbridge_selftest") is None  # it cleans up
        report: dict[str, Any] = json.loads((folder / "selftest.json").read_text(encoding="utf-8"))
        return report

    return run_it


@pytest.mark.parametrize("licence", ["Commercial", "Non-Commercial"])
def test_it_passes_in_the_fake(run: Any, licence: str) -> None:
    report = run(licence)
    assert report["failed"] == 0, [c for c in report["checks"] if not c["ok"]]
    assert report["passed"] >= 28
    found = {c["check"]: c["found"] for c in report["checks"]}
    assert found["OSC: three messages out and back"]["values"] == [0.25, "selftest", "full"]
    missing = found["SdBridge: operators"]
    assert (missing == "all there") == (licence == "Commercial")


def test_it_reports_a_parameter_that_touchdesigner_does_not_have(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OPERATORS["cacheTOP"]["pars"], "cachesize")
    report = run()
    broken = [c for c in report["checks"] if not c["ok"]]
    assert [c["check"] for c in broken] == ["SdBridge: parameter names of operators"]
    assert "cacheTOP.cachesize" in broken[0]["found"]
    assert any(c["check"] == "SdBridgeMonitor: builds" and c["ok"] for c in report["checks"])
