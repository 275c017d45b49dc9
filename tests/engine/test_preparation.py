"""Preparing an engine's model beside the show: quick ones at once, slow ones later, the last one counts."""

import threading

import pytest

from sdbridge.engine.interface import EngineConfig
from sdbridge.engine.preparation import Preparation
from sdbridge.errors import SdbridgeError

SLOW, OTHER = EngineConfig(model="slow"), EngineConfig(model="other")


def test_what_is_here_is_given_at_once():
    preparation = Preparation(lambda config: EngineConfig(model=f"/models/{config.model}"), lambda: None)
    assert preparation.of(OTHER).model == "/models/other"
    assert not preparation.under_way


def test_what_fails_is_raised_once():
    def fail(config):
        raise SdbridgeError("SDB-MODEL-MISSING", "no such model")

    preparation = Preparation(fail, lambda: None)
    for _ in range(2):
        with pytest.raises(SdbridgeError, match="no such model"):
            preparation.of(OTHER)


def test_an_unexpected_fault_is_given_a_code():
    def fail(config):
        raise ZeroDivisionError("in a library")

    with pytest.raises(SdbridgeError, match=r"SDB-MODEL-MISSING.*in a library"):
        Preparation(fail, lambda: None).of(OTHER)


def test_what_takes_long_tells_when_it_is_there_and_only_the_last_counts(monkeypatch):
    monkeypatch.setattr("sdbridge.engine.preparation.QUICK_S", 0.01)
    gates = {"slow": threading.Event(), "other": threading.Event()}
    done = threading.Event()

    def prepare(config):
        gates[config.model].wait(30)
        return config

    preparation = Preparation(prepare, done.set)
    assert preparation.of(SLOW) is None and preparation.under_way
    assert preparation.of(SLOW) is None  # still the same one, not begun twice
    assert preparation.of(OTHER) is None
    gates["slow"].set()
    gates["other"].set()
    assert done.wait(30)
    assert preparation.of(OTHER) == OTHER
    assert not preparation.under_way
