"""When frames leave, under a fake clock: at their own rate, or as the engine delivers."""

import itertools

import pytest

from sdbridge.pacing import OutputPace
from sdbridge.testing import FakeClock


def run(arrivals, seconds, fps=0.0, step_s=0.001):
    """(time, new) of each frame sent, for an engine whose frames arrive at ``arrivals``."""
    clock = FakeClock(0)
    pace = OutputPace(0)
    sent, waiting, unsent = [], sorted(arrivals), False
    while clock.now_ns() < seconds * 1e9:
        clock.advance(step_s)
        now = clock.now_ns()
        while waiting and waiting[0] * 1e9 <= now:
            waiting.pop(0)
            unsent = True
        if pace.is_due(now, unsent, fps):
            sent.append((now / 1e9, unsent))
            pace.sent(now, unsent, fps)
            unsent = False
    return sent


def gaps(sent):
    return [b[0] - a[0] for a, b in itertools.pairwise(sent)]


def test_following_sends_each_frame_as_it_comes():
    sent = run([n / 60 for n in range(1, 60)], 1)
    new = [at for at, fresh in sent if fresh]
    assert len(new) == 59
    assert all(at == pytest.approx(n / 60, abs=0.0011) for n, at in enumerate(new, 1))


def test_following_repeats_at_thirty_when_the_engine_stops():
    sent = run([0.01], 2)
    assert sum(not fresh for _at, fresh in sent) == pytest.approx(60, abs=2)
    assert max(gaps(sent)) <= 0.051


def test_an_engine_near_thirty_is_not_disturbed_by_jitter():
    arrivals = [n / 30 + (0.004 if n % 2 else -0.004) for n in range(1, 300)]
    sent = run(arrivals, 10)
    repeats = [at for at, fresh in sent if not fresh and at > 2]
    assert not repeats


@pytest.mark.parametrize("engine_fps", [7, 24, 60, 111])
@pytest.mark.parametrize("fps", [25.0, 50.0, 60.0])
def test_a_rate_of_its_own_is_kept_whatever_the_engine_does(engine_fps, fps):
    sent = run([n / engine_fps for n in range(1, engine_fps * 4)], 4, fps)
    assert len(sent) == pytest.approx(4 * fps, abs=2)
    assert max(gaps(sent)) <= 1 / fps + 0.0021
    if engine_fps < fps:
        assert sum(fresh for _at, fresh in sent) >= 4 * engine_fps - 3  # every frame is shown


def test_a_long_stop_is_not_made_up_for_by_a_burst():
    clock = FakeClock(0)
    pace = OutputPace(0)
    clock.advance(5)
    sent = 0
    for _ in range(100):
        clock.advance(0.001)
        if pace.is_due(clock.now_ns(), False, 60.0):
            pace.sent(clock.now_ns(), False, 60.0)
            sent += 1
    assert sent <= 7  # a tenth of a second at sixty
