"""MIDI: learning by touch, every kind of control, and faders that follow. No device is needed here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mido
import pytest

from sdbridge.config import Config, MidiSection
from sdbridge.control import midi as midi_module
from sdbridge.control import midi_ports
from sdbridge.control.midi import MidiSurface
from sdbridge.control.midi_controls import Control, MidiMessage, Position, recognise
from sdbridge.errors import SdbridgeError
from tests.control.fake_view import FakeView


class FakePort:
    def __init__(self) -> None:
        self.sent: list[MidiMessage] = []
        self.closed = False
        self.broken = False

    def send(self, message: MidiMessage) -> None:
        if self.broken:
            raise OSError("pulled out")
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


class FakePorts:
    """Devices that the test plugs in and out."""

    def __init__(self, *names: str) -> None:
        self.there = list(names)
        self.ports: dict[str, FakePort] = {}

    def names(self) -> Sequence[str]:
        return tuple(self.there)

    def open(self, name: str, heard: Callable[[MidiMessage], None]) -> FakePort:
        self.ports[name] = FakePort()
        return self.ports[name]


class Desk:
    """A surface with one motor fader device, driven step by step."""

    def __init__(self, folder: Path, config: Config | None = None) -> None:
        self.view = FakeView(folder, config)
        self.store = self.view.store
        self.file = folder / "midi.yaml"
        self.ports = FakePorts("Faders")
        self.surface = MidiSurface(self.view, self.ports, self.file)
        self.wait(0.0)
        self.sent.clear()

    @property
    def sent(self) -> list[MidiMessage]:
        return self.ports.ports["Faders"].sent

    def wait(self, seconds: float) -> None:
        self.view.clock.advance(seconds)
        self.surface.tick()

    def move(self, *messages: MidiMessage) -> None:
        self.surface.take(messages)

    def bind(self, control: str, target: str) -> None:
        self.surface._map.bind(Control.parse(control), target)

    def learn(self, parameter: str, value: object, *messages: MidiMessage) -> Sequence[tuple[str, str]]:
        self.store.set(parameter, value, "page")
        self.surface.learn(True)
        self.move(*messages)
        self.wait(0.5)
        return self.surface.mappings


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def cc(number: int, value: int, channel: int = 1) -> MidiMessage:
    return MidiMessage("cc", channel, number, value)


def note(number: int, value: int) -> MidiMessage:
    return MidiMessage("note", 1, number, value)


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([cc(7, 10), cc(7, 11), cc(7, 13)], "cc 1/7"),
        ([cc(7, 64)], "cc 1/7"),
        ([cc(7, 127), cc(7, 0), cc(7, 127)], "cc 1/7"),
        ([cc(7, 10), cc(39, 3), cc(7, 10), cc(39, 90)], "cc14 1/7"),
        ([cc(39, 3), cc(7, 10)], "cc14 1/7"),
        ([cc(20, 1), cc(20, 1), cc(20, 1), cc(20, 2)], "turn2 1/20"),
        ([cc(20, 127), cc(20, 127), cc(20, 127)], "turn2 1/20"),
        ([cc(20, 65), cc(20, 65), cc(20, 65)], "turn64 1/20"),
        ([cc(20, 63), cc(20, 63), cc(20, 65), cc(20, 65)], "turn64 1/20"),
        ([cc(20, 1), cc(20, 1), cc(20, 65), cc(20, 65)], "turn-sign 1/20"),
        ([cc(20, 1), cc(20, 2), cc(20, 3), cc(20, 4)], "cc 1/20"),
        ([note(60, 100)], "note 1/60"),
        ([MidiMessage("bend", 3, 0, 9000)], "bend 3"),
        ([cc(7, 10, channel=16)], "cc 16/7"),
    ],
)
def test_a_control_is_recognised_by_how_it_moves(messages: list[MidiMessage], wanted: str) -> None:
    control = recognise(messages)
    assert str(control) == wanted
    assert Control.parse(wanted) == control


@pytest.mark.parametrize(
    "text", ["", "cc", "cc 1", "cc 0/7", "cc 17/7", "cc 1/128", "cc14 1/32", "knob 1/7", "note 1"]
)
def test_what_names_no_control_is_refused(text: str) -> None:
    with pytest.raises(SdbridgeError, match="SDB-MIDI-CONTROL"):
        Control.parse(text)


def test_learning_binds_what_was_touched_last_and_steers_it_from_then_on(desk: Desk) -> None:
    assert desk.learn("strength", 0.5, cc(7, 10), cc(7, 20)) == (("cc 1/7", "strength"),)
    assert not desk.surface.learning
    assert desk.store.get("strength") == 0.5, "learning moves nothing"
    desk.move(cc(7, 127))
    assert desk.store.get("strength") == 1.0
    desk.move(cc(7, 0))
    assert desk.store.get("strength") == 0.0


def test_learning_again_rebinds_and_forgetting_unbinds(desk: Desk) -> None:
    desk.learn("strength", 0.5, cc(7, 10))
    assert desk.learn("delta", 0.5, cc(7, 10)) == (("cc 1/7", "delta"),)
    desk.surface.forget("cc 1/7")
    assert desk.surface.mappings == ()
    with pytest.raises(SdbridgeError, match="steers nothing"):
        desk.surface.forget("cc 1/7")


def test_what_midi_itself_or_a_preset_moves_is_not_what_was_touched(desk: Desk) -> None:
    desk.bind("cc 1/1", "delta")
    desk.store.set("strength", 0.5, "osc:127.0.0.1:1")
    desk.move(cc(1, 50))
    desk.store.set("steps", 3, "show:fade")
    desk.surface.learn(True)
    desk.move(cc(7, 10))
    desk.wait(0.5)
    assert ("cc 1/7", "strength") in desk.surface.mappings


def test_what_was_learnt_is_kept_in_a_file_that_a_person_can_edit(tmp_path: Path) -> None:
    Desk(tmp_path).learn("prompt.2.weight", 0.5, cc(7, 10), cc(39, 20))
    assert "cc14 1/7: prompt.2.weight" in (tmp_path / "midi.yaml").read_text()
    (tmp_path / "midi.yaml").write_text(
        "cc 1/9: /sdbridge/strength\nknob: x\ncc 1/1: nothing\nnote 1/60: cue/next\n"
    )
    again = Desk(tmp_path)
    assert set(again.surface.mappings) == {("cc 1/9", "strength"), ("note 1/60", "cue/next")}


@pytest.mark.parametrize("content", ["[", "- a", "\x00", "3"])
def test_a_broken_file_maps_nothing_and_is_no_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / "midi.yaml").write_text(content)
    assert Desk(tmp_path).surface.mappings == ()


def test_fourteen_bits_reach_every_step_and_both_ends(desk: Desk) -> None:
    desk.bind("cc14 1/7", "strength")
    desk.move(cc(7, 64), cc(39, 1))
    assert desk.store.get("strength") == (64 * 128 + 1) / 16383
    desk.move(cc(7, 127))
    assert desk.store.get("strength") == 1.0
    desk.move(cc(7, 0))
    assert desk.store.get("strength") == 0.0
    position = Position(Control("cc14", 1, 7))
    seen = {position.after(m) for value in range(16384) for m in (cc(7, value >> 7), cc(39, value & 127))}
    assert len(seen) == 16384


def test_the_pitch_wheel_of_mackie_faders_is_fourteen_bits(desk: Desk) -> None:
    desk.bind("bend 1", "guidance_scale")
    desk.move(MidiMessage("bend", 1, 0, 16383))
    assert desk.store.get("guidance_scale") == 12.0


@pytest.mark.parametrize(
    ("kind", "right", "left"), [("turn2", 1, 127), ("turn64", 65, 63), ("turn-sign", 1, 65)]
)
def test_encoders_move_by_steps_and_stop_at_the_ends(desk: Desk, kind: str, right: int, left: int) -> None:
    desk.bind(f"{kind} 1/20", "strength")
    desk.store.set("strength", 0.5)
    desk.move(cc(20, right))
    assert desk.store.get("strength") == pytest.approx(0.5 + 1 / 128)
    desk.move(*[cc(20, left)] * 200)
    assert desk.store.get("strength") == 0.0
    desk.bind(f"{kind} 1/20", "steps")
    desk.move(cc(20, right))
    assert desk.store.get("steps") == 2
    desk.bind(f"{kind} 1/20", "guidance_mode")
    desk.move(cc(20, left))
    assert desk.store.get("guidance_mode") == "full"


def test_a_pad_toggles_steps_through_choices_and_fires_only_when_pressed(desk: Desk) -> None:
    fired: list[str] = []
    desk.store.subscribe(lambda change: fired.extend(change.triggers))
    for number, target in ((60, "output.freeze"), (61, "guidance_mode"), (62, "panic"), (63, "cue/next")):
        desk.bind(f"note 1/{number}", target)
    desk.move(note(60, 100), note(60, 0))
    assert desk.store.get("output.freeze") is True
    desk.move(note(60, 100), note(60, 0))
    assert desk.store.get("output.freeze") is False
    desk.move(note(61, 100))
    assert desk.store.get("guidance_mode") == "initialize"
    desk.move(note(62, 0))
    assert fired == []
    desk.move(note(62, 90), note(62, 0), note(63, 90))
    assert fired == ["panic"]


def test_buttons_recall_presets_and_run_cues(desk: Desk) -> None:
    desk.store.set("strength", 0.25)
    desk.view.show.save("low")
    desk.store.set("strength", 0.75)
    desk.bind("note 1/60", "preset/recall/low")
    desk.bind("cc 1/50", "preset/recall/gone")
    desk.move(note(60, 0), cc(50, 127))
    assert desk.store.get("strength") == 0.75
    desk.move(note(60, 100))
    assert desk.store.get("strength") == 0.25


def test_a_motor_fader_follows_others_but_never_itself(desk: Desk) -> None:
    desk.bind("cc 1/7", "strength")
    desk.bind("cc14 1/8", "strength")
    desk.move(cc(7, 127))
    desk.wait(0.04)
    assert desk.sent == [cc(8, 127), cc(40, 127)], "the other fader follows, the touched one is left alone"
    desk.sent.clear()
    desk.store.set("strength", 0.5, "page")
    desk.wait(0.04)
    assert desk.sent == [cc(7, 64), cc(8, 64), cc(40, 0)]
    desk.sent.clear()
    for n in range(50):
        desk.store.set("strength", n / 50, "page")
    desk.wait(0.04)
    assert len(desk.sent) == 3, "gathered, the last value goes"


def test_lights_bends_and_encoders(desk: Desk) -> None:
    for control, target in (("note 1/60", "output.freeze"), ("bend 2", "delta"), ("turn2 1/20", "steps")):
        desk.bind(control, target)
    desk.store.set_many({"output.freeze": True, "delta": 2.0, "steps": 4}, "page")
    desk.wait(0.04)
    assert desk.sent == [note(60, 127), MidiMessage("bend", 2, 0, 16383)]


def test_devices_come_and_go_while_the_show_runs(desk: Desk) -> None:
    desk.bind("cc 1/7", "strength")
    desk.ports.there.append("Second")
    desk.wait(2.1)
    assert set(desk.surface.devices) == {"Faders", "Second"}
    desk.wait(0.04)
    assert desk.ports.ports["Second"].sent == [cc(7, 76)], "a new device is brought to where things stand"
    desk.ports.ports["Faders"].broken = True
    desk.store.set("strength", 0.5, "page")
    desk.wait(0.04)
    assert desk.surface.devices == ("Second",)
    desk.ports.there.remove("Second")
    second = desk.ports.ports["Second"]
    desk.wait(2.1)
    assert second.closed and desk.surface.devices == ("Faders",)


def test_only_the_devices_that_the_config_names_are_taken(tmp_path: Path) -> None:
    desk = Desk.__new__(Desk)
    view = FakeView(tmp_path, Config(port=0, midi=MidiSection(devices=("launch",))))
    desk.surface = MidiSurface(view, FakePorts("Launchkey 25", "Faders"), tmp_path / "midi.yaml")
    desk.surface.tick()
    assert desk.surface.devices == ("Launchkey 25",)


def test_a_machine_without_midi_is_asked_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def nothing() -> Sequence[str]:
        asked.append(1)
        raise OSError("no sequencer")

    monkeypatch.setattr(desk.ports, "names", nothing)
    for _ in range(5):
        desk.wait(3.0)
    assert len(asked) == 1


def test_a_flood_is_bounded(desk: Desk) -> None:
    for _ in range(100_000):
        desk.surface.hear(cc(7, 1))
    assert desk.surface._heard.qsize() <= midi_module._MOST_WAITING


def test_the_thread_applies_what_a_device_sends(tmp_path: Path) -> None:
    from sdbridge.clock import SystemClock

    view = FakeView(tmp_path, clock=SystemClock())  # type: ignore[arg-type]  # the real one serves too
    surface = MidiSurface(view, FakePorts("Faders"), tmp_path / "midi.yaml")
    surface._map.bind(Control.parse("cc 1/7"), "strength")
    surface.start()
    try:
        surface.hear(cc(7, 127))
        for _ in range(1000):
            if view.store.get("strength") == 1.0:
                break
            time.sleep(0.01)
        assert view.store.get("strength") == 1.0
    finally:
        surface.close()
        surface.close()


@pytest.mark.parametrize(
    "message",
    [
        mido.Message("control_change", channel=2, control=7, value=99),
        mido.Message("note_on", channel=0, note=60, velocity=5),
        mido.Message("pitchwheel", channel=15, pitch=-8192),
        mido.Message("pitchwheel", channel=15, pitch=8191),
    ],
)
def test_messages_cross_to_mido_and_back(message: mido.Message) -> None:
    ours = midi_ports.from_mido(message)
    assert ours is not None and midi_ports.to_mido(ours) == message
    assert midi_ports.from_mido(mido.Message("clock")) is None
    released = midi_ports.from_mido(mido.Message("note_off", note=60, velocity=64))
    assert released == MidiMessage("note", 1, 60, 0)
