"""``sdbridge build``: frames through all that a config asks for, then the acceleration does its best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sdbridge.cli import app
from sdbridge.commands.build import _Bars, time_left
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.interface import Progress
from sdbridge.models.small import build_small_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_checkpoint(tmp_path_factory.mktemp("small") / "m", distilled="turbo")


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> Path:
    file = tmp_path / "c.yaml"
    engine = {"kind": "image", "model": str(checkpoint), "width": 64, "height": 64, "device": "cpu"}
    file.write_text(yaml.safe_dump({"engine": engine, "parameters": {"steps": 1}}))
    return file


def run(*words: str):
    return CliRunner().invoke(app, ["build", *words])


def test_eager_has_nothing_to_build(config) -> None:
    result = run(str(config), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["acceleration"] == "eager" and "nothing to build" in found["lines"][0]


def test_an_acceleration_that_builds_is_asked_after_frames_ran(config, monkeypatch) -> None:
    seen: list[object] = []

    def build(self, progress):
        progress(Progress("tuning", 1, 2, "conv", 65.0))
        seen.append("build")
        return ("12 kernels tuned",)

    prepare = Eager.prepare_denoise
    monkeypatch.setattr(Eager, "build", build, raising=False)
    monkeypatch.setattr(
        Eager, "prepare_denoise", lambda self, call: (seen.append(call.sample.shape), prepare(self, call))[1]
    )
    result = run(str(config))
    assert result.exit_code == 0, result.output
    assert "12 kernels tuned" in result.output
    assert seen[0] == (1, 4, 8, 8) and "build" in seen


@pytest.mark.parametrize(("option", "passes"), [((), 2), (("--no-measure",), 1)])
def test_a_card_that_was_never_timed_is_timed_and_a_second_pass_compiles_the_choice(
    config, monkeypatch, option, passes: int
) -> None:
    left = [3, 0]
    built: list[object] = []
    monkeypatch.setattr(Eager, "measure", lambda self, tell: left.pop(0), raising=False)
    monkeypatch.setattr(
        Eager, "build", lambda self, tell: (built.append(self), (f"pass {len(built)}",))[1], raising=False
    )
    result = run(str(config), *option, "--json")
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["lines"]
    assert lines == (["3 layers timed on this card", "pass 2"] if passes == 2 else ["pass 1"])
    assert len({id(each) for each in built}) == passes  # another engine each time: it reads what was found


def test_an_acceleration_that_only_settles_is_waited_for(config, monkeypatch) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(Eager, "settled", lambda self, timeout_s: answers.pop(0), raising=False)
    result = run(str(config))
    assert result.exit_code == 0 and not answers
    assert "compiled and kept" in result.output


def test_what_was_asked_for_and_cannot_be_is_exit_code_1(config) -> None:
    result = run(str(config), "--acceleration", "tensorrt", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["acceleration"] == "eager" and "TensorRT cannot be used" in found["why"]


def test_trouble_beside_the_frames_is_told(config, tmp_path) -> None:
    content = yaml.safe_load(config.read_text())
    content["parameters"]["lora.1.file"] = str(tmp_path / "none.safetensors")
    config.write_text(yaml.safe_dump(content))
    result = run(str(config), "--json")
    assert result.exit_code == 1
    assert "none.safetensors" in json.loads(result.stdout)["troubles"][0]


def test_a_config_that_is_none_is_one_line(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("engine: 3")
    assert run(str(tmp_path / "c.yaml")).exit_code != 0


def test_other_kinds_of_engine_need_nothing(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text("engine: {kind: passthrough}")
    result = run(str(tmp_path / "c.yaml"))
    assert result.exit_code == 0 and "nothing to build" in result.output


def test_the_bar_shows_stage_and_time_left() -> None:
    assert time_left(65.4) == "1:05 left" and time_left(None) == ""
    bars = _Bars()
    with bars as tell:
        tell(Progress("TensorRT unet", 1, 4, "Building", 30.0))
        tell(Progress("TensorRT unet", 2, 4, "Building", 20.0))
    (task,) = bars._bars.tasks
    assert task.completed == 2 and task.total == 4 and task.fields["left"] == "0:20 left"
    assert "Building" in task.description
