"""Dated bundles: kept up to ten seconds on the monotonic clock, refused beyond, late ones now."""

from __future__ import annotations

import pytest

from sdbridge.control.osc_decode import OscBundle, OscMessage
from sdbridge.control.osc_schedule import FARTHEST_S, MOST_WAITING, OscSchedule, OscTooFarError
from tests.control.fake_view import ManualClock

SENDER = ("127.0.0.1", 1)
WALL = 1_800_000_000.0


def dated(ahead_s: float, name: str = "/x", size: int = 1, text: str = "") -> OscBundle:
    args = (text,) if text else ()
    return OscBundle((OscMessage(name, args),) * size, int((WALL + ahead_s + 2_208_988_800) * 2**32))


def a_schedule() -> tuple[OscSchedule, ManualClock]:
    clock = ManualClock()
    return OscSchedule(clock, lambda: WALL), clock


def names(schedule: OscSchedule) -> list[str]:
    return [bundle.messages[0].address for bundle, _ in schedule.take_due()]


def test_bundles_come_out_in_order_of_date_and_then_of_arrival() -> None:
    schedule, clock = a_schedule()
    for ahead, name in ((2.0, "/late"), (1.0, "/one"), (1.0, "/two")):
        assert schedule.put_off(dated(ahead, name), SENDER)
    assert names(schedule) == []
    assert schedule.next_in_s() == pytest.approx(1.0, abs=1e-5)
    clock.advance(1.001)
    assert names(schedule) == ["/one", "/two"]
    clock.advance(1.0)
    assert names(schedule) == ["/late"]
    assert schedule.next_in_s() is None


@pytest.mark.parametrize("timetag", [0, 1])
def test_immediately_is_now_and_not_late(timetag: int) -> None:
    schedule, _ = a_schedule()
    assert not schedule.put_off(OscBundle((OscMessage("/x"),), timetag), SENDER)
    assert schedule.late == 0


def test_late_ones_are_applied_now_and_counted() -> None:
    schedule, _ = a_schedule()
    assert not schedule.put_off(dated(-5.0), SENDER)
    assert not schedule.put_off(dated(0.0), SENDER)
    assert schedule.late == 1


def test_beyond_ten_seconds_is_refused_with_the_number() -> None:
    schedule, _ = a_schedule()
    assert schedule.put_off(dated(FARTHEST_S - 0.1), SENDER)
    with pytest.raises(OscTooFarError, match=r"3600\.0 s ahead"):
        schedule.put_off(dated(3600.0), SENDER)
    assert len(schedule) == 1


def test_what_waits_is_bounded_in_number_and_in_size() -> None:
    schedule, clock = a_schedule()
    schedule.put_off(dated(1.0, size=MOST_WAITING), SENDER)
    with pytest.raises(OscTooFarError, match="messages wait"):
        schedule.put_off(dated(1.0), SENDER)
    clock.advance(2.0)
    schedule.take_due()
    for _ in range(61):
        schedule.put_off(dated(1.0, text="x" * 65_000), SENDER)
    with pytest.raises(OscTooFarError, match="characters wait"):
        schedule.put_off(dated(1.0, text="x" * 65_000), SENDER)
    clock.advance(2.0)
    schedule.take_due()
    assert schedule.put_off(dated(1.0, text="x" * 65_000), SENDER)
