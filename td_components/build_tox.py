"""Turns the expanded trees into ``.tox`` files with TouchDesigner's own ``toecollapse``.

    python td_components/build_tox.py                 into td_components/dist
    python td_components/build_tox.py --td FOLDER     with the TouchDesigner in FOLDER
    python td_components/build_tox.py --json          the report on standard output, for us

Standard library only. Everything happens on a copy in a temporary folder: ``toecollapse`` works in place
and renames a target that exists, and ``toeexpand`` exits with 1 when it has succeeded, so both are judged
by the files they leave. Each ``.tox`` is expanded again and compared with the tree it came from.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 120
#: What the tools add by themselves when they expand: no loss if only these differ.
_OWN_KINDS = (".build", ".cparm", ".panel", ".network", ".lod", ".grps", ".data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0: all built. 1: something failed. 2: there is no TouchDesigner here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--td", type=Path, help="TouchDesigner's folder, or the one its tools are in")
    parser.add_argument("--trees", type=Path, default=HERE / "expanded", help="the expanded trees")
    parser.add_argument("--to", type=Path, default=HERE / "dist", help="folder for the .tox files")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    tools = find_tools(given.td)
    if tools is None:
        say_what_is_missing(given.td)
        return 2
    report: dict[str, object] = {"tools": str(tools), "components": []}
    components = [build(toc, given.to, tools) for toc in sorted(given.trees.glob("*.tox.toc"))]
    report["components"] = components
    good = bool(components) and all(one["built"] for one in components)
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        for one in components:
            print(f"{one['name']}: {one['said']}")
        if good:
            print(f"\nDrag a .tox from {given.to} into a project. Then run the self-test: see README.md.")
    return 0 if good else 1


def find_tools(given: Path | None) -> Path | None:
    """The folder of toeexpand and toecollapse: the one named, $TOUCHDESIGNER, then the usual places."""
    named = [given] if given else [Path(p) for p in [os.environ.get("TOUCHDESIGNER", "")] if p]
    usual = [] if given else [Path(p) for pattern in _USUAL for p in sorted(glob.glob(pattern), reverse=True)]
    for folder in [*named, *usual]:
        for inside in ("", "bin", "Contents/MacOS"):
            if all(tool(folder / inside, name) for name in ("toeexpand", "toecollapse")):
                return folder / inside
    return None


_USUAL = (
    "C:/Program Files/Derivative/TouchDesigner*",
    "/Applications/TouchDesigner*.app",
    os.path.expanduser("~/Applications/TouchDesigner*.app"),
)


def tool(folder: Path, name: str) -> Path | None:
    """The program of that name in a folder."""
    return next((folder / n for n in (name, name + ".exe") if (folder / n).is_file()), None)


def build(toc: Path, to: Path, tools: Path) -> dict[str, object]:
    """Collapse one tree, expand the result, compare, and put the .tox into ``to``."""
    name = toc.name.removesuffix(".tox.toc")
    answer: dict[str, object] = {"name": name, "built": False, "lost": [], "changed": []}
    with tempfile.TemporaryDirectory(prefix="sdbridge-tox-") as temporary:
        work = Path(temporary)
        tree = toc.with_suffix(".dir")
        shutil.copy(toc, work)
        shutil.copytree(tree, work / tree.name)
        made = work / f"{name}.tox"
        said = run([str(tool(tools, "toecollapse")), made.name], work)
        if not made.is_file() or not made.stat().st_size:
            answer["said"] = f"toecollapse made no {made.name}: {said}"
            return answer
        again = work / "again"
        again.mkdir()
        shutil.copy(made, again)
        said = run([str(tool(tools, "toeexpand")), made.name], again)
        expanded = again / tree.name
        if not expanded.is_dir():
            answer["said"] = f"toeexpand could not read what toecollapse made: {said}"
            return answer
        lost, changed = differences(tree, expanded)
        answer["lost"], answer["changed"] = lost, changed
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, to / made.name)
        answer["built"] = not lost
        kept = f"LOST {lost}" if lost else f"all there, {len(changed)} files differ"
        answer["said"] = f"{to / made.name}, {made.stat().st_size} bytes, expanded again: {kept}"
    return answer


def run(command: list[str], folder: Path) -> str:
    """Run a tool; its exit code says nothing, so only its words are kept."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"exit {done.returncode}, {(done.stdout + done.stderr).strip()[-400:]}"


def differences(before: Path, after: Path) -> tuple[list[str], list[str]]:
    """Files that are gone, and files whose bytes differ; what the tools add by themselves aside."""
    lost, changed = [], []
    for path in sorted(p for p in before.rglob("*") if p.is_file()):
        name = path.relative_to(before).as_posix()
        if path.name.endswith(_OWN_KINDS):
            continue
        there = after / name
        if not there.is_file():
            lost.append(name)
        elif there.read_bytes() != path.read_bytes():
            changed.append(name)
    return lost, changed


def say_what_is_missing(given: Path | None) -> None:
    """Why nothing could be built, and the two ways on."""
    where = [str(given)] if given else ["$TOUCHDESIGNER", *_USUAL]
    print("No TouchDesigner with toeexpand and toecollapse in: " + ", ".join(where), file=sys.stderr)
    print(
        "Name its folder with --td. Or open TouchDesigner, press Alt+T for the textport and enter\n"
        f"    SDBRIDGE_TD = r'{HERE}'; exec(open(SDBRIDGE_TD + '/bootstrap.py').read())",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
