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
        "6 mistakes",
        "line 2, prot: unknown key, did you mean port?",
        "line 4, engine.widht: unknown key, did you mean width?",
        "line 5, engine.height",
        "line 8, output.0.nmae: unknown key, did you mean name?",
        "line 11, parameters.seed",
        "the nearest is guidance_scale",
        "0 to",
    ):
        assert part in said
    lines = [int(line.split()[1].strip(",")) for line in said.splitlines() if line.strip().startswith("line")]
    assert lines == sorted(lines), "in the order of the file"


def test_a_mistake_is_told_where_it_was_made(tmp_path):
    file = write(tmp_path, "engine:\n  device: cpu\nport: 9100\n")
    with pytest.raises(SdbridgeError) as caught:
        load_config(file, {"engine.device": "gpu"}, {"SDBRIDGE_PORT": "none"})
    said = str(caught.value)
    assert "--device: engine.device" in said and "SDBRIDGE_PORT: port" in said
    assert "line" not in said.split("Mend")[0], "the file is not at fault"


def test_a_parameter_written_in_a_section_is_sent_to_its_place(tmp_path):
    assert "write hold.after under parameters" in refuse(tmp_path, "hold: {after: 3}\n")


def test_a_value_in_the_environment_that_is_no_yaml_is_text():
    assert load_config(None, environment={"SDBRIDGE_NAME": "[left"}).name == "[left"


def test_a_variable_that_is_nearly_one_of_ours_is_said():
    environment = {
        "SDBRIDGE_PROT": "1",
        "SDBRIDGE_ENGIN__DEVICE": "cpu",
        "SDBRIDGE_HOME": "/x",
        "SDB_PORT": "2",
    }
    config = load_config(None, environment=environment)
    assert [remark.split(";")[1] for remark in config.remarks] == [
        " did you mean SDBRIDGE_PORT?",
        " did you mean SDBRIDGE_ENGINE__DEVICE?",
    ]


def test_what_is_taken_otherwise_than_written_is_said(tmp_path):
    file = write(tmp_path, "engine: {width: 300}\nparameters: {strength: 1.2, steps: 2.0, prompt: fire}\n")
    remarks = load_config(file, environment={}).remarks
    assert [remark.split(":")[0] for remark in remarks] == [
        "engine.width is 300, taken as 304",
        "parameters.strength is 1.2, taken as 1.0",
    ]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words"], ids=["list", "broken", "words"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    assert "SDB-CONFIG-INVALID" in refuse(tmp_path, text)


def test_what_pydantic_says_is_put_in_our_words(tmp_path):
    said = refuse(tmp_path, "port: 99999\ncues:\n  - {fade: 2}\n")
    assert "line 1, port: must be less than or equal to 65535 (it is 99999)" in said
    assert "cues.0.name: is missing" in said and "Input should" not in said


def test_broken_yaml_is_told_with_its_place_in_one_line(tmp_path):
    said = refuse(tmp_path, "port: [1\n a: b\n")
    first = said.partition(". Mend")[0]
    assert "is no valid YAML, line 2, column" in first and "\n" not in first and "unicode string" not in first


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
