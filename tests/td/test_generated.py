"""What is generated is what the sources and the table give: the schema and the trees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdbridge.parameters.addresses import STATUS_TOPICS
from sdbridge.parameters.table import TABLE
from tests.td.conftest import COMPONENTS, ROOT
from tests.td.expanded_reader import TreeError, read_tree

COMMAND = "python scripts/make_td_components.py"
TREES = sorted((COMPONENTS / "expanded").glob("*.tox.toc"))


def test_the_schema_and_the_trees_are_those_of_the_sources() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_td_components.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `{COMMAND}` and commit what it changes\n{done.stdout}{done.stderr}"


def test_the_schema_says_what_the_table_says() -> None:
    """Field for field, not only by way of the generator."""
    document = json.loads((COMPONENTS / "schema" / "parameters.json").read_text(encoding="utf-8"))
    assert document["hash"] == TABLE.schema_hash(), f"run `{COMMAND}`"
    assert len(document["parameters"]) == len(TABLE.templates)
    for said, row in zip(document["parameters"], TABLE.templates, strict=True):
        for field in (
            "name",
            "kind",
            "default",
            "minimum",
            "maximum",
            "help",
            "slots",
            "effect",
            "multiple_of",
        ):
            assert said[field] == getattr(row, field), (row.name, field)
        assert tuple(said["choices"]) == row.choices
    assert [t["name"] for t in document["status"]] == ["heartbeat", *(t.name for t in STATUS_TOPICS)]


def test_a_change_of_one_parameter_changes_what_is_generated(tmp_path: Path) -> None:
    """The check above can fail: with one range changed, the command says so."""
    script = (
        "import sys; sys.argv = ['make_td_components.py', '--check']\n"
        "import dataclasses, runpy\n"
        "from sdbridge.parameters import table\n"
        "rows = tuple(dataclasses.replace(r, maximum=13.0) if r.name == 'guidance_scale' else r for r in "
        "table.TEMPLATES)\n"
        "table.TABLE = table.ParameterTable(rows)\n"
        "runpy.run_path('scripts/make_td_components.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert COMMAND in done.stdout


def test_generating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    from trees import write_trees

    write_trees(tmp_path / "a")
    write_trees(tmp_path / "b")
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("toc", TREES, ids=lambda toc: toc.name)
def test_an_independent_reader_reads_the_trees(toc: Path) -> None:
    nodes = read_tree(toc)
    name = toc.name.removesuffix(".tox.toc")
    assert next(iter(nodes)) == name
    assert nodes[f"{name}/boot"].parms == {"start": "on", "create": "on", "language": "python"}
    source = COMPONENTS / "src" / "sdbridge_td"
    for module in sorted(source.glob("*.py")):
        if module.stem != "__init__":
            assert nodes[f"{name}/code/{module.stem}"].text == module.read_text(encoding="utf-8")
    assert nodes[f"{name}/boot"].text == (source / "callbacks" / "boot.py").read_text(encoding="utf-8")


def test_the_trees_hold_no_path_of_this_machine() -> None:
    for file in (COMPONENTS / "expanded").rglob("*"):
        if file.is_file():
            data = file.read_bytes()[27 if file.suffix == ".text" else 0 :]  # past the length
            assert b"\r" not in data, file
            assert not re.search(rb"/work/|/home/|[A-Z]:\\\\Users", data), file


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d, t: (d / "SdBridge" / "boot.text").write_bytes(b"2\n*" + bytes(24) + b"x"), "prologue"),
        (lambda d, t: t.write_bytes(t.read_bytes().replace(b"# 4 0 0 0 1", b"4 0 0 0 1")), "first line"),
        (lambda d, t: t.write_bytes(t.read_bytes() + b"SdBridge/boot.n\n"), "twice"),
        (lambda d, t: (d / "SdBridge" / "extra.n").write_bytes(b"DAT:text\nend\n"), "unlisted"),
        (lambda d, t: (d / "SdBridge" / "boot.n").write_bytes(b"DAT:execute\r\nend\r\n"), "line ends"),
        (lambda d, t: (d / "SdBridge" / "boot.n").write_bytes(b"TOP:ndiin\nend\n"), "not known"),
        (lambda d, t: (d / "SdBridge" / "boot.parm").write_bytes(b'?\ncreate 17 on me.x\n?\n'), "flag 0"),
        (lambda d, t: lengthen(d / "SdBridge" / "boot.text"), "announced"),
    ],
)  # fmt: skip
def test_a_spoilt_tree_is_noticed(tmp_path: Path, spoil: object, says: str) -> None:
    shutil.copytree(COMPONENTS / "expanded" / "SdBridge.tox.dir", tmp_path / "SdBridge.tox.dir")
    toc = shutil.copy(COMPONENTS / "expanded" / "SdBridge.tox.toc", tmp_path)
    spoil(tmp_path / "SdBridge.tox.dir", Path(toc))  # type: ignore[operator]
    with pytest.raises(TreeError, match=says):
        read_tree(Path(toc))


def test_what_the_textport_reads_is_ascii() -> None:
    """``exec(open(...).read())`` reads in whatever encoding the system has."""
    for path in (*COMPONENTS.glob("*.py"), *(COMPONENTS / "src").rglob("*.py")):
        assert path.read_bytes().isascii(), path


def test_no_tox_is_committed() -> None:
    """A .tox is TouchDesigner's to write."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git here to ask")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if line.endswith((".tox", ".toe"))]
    kept = subprocess.run(
        ["git", "check-attr", "text", "td_components/expanded/SdBridge.tox.toc"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert kept.stdout.strip().endswith("text: unset")
