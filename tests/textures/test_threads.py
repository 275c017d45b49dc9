"""What the texture threads tell people: once, again when it is news, and when a source comes and goes."""

import logging
from pathlib import Path

import numpy as np
import pytest

from sdbridge.clock import Clock
from sdbridge.config import OutputConfig, TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.testing import FakeClock, FakeReceiver, FakeSender
from sdbridge.textures import auto, supply
from sdbridge.textures.recording import Sender as Recording
from sdbridge.textures.threads import GONE_S, MISSED_S, SOUND_S, Outgoing, ReceiveThread, SendThread


class Plug:
    """A receiver thread whose source is plugged in and out by hand, and whose clock stands still."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.receiver = FakeReceiver("cam", {"fps": 0})
        self.told: list[str] = []
        self.thread = ReceiveThread(
            "main",
            TextureConfig(backend="fake", name="cam"),
            lambda: ("fake", self.receiver),
            lambda role, frame: None,
            self.clock,
            self.told.append,
        )
        self.thread._open()

    def wait(self, seconds: float, frames: bool = False) -> None:
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            if frames:
                self.receiver.push(np.zeros((4, 4, 4), np.uint8))
            self.thread._step()


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    made = Plug()
    lend = made.receiver.lend
    monkeypatch.setattr(made.receiver, "lend", lambda timeout_s: lend(0.0))
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("threads")]


def test_a_source_that_goes_away_and_comes_back_is_told_once_each_time(plug: Plug, caplog) -> None:
    caplog.set_level(logging.INFO)
    plug.wait(5, frames=True)
    for _ in range(2):
        plug.receiver.present = False
        plug.wait(GONE_S + 20)
        plug.receiver.present = True
        plug.wait(1, frames=True)
    said = lines(caplog)
    assert [line.split(":")[0] for line in said] == ["SDB-TEXTURE-SILENT", "input main"] * 2
    assert "input main has had no frame for 2 s: " in said[0] and "sdbridge sources" in said[0]
    assert plug.told == [], "a source that pauses is no fault"


def test_a_source_that_never_came_is_told_after_ten_seconds(plug: Plug, caplog) -> None:
    plug.receiver.present = False
    plug.wait(MISSED_S - 1)
    assert lines(caplog) == []
    plug.wait(30)
    assert len(lines(caplog)) == 1 and "no frame in the first 10 s" in lines(caplog)[0]


def test_a_source_that_is_there_and_stands_still_is_not_said_to_be_gone(plug: Plug, caplog) -> None:
    plug.wait(1, frames=True)
    plug.wait(60)
    assert lines(caplog) == []


class Unplugged(FakeReceiver):
    """Opens, runs for so many seconds of the clock, and breaks with the same words each time."""

    def __init__(self, clock: FakeClock, runs_s: list[float]) -> None:
        super().__init__("cam")
        self.clock, self.runs_s = clock, runs_s

    def open(self) -> None:
        if self.runs_s[0] == 0:
            self.runs_s.pop(0)
            raise SdbridgeError("SDB-TEXTURE-FAULT", "no such camera")

    def lend(self, timeout_s: float) -> Frame | None:
        self.clock.advance(self.runs_s.pop(0))
        raise SdbridgeError("SDB-TEXTURE-FAULT", "no such camera")


@pytest.mark.parametrize(
    ("runs_s", "tellings"),
    [([0, 0, 0, 0], 1), ([0.1, 0.1, 0.1], 1), ([60, 0, 0, 60, 0, 0], 2), ([0, 0, SOUND_S + 1, 0], 2)],
    ids=["never opens", "opens and breaks", "unplugged twice", "plugged in late"],
)
def test_the_same_fault_is_told_again_once_the_texture_had_run(runs_s: list[float], tellings: int) -> None:
    clock: FakeClock = FakeClock()
    told: list[str] = []
    receiver = Unplugged(clock, list(runs_s))
    config = TextureConfig(backend="fake", name="cam")
    thread = ReceiveThread(
        "main", config, lambda: ("fake", receiver), lambda role, frame: None, clock, told.append
    )
    while receiver.runs_s:
        thread._run_once()
    assert len(told) == tellings


def send(
    sender: FakeSender | Recording, told: list[str], frames: int, clock: Clock | None = None
) -> SendThread:
    thread = SendThread(
        OutputConfig(backend="fake", name="out"),
        lambda: ("fake", sender),
        lambda pixels, *shape: pixels,
        clock or FakeClock(),
        told.append,
    )
    thread._open()
    for number in range(frames):
        thread.slot.put(Outgoing(Frame(np.zeros((8, 8, 4), np.uint8), number, 0)))
        thread._step()
    return thread


def test_a_sender_that_ended_for_good_is_told_once_and_kept() -> None:
    told: list[str] = []
    sender = FakeSender("out")
    sender.fault = SdbridgeError("SDB-RECORDING-ENDED", "the film ended")
    thread = send(sender, told, 5)
    assert len(told) == 1 and told[0].startswith("SDB-RECORDING-ENDED: the film ended. Free the disk")
    assert sender.is_open and thread.frames == 0


def test_a_full_disk_is_an_error_that_people_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recording, "_write_film", full)
    film = Recording(str(tmp_path / "show.mkv"), {})
    told: list[str] = []
    thread = send(film, told, 1)
    assert film._thread is not None
    film._thread.join(30)
    thread.slot.put(Outgoing(Frame(np.zeros((8, 8, 4), np.uint8), 9, 0)))
    thread._step()
    film.close()
    assert len(told) == 1 and "show.mkv ended after 0 frames: No space left on device." in told[0]


def test_what_auto_chose_is_said_once_and_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chosen = ["null", "null", "mjpeg", "mjpeg", "null"]
    monkeypatch.setattr(auto, "choose_sender", lambda: (chosen.pop(0), "it is a test"))
    textures = supply.Textures()
    while chosen:
        textures.sender(OutputConfig(backend="auto"), "sdbridge")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"output auto takes {name}: it is a test" for name in ("null", "mjpeg", "null")]
