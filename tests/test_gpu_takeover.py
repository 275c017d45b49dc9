"""The engine's own sender and the bridge's, in real processes: one name, whoever dies or hangs."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sdbridge.config import Config
from sdbridge.textures import spout

PEERS = Path(__file__).parent / "textures" / "peers" / "desk"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.timeout(180),
]


class Desk:
    """A bridge with one Spout output, and what stands on the desk that all processes see."""

    def __init__(self, bridge, library) -> None:
        self.bridge = bridge
        self._library = library
        self.name = "stage"
        self.seen: set[str] = set()
        self.expected = {"stage"}

    def wait(self, wanted, what: str) -> dict:
        """Until ``wanted`` holds for the facts of our name. Notes every name that was ever there."""
        end = time.monotonic() + 60
        facts: dict = {}
        while time.monotonic() < end:
            self.seen |= set(self._library.names())
            try:
                facts = self._library.read(self.name)
            except (FileNotFoundError, ValueError):
                facts = {}
            if facts and wanted(facts):
                return facts
            time.sleep(0.005)
        raise AssertionError(f"waited in vain for {what}; {facts}, {self.bridge.status().outputs}")

    def frames_flow(self, sender: int) -> dict:
        first = self.wait(lambda facts: facts["pid"] == sender, f"process {sender} to send")
        return self.wait(
            lambda facts: facts["pid"] == sender and facts["count"] >= first["count"] + 10, "ten frames"
        )

    def names(self) -> list[str]:
        return self._library.names()

    @property
    def engine(self) -> int:
        return self.bridge.engine.client.process_id


@pytest.fixture
def desk(request, tmp_path, monkeypatch):
    from sdbridge.bridge import Bridge

    monkeypatch.setenv("SDB_DESK", str(tmp_path))
    monkeypatch.syspath_prepend(str(PEERS))  # a spawned engine inherits it
    sys.modules.pop("SpoutGL", None)
    request.addfinalizer(lambda: sys.modules.pop("SpoutGL", None))  # also where the test fails
    import SpoutGL

    config = Config.model_validate(
        {
            "port": 0,
            "name": "stage",
            "engine": {"kind": "gpu_engine:Engine", "width": 64, "height": 64},
            "input": {"main": {"backend": "test_pattern", "options": {"width": 64, "height": 64, "fps": 60}}},
            "output": [{"backend": "spout", "name": "stage"}],
        }
    )
    with Bridge(config, control=False) as bridge:
        bridge.start()
        desk = Desk(bridge, SpoutGL)
        desk.wait(
            lambda facts: facts["pid"] == os.getpid() and facts["count"] > 0, "the bridge to send first"
        )
        engine = desk.wait(lambda facts: facts["pid"] != os.getpid(), "the engine to send")["pid"]
        assert engine == desk.engine
        desk.frames_flow(engine)
        assert "engine's GPU" in bridge.status().outputs[0].line
        assert "stage" in spout._own_names
        yield desk
        assert desk.seen == desk.expected, "no stage_1, ever"
    assert SpoutGL.names() == [] and "stage" not in spout._own_names


def test_the_engine_is_killed_and_the_bridge_goes_on_until_the_next_engine_takes_over(desk) -> None:
    first = desk.engine
    os.kill(first, signal.SIGKILL)
    # How many frames it sends depends on how soon the next engine is there: a few, if that is quick.
    desk.wait(lambda facts: facts["pid"] == os.getpid() and facts["mean"] > 0, "the bridge to go on")
    second = desk.wait(lambda facts: facts["pid"] not in (first, os.getpid()), "the next engine")["pid"]
    assert second == desk.engine
    desk.frames_flow(second)


def test_the_engine_is_replaced_by_hand(desk) -> None:
    first = desk.engine
    desk.bridge.store.set("engine.restart", True, "test")
    second = desk.wait(lambda facts: facts["pid"] not in (first, os.getpid()), "the next engine")["pid"]
    desk.frames_flow(second)
    assert second == desk.engine


def test_the_operators_black_is_the_bridges_and_so_is_a_beat_of_its_own(desk) -> None:
    engine = desk.engine
    desk.bridge.store.set("output.black", True, "test")
    desk.wait(lambda facts: facts["pid"] == os.getpid() and facts["mean"] == 0, "black from the bridge")
    desk.bridge.store.set("output.black", False, "test")
    desk.frames_flow(engine)
    desk.bridge.store.set("output.fps", 25.0, "test")
    desk.frames_flow(os.getpid())
    desk.bridge.store.set("output.fps", 0.0, "test")
    desk.frames_flow(engine)


def test_an_engine_that_hangs_cannot_keep_the_operators_black_away(desk) -> None:
    engine = desk.engine
    os.kill(engine, signal.SIGSTOP)
    desk.bridge.store.set("panic", True, "test")
    desk.wait(lambda facts: facts["pid"] == os.getpid() and facts["mean"] == 0, "black from the bridge")
    assert any("SDB-ENGINE-SILENT" in line for line in desk.bridge.status().errors)
    desk.bridge.store.set("output.black", False, "test")
    second = desk.wait(lambda facts: facts["pid"] not in (engine, os.getpid()), "the next engine")["pid"]
    desk.frames_flow(second)


def test_an_output_renamed_live_moves_with_its_sender(desk) -> None:
    desk.bridge.choose_output(0, "spout", "hall")
    desk.name, desk.expected = "hall", {"stage", "hall"}
    desk.frames_flow(desk.engine)
    assert desk.names() == ["hall"]
    desk.bridge.choose_output(0, "spout", "stage")
    desk.name = "stage"
    desk.frames_flow(desk.engine)
    assert desk.names() == ["stage"]
