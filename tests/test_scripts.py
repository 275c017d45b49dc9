"""The two commands: standard library only, installing once, handing over fast, choosing torch's index."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NEEDS_SH = pytest.mark.skipif(os.name == "nt", reason="uses a shell script as a stand-in program")


def load_environment(monkeypatch, venv: Path):
    monkeypatch.setenv("SDBRIDGE_VENV", str(venv))
    spec = importlib.util.spec_from_file_location("_environment_under_test", SCRIPTS / "_environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("name", ["run.py", "test.py", "_environment.py"])
def test_the_commands_need_nothing_but_python(name):
    tree = ast.parse((SCRIPTS / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for module in names:
            assert module.split(".")[0] in sys.stdlib_module_names | {"_environment"}


@NEEDS_SH
def test_the_first_start_installs_and_the_second_does_not(monkeypatch, tmp_path):
    log = tmp_path / "pip.log"
    environment = load_environment(monkeypatch, tmp_path / "venv")
    program(environment.venv_python(), f'echo "$@" >> {log}\n')
    monkeypatch.setattr(environment, "torch_index", lambda: None)
    environment.ensure_environment(("ndi",))
    first = log.read_text()
    assert "--editable" in first and "[ndi]" in first
    environment.ensure_environment(("ndi",))
    assert log.read_text() == first
    environment.ensure_environment(("test",))
    assert "[test]" in log.read_text()


@NEEDS_SH
def test_a_changed_pyproject_installs_again(monkeypatch, tmp_path):
    environment = load_environment(monkeypatch, tmp_path / "venv")
    before = environment._stamp(("ndi",))
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment._stamp(("ndi",)) != before


@NEEDS_SH
def test_a_failed_install_says_which_step_and_ends_with_one(monkeypatch, tmp_path, capsys):
    environment = load_environment(monkeypatch, tmp_path / "venv")
    program(environment.venv_python(), "exit 3\n")
    with pytest.raises(SystemExit) as caught:
        environment.ensure_environment(())
    assert caught.value.code == 1
    assert "SDB-INSTALL-FAILED" in capsys.readouterr().out
    assert not list((tmp_path / "venv").glob(".sdbridge-*"))


@NEEDS_SH
@pytest.mark.parametrize(("answer", "wanted"), [("exit 0", True), ("exit 9", False)])
def test_the_cuda_index_is_added_when_the_driver_answers(monkeypatch, tmp_path, answer, wanted):
    environment = load_environment(monkeypatch, tmp_path / "venv")
    program(tmp_path / "bin" / "nvidia-smi", answer + "\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SDBRIDGE_TORCH_INDEX", raising=False)
    monkeypatch.setattr(environment.sys, "platform", "linux")
    assert environment.torch_index() == (environment.CUDA_INDEX if wanted else None)


def test_the_user_may_choose_the_index(monkeypatch, tmp_path):
    environment = load_environment(monkeypatch, tmp_path / "venv")
    monkeypatch.setenv("SDBRIDGE_TORCH_INDEX", "https://example.invalid/whl")
    assert environment.torch_index() == "https://example.invalid/whl"


@NEEDS_SH
def test_run_hands_every_argument_over_and_keeps_the_exit_code(tmp_path):
    venv = tmp_path / "venv"
    env = {**os.environ, "SDBRIDGE_VENV": str(venv)}
    program(venv / "bin" / "python", 'case "$1 $2" in "-m sdbridge") echo "ran $*"; exit 7;; esac\n')
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / "run.py"), "show.yaml", "--frames", "3"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 7
    assert "ran -m sdbridge run show.yaml --frames 3" in result.stdout


@NEEDS_SH
@pytest.mark.parametrize(
    ("breaks", "code"), [("", 0), ("pytest", 1), ("ruff", 2), ("pytest ruff", 2), ("mypy", 2)]
)
def test_failed_checks_are_told_from_failed_tests(tmp_path, breaks, code):
    """CI repeats failed tests; a failed lint must not be forgotten on the way."""
    venv = tmp_path / "venv"
    fails = "|".join(breaks.split()) or "nothing"
    program(venv / "bin" / "python", f'case "$2" in {fails}) exit 1;; esac\n')
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "test.py")],
        env={**os.environ, "SDBRIDGE_VENV": str(venv)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == code


def test_an_unsupported_python_is_refused_with_the_way_out(monkeypatch, tmp_path, capsys):
    environment = load_environment(monkeypatch, tmp_path / "venv")
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit):
        environment.ensure_environment(())
    said = capsys.readouterr().out
    assert "SDB-INSTALL-PYTHON" in said and "3.12" in said


def load_test_command(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("_test_command", SCRIPTS / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKE_PYTEST = """
import json, os, pathlib, sys
own = [a for a in sys.argv if a.startswith("cache_dir=")]
folder = pathlib.Path(own[0].removeprefix("cache_dir=") if own else ".pytest_cache", "v", "cache")
folder.mkdir(parents=True, exist_ok=True)
failed = ["tests/models/test_a.py::x"] if own else ["tests/test_b.py::y", "tests/models/test_old.py::z"]
failed = dict.fromkeys(failed, True)
(folder / "lastfailed").write_text(json.dumps(failed))
print("computing" if own else "the rest", sys.argv[1:], os.environ["OMP_NUM_THREADS"])
sys.exit(CODE)
"""


@pytest.mark.parametrize(("code", "good"), [(0, True), (1, False)])
def test_the_suite_runs_in_two_processes_and_what_failed_in_either_is_remembered(
    monkeypatch, tmp_path, capfd, code, good
):
    command = load_test_command(monkeypatch)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    fake = tmp_path / "fake_pytest.py"
    fake.write_text(FAKE_PYTEST.replace("CODE", str(code)))
    checked = []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    pytest_command = [sys.executable, str(fake)]
    assert command.run_suite(pytest_command, environment, lambda: checked.append(1)) is good
    said = capfd.readouterr().out
    assert (
        checked and "the rest ['--ignore=tests/engine/image'" in said and "computing ['tests/engine" in said
    )
    remembered = json.loads((tmp_path / ".pytest_cache" / command.FAILED_LAST).read_text())
    assert remembered == {"tests/test_b.py::y": True, "tests/models/test_a.py::x": True}


def test_the_places_of_computing_tests_are_there(monkeypatch):
    command = load_test_command(monkeypatch)
    assert all((command.ROOT / place).is_dir() for place in command.COMPUTING)
