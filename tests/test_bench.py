"""The benchmark's list is whole: every case can be loaded, and names are unique."""

import inspect
import json

import pytest
from typer.testing import CliRunner

from sdbridge.bench import registry
from sdbridge.cli import app
from sdbridge.errors import SdbridgeError


def test_names_are_unique():
    names = [case.name for case in registry.CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", registry.CASES, ids=lambda case: case.name)
def test_every_case_loads_and_takes_the_common_options(case):
    function = case.load()
    takes = inspect.signature(function).parameters.values()
    assert any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes)


def test_an_unknown_name_is_none():
    assert registry.find("no-such") is None


def test_a_case_that_is_none_and_a_config_that_is_none_measure_nothing(monkeypatch):
    monkeypatch.setattr(registry.BenchCase, "load", lambda case: pytest.fail(f"{case.name} was begun"))
    result = CliRunner().invoke(app, ["bench", "--case", "no-such"])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    for words in (["none.yaml"], ["none.yaml", "--case", "engine"]):
        result = CliRunner().invoke(app, ["bench", *words])  # which the command line makes exit code 2
        assert isinstance(result.exception, SdbridgeError) and result.exception.code == "SDB-CONFIG-MISSING"


def test_true_size_without_weights_says_how_to_have_them():
    result = CliRunner().invoke(app, ["bench", "--case", "sd-turbo", "--json"])
    assert result.exit_code == 1
    assert "Add --weights random" in json.loads(result.stdout)["cases"]["sd-turbo"]["error"]
