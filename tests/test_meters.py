"""Rates and latencies under a fake clock."""

from sdbridge.meters import LatencyMeter, RateMeter
from sdbridge.testing import FakeClock


def test_a_rate_is_of_the_last_seconds_and_falls_when_events_stop():
    clock, meter = FakeClock(), RateMeter()
    assert meter.rate(clock.now_ns()) == 0
    for _ in range(300):
        clock.advance(1 / 60)
        meter.count(clock.now_ns())
    assert 59 < meter.rate(clock.now_ns()) < 61
    clock.advance(1)
    assert 25 < meter.rate(clock.now_ns()) < 35
    clock.advance(5)
    assert meter.rate(clock.now_ns()) == 0


def test_latency_percentiles_are_of_the_newest_frames():
    meter = LatencyMeter()
    assert (meter.read().p50, meter.read().p99) == (0, 0)
    for number in range(1000):
        meter.add(float(number))
    assert (meter.read().p50, meter.read().p99) == (700, 994)
