"""What the component shows while the daemon is away, step by step, with time passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbridge_td.hold import Hold, HoldSettings, Shown


class Show:
    """A hold that is asked sixty times a second."""

    def __init__(self, **settings: object) -> None:
        self.hold = Hold()
        self.settings = HoldSettings(**settings)  # type: ignore[arg-type]
        self.now = 100.0

    def run(self, seconds: float, good: bool) -> list[Shown]:
        shown = []
        for _ in range(round(seconds * 60)):
            self.now += 1 / 60
            shown.append(self.hold.step(self.now, good, self.settings))
        return shown


def states(shown: list[Shown]) -> list[str]:
    return [s.state for i, s in enumerate(shown) if i == 0 or s.state != shown[i - 1].state]


def test_hold_then_fade_then_back() -> None:
    show = Show(action="black", after_s=2.0, fade_s=1.0, recover_frames=5)
    assert states(show.run(1.0, True)) == ["holding", "live"]
    away = show.run(1.9, False)
    assert states(away) == ["holding"]
    assert not any(s.capture for s in away) and all(s.cross == 0 for s in away)
    gone = show.run(2.0, False)
    assert states(gone) == ["holding", "fading", "fallback"]
    assert gone[-1].cross == 1.0 and gone[-1].fallback == 0
    back = show.run(2.0, True)
    assert states(back) == ["fallback", "returning", "live"]
    assert [s.capture for s in back].index(True) == 4  # the fifth good frame in a row
    crosses = [s.cross for s in back]
    assert crosses == sorted(crosses, reverse=True) and crosses[-1] == 0.0


def test_hold_stays_for_ever_if_told() -> None:
    show = Show(action="hold", after_s=0.5)
    show.run(0.5, True)
    assert states(show.run(30, False)) == ["holding"]


def test_a_flicker_does_not_bring_the_picture_back() -> None:
    show = Show(action="image", after_s=0.2, fade_s=0.1, recover_frames=10)
    show.run(1, True)
    show.run(1, False)
    for _ in range(5):
        assert not any(s.capture for s in show.run(9 / 60, True))
        assert show.run(1 / 60, False)[0].fallback == 1


def test_the_operators_hand_comes_first() -> None:
    show = Show(action="hold")
    show.run(1, True)
    show.settings = HoldSettings(freeze=True)
    assert show.run(0.1, True)[-1] == Shown("frozen", False, 0.0, 0)
    show.settings = HoldSettings(black=True, action="input")
    assert show.run(1 / 60, True)[0] == Shown("black", True, 1.0, 0)  # at once
    show.settings = HoldSettings()
    assert show.run(1 / 60, True)[0].cross == 0.0


@pytest.mark.parametrize("fade_s", [0.0, 1.0])
def test_a_stalled_frame_makes_no_fade_jump(fade_s: float) -> None:
    show = Show(action="black", after_s=0.1, fade_s=fade_s)
    show.run(1, True)
    show.now += 10
    first = show.hold.step(show.now, False, show.settings)
    assert first.cross == 0.0
    show.now += 10
    assert show.hold.step(show.now, False, show.settings).cross == (
        1.0 if fade_s == 0 else pytest.approx(0.1)
    )


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans(), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from(["hold", "black", "image", "input", "something else"]),
)
def test_whatever_happens_the_picture_is_defined(
    steps: list[tuple[float, bool, bool, bool]], action: str
) -> None:
    hold, now = Hold(), 0.0
    for passed, good, freeze, black in steps:
        now += passed
        shown = hold.step(now, good, HoldSettings(action, 1.0, 0.5, 3, freeze, black))
        assert 0.0 <= shown.cross <= 1.0
        assert shown.fallback in (0, 1, 2)
        assert not (shown.capture and (freeze or not good))
