"""Frames overlap in the engine loop: order, loss, latency and throughput, counted on a simulated device."""

from __future__ import annotations

import pytest

from sdbridge.engine.interface import EngineConfig, EngineState, overlapping
from sdbridge.testing import FakeEngine, FakeOverlapEngine

from .overlap_rig import MS, Run


def test_a_slow_source_waits_for_one_engine_time_and_not_longer():
    run = Run(every_ms=33.0, last_ms=3000).go()
    assert run.ids == list(range(1, run.offered + 1))
    assert run.engine.highest_pending == 1
    assert max(run.latencies_ms) == pytest.approx(2.0 + 5.0, abs=0.01)


def test_a_source_just_slower_than_the_device_loses_nothing_where_plain_ticks_lose_frames():
    """One frame each 6 ms: host (2) and device (5) keep up only side by side."""
    plain = Run(every_ms=6.0, last_ms=3000, overlap=False).go()
    assert len(plain.out) < 0.9 * plain.offered
    run = Run(every_ms=6.0, last_ms=3000).go()
    assert run.offered - len(run.out) - run.drops <= 2  # those under way when it ended
    assert run.drops <= 2  # before it was known how long a tick takes
    assert run.ids == sorted(set(run.ids))


def test_a_fast_source_keeps_the_device_at_work_with_fresh_frames():
    run = Run(every_ms=1.0, last_ms=3000).go()
    assert run.engine.highest_pending == 2
    assert sum(run.engine.idle_ns[5:]) < 0.01 * 3000 * MS
    assert len(run.out) == pytest.approx(3000 / 5.0, rel=0.02)
    plain = Run(every_ms=1.0, last_ms=3000, overlap=False).go()
    assert len(plain.out) == pytest.approx(3000 / 7.0, rel=0.02)
    # Taken just before the device is free, a frame does not lie in its queue for a whole tick.
    assert sorted(run.latencies_ms)[len(run.out) // 2] < 5.0 + 2 * 2.0 + 0.5 + 1.0
    assert run.ids == sorted(set(run.ids))


@pytest.mark.parametrize("overlap", [True, False])
def test_an_engine_hears_when_it_has_nothing_to_do(overlap):
    run = Run(every_ms=33.0, last_ms=3000, overlap=overlap).go()
    rests = run.engine.rested
    for (_, out), (_, following) in zip(run.out, run.out[1:], strict=False):
        first = next(at for at in rests if at >= out)
        assert first - out < 0.1 * MS, "as soon as its picture is out"
        assert first < following - 7.0 * MS
    fast = Run(every_ms=1.0, last_ms=3000, overlap=overlap).go()
    assert not [at for at in fast.engine.rested if at > fast.out[0][1]]


def test_the_host_may_take_longer_than_the_device():
    run = Run(every_ms=1.0, last_ms=3000, host_ms=5.0, device_ms=2.0).go()
    assert len(run.out) == pytest.approx(3000 / 5.0, rel=0.02)
    assert run.ids == sorted(set(run.ids))


def test_a_tick_that_suddenly_takes_long_or_short_is_followed():
    run = Run(every_ms=1.0, last_ms=6000)
    run.clock.at(2000, lambda: setattr(run.engine, "device_ms", 50.0))
    run.clock.at(4000, lambda: setattr(run.engine, "device_ms", 3.0))
    run.go()
    assert len(run.out) == pytest.approx(2000 / 5 + 2000 / 50 + 2000 / 3, rel=0.03)
    assert run.ids == sorted(set(run.ids))


@pytest.mark.parametrize("every_ms", [1.0, 4.0, 6.0, 33.0])
def test_a_parameter_received_before_a_frame_is_taken_shows_in_that_frame_with_its_revision(every_ms):
    run = Run(every_ms=every_ms, last_ms=2000)
    said_ns = {}

    def say(revision):
        run.inbox.waiting_changes.append(({"strength": revision / 255}, revision))
        said_ns[revision] = run.clock.now_ns()
        run.wake.set()

    for revision in range(1, 150):
        run.clock.at(revision * 13.0 + 0.5, lambda revision=revision: say(revision))
    run.go()
    assert len(run.out) > 50
    for frame, _when in run.out:
        assert frame.pixels[0, 0, 0] == frame.revision  # stamped with what it was painted with
        for revision, at_ns in said_ns.items():
            if at_ns <= frame.received_at_ns:
                assert frame.revision >= revision
    revisions = [frame.revision for frame, _ in run.out]
    assert revisions == sorted(revisions)
    assert [revision for _, revision in run.told("applied")][-1] == max(said_ns)


@pytest.mark.parametrize(("every_ms", "chunk"), [(1.0, 1), (6.5, 1), (33.0, 1), (10.0, 4)])
def test_while_the_engine_asks_for_it_each_tick_is_out_before_the_next_and_nothing_is_lost(every_ms, chunk):
    device_ms = 30.0 if chunk == 4 else 4.0
    run = Run(every_ms=every_ms, last_ms=3000, device_ms=device_ms, chunk=chunk)
    run.clock.at(1000, lambda: setattr(run.engine, "most_pending", 1))
    run.clock.at(2000, lambda: setattr(run.engine, "most_pending", 2))
    run.go()
    at_ms = [((when - run.clock.begin_ns) / 1e6, pending) for when, pending in run.engine.submits]
    before, meanwhile, after = (
        [pending for ms, pending in at_ms if begin + 5 <= ms < begin + 1000] for begin in (0, 1000, 2000)
    )
    assert set(meanwhile) == {1} and len(meanwhile) > 20
    if every_ms == 1.0:
        assert 2 in before and before.count(2) == pytest.approx(after.count(2), rel=0.1)
    assert run.ids == sorted(set(run.ids))
    if every_ms != 1.0:  # that source is faster than the device
        assert run.drops <= 2
        assert (
            run.engine.taken
            == list(range(1, len(run.engine.taken) + 1 + run.drops))[-len(run.engine.taken) :]
        )


@pytest.mark.parametrize("every_ms", [1.0, 6.0, 33.0])
def test_nothing_from_before_a_reset_comes_out_after_it(every_ms):
    run = Run(every_ms=every_ms, last_ms=1000)
    for ms in (300, 500.2, 702.7):
        run.clock.at(ms, lambda: run.inbox.waiting_resets.append("soft"))
    run.go()
    assert len(run.engine.resets) == 3
    for reset_ns in run.engine.resets:
        later = [frame for frame, when in run.out if when > reset_ns]
        assert later and all(frame.received_at_ns >= reset_ns - 8 * MS for frame in later)
    assert run.ids == sorted(set(run.ids))


def test_a_tick_that_breaks_on_the_device_costs_its_own_frame_only():
    run = Run(every_ms=6.0, last_ms=1000)
    run.clock.at(0.1, lambda: run.engine.breaks.update({50, 51, 90}))
    run.go()
    made = set(run.ids)
    assert not made & {50, 51, 90}
    assert {49, 52, 89, 91} <= made
    assert run.told("error") and run.engine.pending == 0


def test_an_engine_that_always_breaks_is_given_up():
    run = Run(every_ms=6.0, last_ms=1000)
    run.clock.at(0.1, lambda: run.engine.breaks.update(range(1000)))
    with pytest.raises(Exception, match="SDB-ENGINE-FAULT"):
        run.go()


@pytest.mark.parametrize(("every_ms", "tick_ms"), [(33.0, 7.0), (1.0, 5.0)])
def test_the_time_of_a_tick_is_its_way_alone_and_its_interval_in_a_row(every_ms, tick_ms):
    run = Run(every_ms=every_ms, last_ms=3500).go()
    assert run.told("stats")[-1][1].tick_ms == pytest.approx(tick_ms, rel=0.05)


def test_an_engine_that_wants_four_frames_a_tick_is_fed_while_its_device_works():
    run = Run(every_ms=10.0, last_ms=4000, device_ms=30.0, chunk=4).go()
    assert run.drops == 0
    assert run.engine.taken == list(range(1, len(run.engine.taken) + 1))
    assert run.offered - len(run.engine.taken) < 4


def test_without_a_source_txt2img_keeps_its_beat_and_overlaps_when_the_beat_is_short():
    def paint(fps):
        run = Run(every_ms=900.0, last_ms=3000)
        run.clock.at(
            0.1, lambda: run.inbox.waiting_changes.append(({"mode": "txt2img", "output.fps": fps}, 1))
        )
        run.go()
        return run

    slow = paint(20.0)
    assert len(slow.out) == pytest.approx(20.0 * 2.9, abs=2) and slow.engine.highest_pending == 1
    fast = paint(10_000.0)
    assert len(fast.out) == pytest.approx(2900 / 5, rel=0.02) and fast.engine.highest_pending == 2


def test_only_an_engine_that_can_submit_overlaps():
    assert overlapping(FakeEngine(EngineConfig())) is None
    engine = FakeOverlapEngine(EngineConfig())
    assert overlapping(engine) is engine
    engine.unload()


def test_the_end_comes_while_ticks_are_under_way():
    run = Run(every_ms=1.0, last_ms=500.003).go()
    assert run.told("state")[-1][1] is EngineState.STREAMING  # the rest is said by run_engine
    assert run.engine.pending == 0


@pytest.mark.parametrize("overlap", [True, False])
def test_what_an_engine_holds_back_is_neither_in_a_frames_revision_nor_told_as_applied(overlap: bool):
    run = Run(every_ms=33.0, last_ms=2000, overlap=overlap)

    def say(revision):
        run.inbox.waiting_changes.append(({"strength": revision / 255}, revision))
        run.wake.set()

    def hold(revision):
        run.engine.shows_up_to = revision

    run.clock.at(300, lambda: say(3))
    run.clock.at(499, lambda: hold(3))
    run.clock.at(500, lambda: say(4))  # waits for something
    run.clock.at(700, lambda: say(5))  # does not, but a revision says that all before it is there
    run.clock.at(1200, lambda: hold(None))
    run.go()
    shown = [(frame.revision, (when - run.clock.begin_ns) / 1e6) for frame, when in run.out]
    assert {revision for revision, at_ms in shown if 340 < at_ms < 1200} == {3}
    assert {revision for revision, at_ms in shown if at_ms > 1240} == {5}
    assert [revision for _, revision in run.told("applied")] == [0, 3, 3, 3, 5]


def test_who_waits_for_each_picture_does_not_wait_ever_longer():
    """The next frame comes when the last picture is out, which is when the pipe drains."""
    run = Run(every_ms=10_000.0, last_ms=30_000, behind=1)  # once a frame by itself, then each by the last
    shown = run.set

    def answer() -> None:
        shown()
        run.clock.at((run.clock.now_ns() - run.clock.begin_ns) / MS + 1.0, run._offer)

    run.set = answer
    run.clock.at(1.0, run._offer)
    run.go()
    assert run.ids[:50] == list(range(1, 51))
    assert max(run.latencies_ms) < 550
