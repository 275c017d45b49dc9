"""The command line: help that explains, JSON that parses, exit codes as promised."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sdbridge import cli
from sdbridge.bridge import Bridge
from sdbridge.commands import pull
from sdbridge.commands.run import SUMMARY_KEYS, config_or_safe_mode, run_bridge, write_summary
from sdbridge.commands.say import print_table
from sdbridge.doctor.model import check_config
from sdbridge.errors import SdbridgeError
from sdbridge.status import Status

COMMANDS = ("run", "doctor", "pull", "sources", "bench", "osc", "build", "presets", "service")


@pytest.fixture
def call(monkeypatch, tmp_path):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments))


def test_help_lists_every_command(call):
    result = call("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(call, command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output and len(result.output) > 200


def test_osc_prints_addresses_ranges_and_meanings(call):
    text = call("osc").output
    for part in (
        "/sdbridge/guidance_scale",
        "0 to 12",
        "/sdbridge/prompt",
        "slot number",
        "/sdbridge/cue/next",
        "/sdbridge/status/fps",
    ):
        assert part in text


def test_osc_as_json_holds_every_row(call):
    from sdbridge.parameters.table import TABLE

    rows = json.loads(call("osc", "--json").output)
    assert [row["address"] for row in rows] == [row.address for row in TABLE.templates]


def test_osc_find_narrows_the_list(call):
    rows = json.loads(call("osc", "--json", "--find", "lora").output)
    assert rows and all("lora" in (row["address"] + row["help"]).lower() for row in rows)


def test_sources_as_json_gives_a_reason_for_every_backend(call):
    result = call("sources", "test_pattern", "--json")
    entries = json.loads(result.output)
    assert entries[0]["backend"] == "test_pattern" and entries[0]["reason"]


@pytest.mark.parametrize(
    "arguments", [("sources", "carrier_pigeon"), ("bench", "--case", "no-such"), ("nonsense",)]
)
def test_usage_errors_end_with_two(call, arguments):
    assert call(*arguments).exit_code == 2


def test_presets_list_is_empty_at_first(call):
    assert json.loads(call("presets", "list", "--json").output) == []


def test_presets_of_a_config_are_looked_for_where_it_keeps_them(call, tmp_path):
    place = tmp_path / "show"
    place.mkdir()
    (place / "night.yaml").write_text("name: night\nvalues: {strength: 0.3}\n")
    (tmp_path / "show.yaml").write_text(f"presets_dir: {place}\n")
    listed = call("presets", "list", "--json", "--config", str(tmp_path / "show.yaml"))
    assert [row["name"] for row in json.loads(listed.output)] == ["night"]


def test_a_missing_config_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(SdbridgeError, match="SDB-CONFIG-MISSING"):
        config_or_safe_mode(tmp_path / "none.yaml", {})


def test_a_bad_config_starts_in_safe_mode_with_all_mistakes(tmp_path):
    file = tmp_path / "show.yaml"
    file.write_text("prot: 1\nengine: {widht: 2}\n")
    config, mistakes = config_or_safe_mode(file, {"port": 9123})
    assert config.port == 9123 and config.engine.model == "embedded"
    assert "prot" in str(mistakes) and "widht" in str(mistakes)


def test_the_mistakes_of_a_config_are_told_once_each_on_its_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Bridge, "start", lambda bridge: None)
    monkeypatch.setattr(Bridge, "run", lambda bridge, frames: bridge.status())
    file = tmp_path / "show.yaml"
    file.write_text("prot: 1\nengine: {widht: 2}\n")
    summary = tmp_path / "summary.json"
    assert run_bridge(file, {"log.folder": str(tmp_path)}, 1, summary, False) == 0
    for told in (capfd.readouterr().err, (tmp_path / "sdbridge.log").read_text()):
        assert told.count("SDB-CONFIG-INVALID") == told.count("prot") == told.count("widht") == 1
        mistakes = told[told.index("SDB-CONFIG-INVALID") :].splitlines()
        assert not [line for line in mistakes if "prot" in line and "widht" in line]
    assert "SDB-CONFIG-INVALID" in summary.read_text()


def test_a_quiet_run_says_all_in_the_log_and_nothing_on_the_console(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    monkeypatch.setattr(Bridge, "start", lambda bridge: None)
    monkeypatch.setattr(Bridge, "run", lambda bridge, frames: bridge.note_error("SDB-X") or bridge.status())
    assert run_bridge(None, {"log.folder": str(tmp_path)}, 1, None, False, quiet=True) == 0
    assert capfd.readouterr() == ("", "")
    told = (tmp_path / "sdbridge.log").read_text()
    assert "Page    http://127.0.0.1:" in told and "SDB-X" in told


def test_flags_that_make_no_sense_are_refused_with_the_file_or_without(tmp_path):
    file = tmp_path / "show.yaml"
    file.write_text("name: show\n")
    for path in (file, None):
        with pytest.raises(SdbridgeError, match=r"--device: .*\s.*Nothing was started\.$"):
            config_or_safe_mode(path, {"engine.device": "gpu"})


def test_a_service_with_a_config_that_is_not_there_is_refused_before_anything_is_written(call, monkeypatch):
    monkeypatch.setattr("sdbridge.service.install", lambda plan: pytest.fail("installed"))
    assert isinstance(call("service", "install", "no-such.yaml").exception, SdbridgeError)


def test_usage_and_names_keep_their_square_brackets(call, capsys):
    assert "[install | remove | status | show]" in call("service", "nonsense").stderr
    print_table(("name",), [("left [b] :fire:",)])
    assert "left [b] :fire:" in capsys.readouterr().out


def test_doctor_looks_at_what_the_config_names(tmp_path):
    file = tmp_path / "show.yaml"
    file.write_text(
        "engine: {kind: imagee, model: someone/some-model}\n"
        "input: {main: {backend: ndii}, control: {backend: test_pattern}}\n"
        "output: [{backend: spuot}, {backend: mjpeg}]\nparameters: {steps: 99}\n"
    )
    found = {(finding.name, finding.grade): finding.text for finding in check_config(file)}
    assert "did you mean image?" in found["engine", "wrong"]
    assert "did you mean ndi?" in found["input main", "wrong"]
    assert "did you mean spout?" in found["output 0", "wrong"]
    assert "the start pulls it" in found["model", "note"]
    assert "taken as 8" in found["config", "note"]
    assert not any(name in ("input control", "output 1") for name, _ in found)


def test_a_model_that_is_here_is_told_as_json_too(monkeypatch, capsys, tmp_path):
    plan = SimpleNamespace(id="sd-turbo", missing_bytes=0, folder=tmp_path, licence="")
    monkeypatch.setattr(pull.download, "plan", lambda model: plan)
    assert pull.run_pull("sd-turbo", as_json=True, yes=True) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "sd-turbo", "folder": str(tmp_path)}


@pytest.mark.parametrize(("size", "text"), [(2_577_000_000, "2.40 GB"), (9_800_000, "9 MB"), (2048, "2 KB")])
def test_sizes_read_well(size, text):
    assert pull.amount(size) == text


def test_faults_become_one_line_and_exit_one(monkeypatch, capsys):
    def fail() -> None:
        raise SdbridgeError("SDB-PARAM-NAN", "x was sent nan")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("SDB-PARAM-NAN: x was sent nan.")


def test_the_summary_has_the_promised_keys(tmp_path):
    file = tmp_path / "summary.json"
    write_summary(file, Status(state="streaming", frames_out=60, fps=21.5))
    values = json.loads(file.read_text())
    assert tuple(values) == SUMMARY_KEYS
    assert values["frames_out"] == 60 and set(values["latency_ms"]) == {"p50", "p99"}


def test_a_summary_that_cannot_be_written_is_printed_instead(tmp_path, capsys):
    write_summary(tmp_path / "no" / "such" / "folder.json", Status(frames_out=3))
    said = capsys.readouterr().err
    assert "SDB-SUMMARY-WRITE" in said and '"frames_out": 3' in said
