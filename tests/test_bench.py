"""The benchmark's list is whole: every case can be loaded, and names are unique."""

import inspect

import pytest

from sdbridge.bench import registry


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
