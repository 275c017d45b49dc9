"""The command line: help that explains, JSON that parses, exit codes as promised."""

import json

import pytest
from typer.testing import CliRunner

from sdbridge import cli
from sdbridge.commands.run import SUMMARY_KEYS, config_or_safe_mode, write_summary
from sdbridge.errors import SdbridgeError
from sdbridge.status import Status

COMMANDS = ("run", "doctor", "pull", "sources", "bench", "osc", "presets", "service")


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


def test_a_missing_config_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(SdbridgeError, match="SDB-CONFIG-MISSING"):
        config_or_safe_mode(tmp_path / "none.yaml", {})


def test_a_bad_config_starts_in_safe_mode_with_all_mistakes(tmp_path):
    file = tmp_path / "show.yaml"
    file.write_text("prot: 1\nengine: {widht: 2}\n")
    config, mistakes = config_or_safe_mode(file, {"port": 9123})
    assert config.port == 9123 and config.engine.model == "embedded"
    assert "prot" in str(mistakes) and "widht" in str(mistakes)


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
