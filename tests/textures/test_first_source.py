"""The test pattern makes way for the first source, in the receiving thread; a failing one changes nothing."""

import threading
import time

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.textures import first_source, stub
from sdbridge.textures.first_source import Receiver
from sdbridge.textures.test_card import read_number


class Late(stub.Receiver):
    """A source's receiver; remembers the thread that opened it."""

    opened_in = ""
    refuse = 0
    closed = 0

    def open(self) -> None:
        if Late.refuse:
            Late.refuse -= 1
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", "not yet")
        Late.opened_in = threading.current_thread().name

    def receive(self, timeout_s: float) -> np.ndarray | None:
        return np.full((2, 2, 4), 7, np.uint8)

    @property
    def connected(self) -> bool:
        return True

    def describe(self) -> str:
        return "late source"

    def close(self) -> None:
        Late.closed += 1


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(first_source, "_LOOK_EVERY_S", 0.01)
    Late.refuse = Late.closed = 0
    made = Receiver("", {})
    made.class_of = lambda backend: {"late": Late}[backend]
    yield made
    made.close()


def until_late(receiver: Receiver) -> None:
    end = time.monotonic() + 60
    while receiver.describe() != "late source":
        receiver.receive(0.01)
        assert time.monotonic() < end


def test_the_pattern_is_shown_until_a_source_is_there_and_then_the_source(receiver: Receiver) -> None:
    there = threading.Event()
    receiver.choose = lambda name: ("late", "it came") if there.is_set() else ("test_pattern", "nothing")
    receiver.open()
    assert read_number(receiver.receive(1.0)) == 0
    assert receiver.connected and "test pattern" in receiver.describe()
    there.set()
    until_late(receiver)
    assert (receiver.receive(0.0) == 7).all()
    assert Late.opened_in == threading.current_thread().name


def test_a_source_that_cannot_be_opened_is_tried_again_and_the_pattern_stays(receiver: Receiver) -> None:
    Late.refuse = 2
    receiver.choose = lambda name: ("late", "it came")
    receiver.open()
    until_late(receiver)
    assert Late.closed == 2, "those that would not open were closed"


def test_close_ends_the_looking(receiver: Receiver) -> None:
    receiver.choose = lambda name: ("test_pattern", "nothing")
    receiver.open()
    receiver.close()
    receiver.close()
    assert not any(thread.name == "look for a source" for thread in threading.enumerate())
