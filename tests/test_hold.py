"""The hold policy under a fake clock: what is shown when frames stop and come back."""

import pytest

from sdbridge.hold import HoldPolicy, HoldSettings, OutputState
from sdbridge.testing import FakeClock

LIVE, HOLDING, FADING = OutputState.LIVE, OutputState.HOLDING, OutputState.FADING
FALLBACK, FROZEN, BLACK = OutputState.FALLBACK, OutputState.FROZEN, OutputState.BLACK


class Stage:
    """A policy asked thirty times a second, with or without frames."""

    def __init__(self, **settings):
        self.clock = FakeClock()
        self.settings = HoldSettings(**settings)
        self.policy = HoldPolicy(self.clock.now_ns())

    def run(self, seconds, frames=True):
        shown = []
        for _ in range(round(seconds * 30)):
            self.clock.advance(1 / 30)
            if frames:
                self.policy.frame_came(self.clock.now_ns(), self.settings)
            shown.append(self.policy.decide(self.clock.now_ns(), self.settings))
        return shown


def states(shown):
    """The states in order, each once."""
    return [each.state for at, each in enumerate(shown) if not at or shown[at - 1].state is not each.state]


def test_nothing_came_yet():
    assert states(Stage().run(5, frames=False)) == [HOLDING]


def test_the_last_frame_is_held_for_ever_by_default():
    stage = Stage()
    assert states(stage.run(1)) == [LIVE]
    shown = stage.run(3600, frames=False)
    assert states(shown) == [LIVE, HOLDING] and shown[-1].fallback == 0
    assert states(stage.run(1)) == [LIVE]


@pytest.mark.parametrize("action", ["black", "image", "input"])
def test_after_a_while_the_picture_fades_to_the_fallback_and_comes_back(action):
    stage = Stage(action=action, after_s=2.0, fade_s=1.0, recover_frames=5)
    stage.run(1)
    gone = stage.run(5, frames=False)
    assert states(gone) == [LIVE, HOLDING, FADING, FALLBACK]
    fading = [each for each in gone if each.state is FADING]
    assert len(fading) == pytest.approx(30, abs=2)  # one second at thirty frames
    assert [each.fallback for each in fading] == sorted(each.fallback for each in fading)
    back = stage.run(5)
    assert states(back) == [FALLBACK, FADING, LIVE]
    assert sum(each.state is FALLBACK for each in back) == 4  # the fifth good frame begins the way back


def test_frames_that_stumble_do_not_bring_the_picture_back():
    stage = Stage(action="black", after_s=0.5, fade_s=0.0, recover_frames=3)
    stage.run(1)
    stage.run(2, frames=False)
    for _ in range(6):  # one frame, then silence longer than after_s, again and again
        stage.run(1 / 30)
        assert {each.state for each in stage.run(1, frames=False)} == {FALLBACK}


def test_a_fade_turns_round_where_it_stands():
    stage = Stage(action="black", after_s=1.0, fade_s=10.0, recover_frames=1)
    stage.run(1)
    out = stage.run(4, frames=False)
    highest = out[-1].fallback
    assert 0.2 < highest < 0.4
    back = stage.run(1)
    assert highest > back[0].fallback > back[-1].fallback > 0.1


def test_a_fade_of_no_time_cuts():
    stage = Stage(action="black", after_s=1.0, fade_s=0.0)
    stage.run(1)
    assert FADING not in states(stage.run(3, frames=False))


def test_black_wins_over_freeze_and_freeze_over_all_else():
    stage = Stage(action="black", after_s=1.0, fade_s=0.0, freeze=True)
    assert states(stage.run(1)) == [FROZEN]
    assert states(stage.run(5, frames=False)) == [FROZEN]
    stage.settings = HoldSettings(freeze=True, black=True)
    assert states(stage.run(1)) == [BLACK]
    stage.settings = HoldSettings()
    assert states(stage.run(1)) == [LIVE]


def test_the_policy_goes_on_beneath_the_operators_hand():
    stage = Stage(action="black", after_s=1.0, fade_s=1.0, black=True)
    stage.run(1)
    stage.run(5, frames=False)
    stage.settings = HoldSettings(action="black", after_s=1.0, fade_s=1.0)
    assert states(stage.run(1, frames=False)) == [FALLBACK]  # no jump back to the held frame


def test_a_slow_engine_is_live_between_its_frames():
    stage = Stage()
    for _ in range(20):  # one frame a second
        stage.policy.frame_came(stage.clock.now_ns(), stage.settings)
        stage.run(1, frames=False)
    stage.policy.frame_came(stage.clock.now_ns(), stage.settings)
    assert states(stage.run(1, frames=False)) == [LIVE]


def test_choosing_hold_while_black_brings_the_held_frame_back():
    stage = Stage(action="black", after_s=1.0, fade_s=1.0)
    stage.run(1)
    stage.run(5, frames=False)
    stage.settings = HoldSettings(action="hold", fade_s=1.0)
    assert states(stage.run(3, frames=False)) == [FADING, HOLDING]
