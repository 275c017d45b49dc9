"""``build_tox.py`` against stand-ins that behave as TouchDesigner's tools are known to behave."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

import build_tox
from tests.td.conftest import COMPONENTS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")

#: Works in place on X.tox with X.tox.toc and X.tox.dir; an X.tox that exists becomes X.tox.bkp1.
COLLAPSE = """
import pathlib, sys, tarfile
name = sys.argv[1]
target, toc, tree = pathlib.Path(name), pathlib.Path(name + ".toc"), pathlib.Path(name + ".dir")
if not toc.is_file() or not tree.is_dir():
    print("no table of contents"); sys.exit(0)
if target.exists():
    target.rename(name + ".bkp1")
if {refuse!r} in toc.read_text():
    print("Unknown operator type"); sys.exit(0)
with tarfile.open(target, "w") as tar:
    tar.add(toc); tar.add(tree)
sys.exit(1)
"""
#: Exits with 1 when it has succeeded.
EXPAND = """
import pathlib, sys, tarfile
name = sys.argv[1]
with tarfile.open(name) as tar:
    tar.extractall(filter="data")
pathlib.Path(name + ".dir", "written.panel").write_text("1")
lose = {lose!r}
if lose:
    pathlib.Path(name + ".dir", lose).unlink()
sys.exit(1)
"""


def touchdesigner(folder: Path, lose: str = "", refuse: str = "never") -> Path:
    """A TouchDesigner that has only the two tools."""
    (folder / "bin").mkdir(parents=True)
    for name, code in (("toecollapse", COLLAPSE), ("toeexpand", EXPAND)):
        tool = folder / "bin" / name
        tool.write_text(f"#!{sys.executable}\n" + code.format(lose=lose, refuse=refuse))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return folder


def test_it_builds_all_four_and_touches_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    td, dist = touchdesigner(tmp_path / "td"), tmp_path / "dist"
    dist.mkdir()
    (dist / "SdBridge.tox").write_bytes(b"an older one")
    before = {p: p.read_bytes() for p in (COMPONENTS / "expanded").rglob("*") if p.is_file()}
    assert build_tox.main(["--td", str(td), "--to", str(dist), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = sorted(p.name for p in dist.iterdir())
    assert names == [
        f"{n}.tox" for n in sorted(("SdBridge", "SdBridgeCues", "SdBridgeLauncher", "SdBridgeMonitor"))
    ]
    assert all(one["built"] and not one["lost"] and not one["changed"] for one in report["components"])
    assert (dist / "SdBridge.tox").read_bytes() != b"an older one"
    assert before == {p: p.read_bytes() for p in (COMPONENTS / "expanded").rglob("*") if p.is_file()}


def test_a_file_lost_on_the_way_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    td = touchdesigner(tmp_path / "td", lose="SdBridge/boot.text")
    trees = tmp_path / "trees"
    trees.mkdir()
    (trees / "SdBridge.tox.toc").write_bytes((COMPONENTS / "expanded" / "SdBridge.tox.toc").read_bytes())
    (trees / "SdBridge.tox.dir").symlink_to(COMPONENTS / "expanded" / "SdBridge.tox.dir")
    assert build_tox.main(["--td", str(td), "--trees", str(trees), "--to", str(tmp_path / "dist")]) == 1
    assert "LOST ['SdBridge/boot.text']" in capsys.readouterr().out


def test_a_tree_that_is_refused_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    td = touchdesigner(tmp_path / "td", refuse="SdBridgeCues.n")
    assert build_tox.main(["--td", str(td), "--to", str(tmp_path / "dist")]) == 1
    said = capsys.readouterr().out
    assert "toecollapse made no SdBridgeCues.tox: exit 0, Unknown operator type" in said
    assert "SdBridgeMonitor.tox" in said  # the others are built all the same


def test_without_touchdesigner_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_tox.main(["--td", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "toeexpand" in said and str(tmp_path) in said and "bootstrap.py" in said
    monkeypatch.setattr(build_tox, "_USUAL", ())
    monkeypatch.delenv("TOUCHDESIGNER", raising=False)
    assert build_tox.main([]) == 2


def test_the_tools_are_found_where_installations_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    td = touchdesigner(tmp_path / "TouchDesigner.2025.32460")
    monkeypatch.setattr(build_tox, "_USUAL", (str(tmp_path / "TouchDesigner*"),))
    monkeypatch.delenv("TOUCHDESIGNER", raising=False)
    assert build_tox.find_tools(None) == td / "bin"
    monkeypatch.setenv("TOUCHDESIGNER", str(td / "bin"))
    assert build_tox.find_tools(None) == td / "bin"


@pytest.mark.needs_td
def test_the_real_tools(tmp_path: Path) -> None:
    if build_tox.find_tools(None) is None:
        pytest.skip("no TouchDesigner on this machine")
    assert build_tox.main(["--to", str(tmp_path)]) == 0
