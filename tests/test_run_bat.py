"""run.bat in Windows' own command interpreter, as wine has it: which Python it takes, and what it says."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.wine import UNDER_WINE, environment, on_windows, windows_python

pytestmark = UNDER_WINE

ROOT = Path(__file__).resolve().parent.parent
STARTED = """
import sys
print("STARTED", sys.argv[1:], flush=True)
sys.exit(7 if "--fail" in sys.argv else 0)
"""
#: Stands for Windows' launcher on a machine that has Python 3.13 only.
LAUNCHER = """
import runpy, sys
wanted, *rest = sys.argv[1:]
if wanted != "-3.13":
    sys.exit(103)
if rest[0] == "-c":
    sys.exit(0)
print("LAUNCHER", wanted, flush=True)
sys.argv = rest
runpy.run_path(rest[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def click(tmp_path_factory):
    """Runs run.bat with arguments, from a folder whose name is not easy; gives what it printed."""
    folder = tmp_path_factory.mktemp("windows")
    python = windows_python(folder)
    launcher = folder / "launcher"
    launcher.mkdir()
    (launcher / "py.exe").write_bytes(executable(LAUNCHER, python))
    checkout = folder / "show (x86) & more"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "run.bat", checkout)
    (checkout / "scripts" / "run.py").write_text(STARTED)
    folders = {"python": python.parent, "launcher": launcher}

    def run(*arguments: str, path: tuple[str, ...] = ()) -> str:
        found = "".join(f"{on_windows(folders[name])};" for name in path)
        steps = ["@echo off", f"set PATH={found}%PATH%", f'cd /d "{on_windows(checkout)}"']
        steps.append(" ".join(("call run.bat", *arguments)))
        (folder / "click.bat").write_text("\r\n".join((*steps, "echo ENDED %errorlevel%", "")), newline="")
        done = subprocess.run(
            ["xvfb-run", "-a", "wine", "cmd", "/c", on_windows(folder / "click.bat")],
            env=environment(folder),
            input="\n\n",
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.stdout

    yield run
    subprocess.run(["wineserver", "-k"], env=environment(folder), check=False)


def executable(source: str, python: Path) -> bytes:
    """A Windows program that runs ``source``: the small starter of distlib with a script behind it."""
    from pip._vendor import distlib

    script = io.BytesIO()
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("__main__.py", source)
    starter = Path(distlib.__file__).with_name("t64.exe").read_bytes()
    return starter + f"#!{on_windows(python)}\n".encode() + script.getvalue()


def test_the_launcher_is_asked_for_a_python_that_fits(click):
    said = click("--frames", "3", path=("launcher",))
    assert "LAUNCHER -3.13" in said and "STARTED ['--frames', '3']" in said and "ENDED 0" in said
    assert "Press any key" not in said


def test_without_the_launcher_any_python_is_taken_and_a_failure_stays_to_be_read(click):
    said = click("--fail", '"a b.yaml"', path=("python",))
    assert "STARTED ['--fail', 'a b.yaml']" in said and "Press any key" in said and "ENDED 0" not in said


def test_without_python_it_says_what_to_install(click):
    said = click()
    assert "SDB-INSTALL-PYTHON" in said and "python.org" in said and "Press any key" in said


def test_its_lines_end_as_windows_wants_them():
    content = (ROOT / "run.bat").read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n"), "labels are not found otherwise"
