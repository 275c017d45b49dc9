"""Who has an output's name, decided under a fake clock: one sender at a time, the operator always wins."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from sdbridge.config import OutputConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.testing import FakeClock, FakeSender
from sdbridge.textures import spout
from sdbridge.textures.gpu_handover import AGAIN_S, RELEASE_S, HandoverSender, Holder, may_be_handed_over

FRAME = Frame(np.zeros((4, 4, 4), np.uint8), 1, 0)


class Street:
    """Where names are known: at most one sender of a name."""

    def __init__(self) -> None:
        self.held_by: object = None


class BridgeSender(FakeSender):
    """Is refused while somebody else has the name."""

    def __init__(self, street: Street) -> None:
        super().__init__("show", {"bottom_up": True})
        self.street = street

    def open(self) -> None:
        if self.street.held_by is not None:
            raise SdbridgeError("SDB-TEXTURE-NAME", "another Spout sender is already called 'show'")
        self.street.held_by = self
        super().open()

    def close(self) -> None:
        super().close()
        if self.street.held_by is self:
            self.street.held_by = None


@dataclass(eq=False)
class EngineSender:
    """An engine that does as it is told, unless it is deaf or unable."""

    street: Street
    deaf: bool = False
    able: bool = True
    state: str = "none"
    why: str = ""
    orders: list = field(default_factory=list)

    def order_gpu_output(self, order, name, backend, options) -> None:
        self.orders.append(order)
        assert (name, backend, options) == ("show", "spout", {"bottom_up": True})
        if self.deaf or self.state == "unavailable":
            return
        if order == "prepare":
            self.state, self.why = ("ready", "") if self.able else ("unavailable", "no CUDA here")
        elif order == "take":
            assert self.street.held_by is None, "the bridge had let go before"
            self.street.held_by, self.state = self, "showing"
        elif order in ("release", "drop"):
            self.state = "ready" if order == "release" else "none"
            self.let_go()

    def let_go(self) -> None:
        if self.street.held_by is self:
            self.street.held_by = None

    def die(self) -> None:
        self.deaf = True
        self.let_go()


class Side:
    """The engine that runs, if one does."""

    def __init__(self) -> None:
        self.engine: EngineSender | None = None
        self.ended: list[EngineSender] = []

    def look_at_gpu_output(self, name):
        @dataclass(frozen=True)
        class Seen:
            engine: object
            state: str
            why: str

        one = self.engine
        return Seen(one, one.state if one else "none", one.why if one else "")

    def end_deaf(self, engine) -> None:
        self.ended.append(engine)


class Show:
    """A bridge and an engine on one street, and frames that go out 50 times a second."""

    def __init__(self) -> None:
        self.street, self.side, self.clock = Street(), Side(), FakeClock()
        self.inner = BridgeSender(self.street)
        self.sender = HandoverSender("spout", self.inner, self.side, self.clock)
        self.sender.open()

    def start_engine(self, **traits) -> EngineSender:
        self.side.engine = EngineSender(self.street, **traits)
        return self.side.engine

    def run(self, seconds: float, state: str = "live") -> None:
        for _ in range(round(seconds * 50)):
            self.clock.advance(0.02)
            self.sender.send(FRAME, {"state": state})

    @property
    def holder(self) -> object:
        return self.street.held_by


@pytest.fixture
def show():
    show = Show()
    yield show
    show.sender.close()
    assert "show" not in spout._own_names


def handed_over(show: Show, **traits) -> EngineSender:
    engine = show.start_engine(**traits)
    show.run(1.5)
    assert show.holder is engine and show.sender.holder is Holder.ENGINE
    return engine


def test_the_engine_gets_the_name_once_the_output_was_live_for_a_while(show) -> None:
    engine = show.start_engine()
    show.run(3.0, "holding")
    assert show.holder is show.inner and engine.orders == ["prepare"]
    show.run(0.5)
    assert show.holder is show.inner
    show.run(1.0)
    assert show.holder is engine and engine.orders == ["prepare", "take"]
    sent = len(show.inner.frames)
    show.run(5.0)
    assert len(show.inner.frames) == sent and "engine's GPU" in show.sender.describe()


@pytest.mark.parametrize("state", ["holding", "fading", "fallback", "frozen", "black"])
def test_whatever_else_is_to_be_seen_comes_from_the_bridge_at_once(show, state: str) -> None:
    engine = handed_over(show)
    show.run(0.02, state)
    assert show.holder is show.inner and engine.orders[-1] == "release"
    assert len(show.inner.frames) > 0 and show.inner.abouts[-1]["state"] == state
    show.run(0.5, state)
    show.run(AGAIN_S - 0.6)
    assert show.holder is show.inner, "it does not go back and forth"
    show.run(1.0)
    assert show.holder is engine


def test_when_the_engine_dies_the_bridge_goes_on_under_the_same_name(show) -> None:
    engine = handed_over(show)
    engine.die()
    show.side.engine = None
    show.run(0.02)
    assert show.holder is show.inner and show.inner.opened == 2


def test_a_new_engine_gets_the_name_after_the_old_one_gave_it_back(show) -> None:
    old = handed_over(show)
    new = show.start_engine()
    show.run(0.02)
    assert old.orders[-1] == "release" and show.holder is show.inner
    show.run(2.0)
    assert show.holder is new and new.orders == ["prepare", "take"]


def test_an_engine_that_hangs_is_replaced_only_when_the_operator_must_win(show) -> None:
    engine = handed_over(show)
    engine.deaf = True
    show.run(RELEASE_S + 5.0, "holding")
    assert show.side.ended == [] and show.sender.holder is Holder.RETURNING
    show.run(0.1, "black")
    assert show.side.ended == [engine], "once"
    show.run(1.0, "black")
    assert show.side.ended == [engine]
    engine.die()
    show.run(0.02, "black")
    assert show.holder is show.inner and show.inner.abouts[-1]["state"] == "black"


def test_an_engine_that_never_shows_gives_the_name_back_and_is_asked_ever_more_seldom(show) -> None:
    engine = show.start_engine()
    show.run(0.02)
    engine.deaf = True
    show.run(60.0)
    takes = engine.orders.count("take")
    assert 3 <= takes <= 6 and engine.orders.count("release") in (takes - 1, takes)
    assert len(show.inner.times) > 50 * 50, "the bridge sent most of the time"


def test_an_engine_that_cannot_is_asked_once_and_the_reason_is_said(show) -> None:
    engine = show.start_engine(able=False)
    show.run(30.0)
    assert engine.orders == ["prepare"] and show.holder is show.inner
    assert "no CUDA here" in show.sender.describe()


def test_a_sender_that_failed_in_the_engine_goes_on_from_the_bridge(show) -> None:
    engine = handed_over(show)
    engine.let_go()
    engine.state, engine.why = "unavailable", "Spout did not take a texture"
    show.run(0.02)
    assert show.holder is show.inner
    show.run(10.0)
    assert show.holder is show.inner and engine.orders.count("take") == 1


def test_closing_gives_the_name_back_from_either_hand(show) -> None:
    engine = handed_over(show)
    assert "show" in spout._own_names, "ours, also while the engine sends"
    show.sender.close()
    assert engine.orders[-1] == "drop" and show.holder is None
    show.sender.open()
    assert show.holder is show.inner
    show.run(3.0)
    assert show.holder is engine, "and it is got ready anew"


def test_another_fault_of_the_senders_opening_is_told(show) -> None:
    engine = handed_over(show)
    engine.die()
    show.side.engine = None

    def broken() -> None:
        raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", "Spout cannot get an OpenGL context")

    show.inner.open = broken
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
        show.run(0.02)


@pytest.mark.parametrize(
    ("backend", "config", "may"),
    [
        ("spout", {}, True),
        ("spout", {"name": "x", "options": {"bottom_up": True}}, True),
        ("ndi", {}, False),
        ("spout", {"options": {"gpu": False}}, False),
        ("spout", {"width": 640, "height": 480}, False),
        ("spout", {"flip_vertical": True}, False),
        ("spout", {"rotate": 90}, False),
        ("spout", {"alpha": "input"}, False),
        ("spout", {"role": "control"}, False),
    ],
)
def test_only_an_output_that_shows_the_picture_as_it_is_may_be_handed_over(backend, config, may) -> None:
    assert may_be_handed_over(backend, OutputConfig(**config)) is may
