"""Opening the control surfaces: all or nothing for those one cannot do without, one line for the others."""

import socket

import pytest

from sdbridge import surfaces
from sdbridge.config import Config
from sdbridge.errors import SdbridgeError

events = []


class Good:
    def __init__(self, view):
        self.view = view

    def start(self):
        events.append("start")

    def close(self):
        events.append("close")


class Failing(Good):
    def start(self):
        raise SdbridgeError("SDB-OSC-PORT", "UDP port 9000 cannot be had")


class View:
    config = Config()


@pytest.fixture
def table(monkeypatch):
    events.clear()

    def use(**kinds):
        always = {name: (f"{__name__}:{kind}", lambda config: True) for name, kind in kinds.items()}
        monkeypatch.setattr(surfaces, "SURFACES", always)

    return use


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


def test_surfaces_close_in_reverse_order(table):
    table(web="Good", osc="Good")
    with surfaces.open_surfaces(View()):
        assert events == ["start", "start"]
    assert events == ["start", "start", "close", "close"]


def test_an_indispensable_one_that_fails_closes_what_had_been_opened(table):
    table(web="Good", osc="Failing")
    with pytest.raises(SdbridgeError, match="SDB-OSC-PORT"):
        surfaces.open_surfaces(View())
    assert events == ["start", "close", "close"]


def test_an_optional_one_that_fails_is_one_line(table, caplog):
    table(web="Good", midi="Failing", osc="Good")
    with surfaces.open_surfaces(View()):
        assert events == ["start", "start"]
    assert "SDB-OSC-PORT" in caplog.text


def test_a_free_port_is_free_on_tcp_and_udp():
    port = surfaces.free_port(lan=False)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as own:
            own.bind(("127.0.0.1", port))


@pytest.mark.parametrize("name", surfaces.SURFACES)
def test_every_surface_in_the_table_can_be_imported(name):
    import importlib

    module, _, attribute = surfaces.SURFACES[name][0].partition(":")
    assert hasattr(importlib.import_module(module), attribute)
