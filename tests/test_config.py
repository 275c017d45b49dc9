"""Configuration: all mistakes at once with their lines, precedence, and files that teach."""

from pathlib import Path

import pytest

from sdbridge.config import load_config
from sdbridge.errors import SdbridgeError

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "show.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refuse(tmp_path: Path, text: str) -> str:
    with pytest.raises(SdbridgeError, match="SDB-CONFIG-INVALID") as caught:
        load_config(write(tmp_path, text), environment={})
    return str(caught.value)


def test_without_a_file_everything_has_a_default():
    config = load_config(None, environment={})
    assert config.port == 9000 and not config.lan and config.output[0].backend == "auto"


def test_every_mistake_is_named_at_once_with_path_line_and_nearest_key(tmp_path):
    text = """\
name: show
prot: 9100
engine:
  widht: 512
  height: tall
output:
  - backend: ndi
    nmae: stage
parameters:
  guidence_scale: 2
  seed: -4
"""
    said = refuse(tmp_path, text)
    for part in (
        "5 mistakes",
        "line 2, prot: unknown key, did you mean port?",
        "line 4, engine.widht: unknown key, did you mean width?",
        "line 5, engine.height",
        "line 8, output.0.nmae: unknown key, did you mean name?",
        "line 9, parameters",
        "the nearest is guidance_scale",
        "0 to",
    ):
        assert part in said


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words"], ids=["list", "broken", "words"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    assert "SDB-CONFIG-INVALID" in refuse(tmp_path, text)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "show.yaml"
    file.write_bytes(b"name: \xff\xfe\x00")
    with pytest.raises(SdbridgeError, match="UTF-8"):
        load_config(file, environment={})


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(SdbridgeError, match="SDB-CONFIG-MISSING"):
        load_config(tmp_path / "none.yaml", environment={})


def test_flags_beat_environment_beats_file_beats_default(tmp_path):
    file = write(tmp_path, "port: 1\nname: file\nengine: {device: cpu, model: a}\n")
    environment = {"SDBRIDGE_PORT": "2", "SDBRIDGE_ENGINE__MODEL": "b", "SDBRIDGE_HOME": "/x", "PATH": "y"}
    config = load_config(file, {"port": 3, "engine.dtype": None}, environment)
    assert (config.port, config.name, config.engine.model, config.engine.device) == (3, "file", "b", "cpu")
    assert load_config(file, {}, environment).port == 2


def test_parameters_may_use_aliases_and_are_coerced(tmp_path):
    file = write(tmp_path, "parameters: {prompt: fire, steps: 2.0, strength: 3}\n")
    assert load_config(file, environment={}).parameters == {
        "prompt.1.text": "fire",
        "steps": 2,
        "strength": 1.0,
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_config_is_valid_and_explains_itself(file):
    load_config(file, environment={})
    text = file.read_text(encoding="utf-8")
    comments = sum(line.lstrip().startswith("#") or "  # " in line for line in text.splitlines())
    assert comments >= 5
