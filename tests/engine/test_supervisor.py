"""Restart decisions under a fake clock: death, silence, no frames, and the ladder down to giving up."""

import pytest

from sdbridge.engine.interface import EngineState
from sdbridge.engine.supervisor import LOADING_S, Rung, Seen, Supervisor
from sdbridge.testing import FakeClock

STREAMING = EngineState.STREAMING


class Scene:
    """A supervisor and an engine that does as told, looked at twenty times a second."""

    def __init__(self, stall_s: float = 10.0, budget: int = 5) -> None:
        self.clock = FakeClock()
        self.supervisor = Supervisor(stall_s, budget)
        self.offered = self.made = self.pings = self.pongs = 0
        self.engine = 1

    def run(self, seconds, *, offers=True, makes=True, pongs=True, state=STREAMING, free=False):
        """The first reason to restart within ``seconds``, with the second it came at."""
        for step in range(round(seconds * 20)):
            self.clock.advance(0.05)
            self.offered += offers
            self.made += makes
            if step % 20 == 0:
                self.pings += 1
            if pongs:
                self.pongs = self.pings
            reason = self.supervisor.look(
                self.clock.now_ns(),
                Seen(self.engine, state, self.offered, self.made, self.pings, self.pongs, free),
            )
            if reason is not None:
                return reason, (step + 1) / 20
        return None


def test_frames_that_flow_are_left_alone():
    assert Scene().run(300) is None


def test_an_engine_that_answers_pings_but_makes_no_frames_is_replaced():
    scene = Scene()
    scene.run(5)
    reason, at = scene.run(60, makes=False)
    assert reason.code == "SDB-ENGINE-STALLED" and 10 < at < 10.5


def test_an_engine_without_input_is_idle_not_stalled():
    scene = Scene()
    scene.run(5)
    assert scene.run(600, offers=False, makes=False) is None


def test_the_stall_is_counted_from_the_first_frame_that_went_unanswered():
    scene = Scene()
    scene.run(5)
    scene.run(100, offers=False, makes=False)
    _reason, at = scene.run(60, makes=False)
    assert 10 < at < 10.5


def test_an_engine_that_paints_from_the_prompt_alone_owes_frames_without_input():
    scene = Scene()
    reason, _at = scene.run(60, offers=False, makes=False, free=True)
    assert reason.code == "SDB-ENGINE-STALLED"


def test_silence_without_work_is_noticed_by_pings():
    scene = Scene()
    reason, at = scene.run(60, offers=False, makes=False, pongs=False)
    assert reason.code == "SDB-ENGINE-SILENT" and at > 10


def test_loading_may_take_long_but_not_for_ever():
    scene = Scene()
    assert scene.run(LOADING_S - 1, state=EngineState.LOADING, pongs=False, makes=False) is None
    reason, _at = scene.run(5, state=EngineState.LOADING, pongs=False, makes=False)
    assert reason.code == "SDB-ENGINE-STALLED"


def test_a_successor_starts_with_a_clean_slate():
    scene = Scene()
    scene.run(9.9, makes=False)
    scene.engine = 2
    assert scene.run(9.9, makes=False) is None


def test_the_budget_then_last_good_then_safe_mode_then_giving_up():
    scene = Scene(budget=5)
    rungs = []
    for _ in range(8):
        scene.clock.advance(1)
        rungs.append(scene.supervisor.fell(scene.clock.now_ns(), "SDB-ENGINE-DIED", have_last_good=True))
    assert rungs == [Rung.AS_IS] * 5 + [Rung.LAST_GOOD, Rung.SAFE_MODE, Rung.GIVEN_UP]
    assert scene.supervisor.restarts == 7


def test_without_good_values_the_ladder_skips_them():
    scene = Scene(budget=1)
    fell = scene.supervisor.fell
    assert [fell(0, "SDB-ENGINE-DIED", False) for _ in range(3)] == [
        Rung.AS_IS,
        Rung.SAFE_MODE,
        Rung.GIVEN_UP,
    ]


def test_falls_spread_over_time_never_leave_the_first_rung():
    scene = Scene(budget=5)
    for _ in range(50):
        scene.clock.advance(13)
        assert scene.supervisor.fell(scene.clock.now_ns(), "SDB-ENGINE-DIED", True) is Rung.AS_IS


@pytest.mark.parametrize("code", ["SDB-MODEL-MISSING", "SDB-ENGINE-KIND"])
def test_what_cannot_work_is_not_tried_five_times(code):
    assert Scene().supervisor.fell(0, code, have_last_good=True) is Rung.LAST_GOOD


def test_a_good_minute_or_the_operator_forgives():
    scene = Scene(budget=1)
    for _ in range(2):
        scene.supervisor.fell(scene.clock.now_ns(), "SDB-ENGINE-DIED", True)
    assert scene.supervisor.rung is Rung.LAST_GOOD
    scene.run(50)
    assert scene.supervisor.rung is Rung.LAST_GOOD
    scene.run(15)
    assert scene.supervisor.rung is Rung.AS_IS
    scene.supervisor.fell(scene.clock.now_ns(), "SDB-MODEL-MISSING", True)
    scene.supervisor.forgive()
    assert scene.supervisor.rung is Rung.AS_IS


def test_values_count_as_good_after_ten_seconds_without_a_change():
    scene = Scene()
    scene.run(9)
    assert not scene.supervisor.is_settled(scene.clock.now_ns())
    scene.run(2)
    assert scene.supervisor.is_settled(scene.clock.now_ns())
    scene.supervisor.unsettle()
    scene.run(9)
    assert not scene.supervisor.is_settled(scene.clock.now_ns())
