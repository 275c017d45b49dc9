"""A start is measured as it is by hand: in a process of its own, with Python's compiled modules kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sdbridge.bench import start
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError


def test_every_cache_lies_in_its_own_home_and_python_keeps_what_it_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def run(command: list[str], **how: Any) -> SimpleNamespace:
        asked.update(how, given=json.loads(command[-1]))
        return SimpleNamespace(stdout='a line\n{"first_frame_s": 2.5}\n', stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert start._start(EngineConfig(model="m"), 512, tmp_path) == {"first_frame_s": 2.5}
    environment = asked["env"]
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    for name in ("SDBRIDGE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"):
        assert Path(environment[name]).is_relative_to(tmp_path)
    assert asked["given"]["model"] == "m" and asked["given"]["side"] == 512


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *command, **how: SimpleNamespace(stdout="", stderr="no such model")
    )
    with pytest.raises(SdbridgeError, match="no such model"):
        start._start(EngineConfig(), 64, tmp_path)


def test_modules_of_which_nothing_is_kept_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = start._uncompiled()
    lost = ModuleType("sdb_lost")
    lost.__spec__ = SimpleNamespace(cached=str(tmp_path / "lost.pyc"))  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "sdb_lost", lost)
    assert start._uncompiled() == before + 1


def test_stages_last_until_the_next_one() -> None:
    stages = [("Loading unet", 1.0), ("Loading vae", 3.5), ("Model loaded", 4.0)]
    assert start._parts(stages) == {"loading_unet_s": 2.5, "loading_vae_s": 0.5}
