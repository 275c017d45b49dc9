"""The engine across restarts: swaps, failed reloads, falls and the ladder, with real child processes."""

import os
import signal
import threading
import time

import pytest

from sdbridge.clock import SystemClock
from sdbridge.config import EngineSection
from sdbridge.engine import making
from sdbridge.engine.interface import EngineState
from sdbridge.engine.pipe import Wake
from sdbridge.engine.running import RunningEngine
from sdbridge.frame import Frame
from sdbridge.parameters.store import ParameterStore
from sdbridge.testing import FakeEngine, numbered_picture

STREAMING = EngineState.STREAMING


class Grabbing(FakeEngine):
    """Paints, in every frame, how many engines there were before it: what no parameter says."""

    before = 0

    def remember(self, keepsakes):
        self.before = int(keepsakes.get("engines", b"0"))

    def keepsakes(self):
        return {"engines": str(self.before + 1).encode()}

    def _paint(self, frame, values, triggers):
        painted = super()._paint(frame, values, triggers)
        painted.pixels[0, 2] = self.before
        return painted


class Show:
    """A running engine fed thirty times a second, its frames kept with the time of each."""

    def __init__(self, kind="faulty", stall_s=2.0, budget=5, **options):
        self.store = ParameterStore()
        self.store.set_many({"width": 64, "height": 64})
        self.notes = []
        self.frames = []
        self.ready = Wake()
        self.engine = RunningEngine(
            EngineSection(kind=kind, width=64, height=64, options=options),
            self.store,
            SystemClock(),
            self.ready,
            self.notes.append,
            stall_s=stall_s,
            restarts_a_minute=budget,
        )
        self.store.subscribe(self.engine.change)
        self.feeding = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        number = 0
        while not self._over.is_set():
            if self.feeding:
                number += 1
                self.engine.offer("main", Frame(numbered_picture(number), number, time.monotonic_ns()))
            self.ready.wait(1 / 60)
            frame = self.engine.take("generated")
            if frame is not None:
                self.frames.append(frame.own())  # what is lent is not to be kept

    def __enter__(self):
        self.engine.start()
        self._thread.start()
        self.wait_frames(3)
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.engine.stop()
        self.ready.close()

    def wait(self, wanted, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not wanted() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert wanted(), (self.notes, self.engine.state)

    def wait_frames(self, more):
        wanted = len(self.frames) + more
        self.wait(lambda: len(self.frames) >= wanted)

    def noted(self, code):
        return [note for note in self.notes if note.startswith(code)]

    @property
    def process(self):
        return self.engine.client.process_id if self.engine.client is not None else None


def test_a_killed_engine_is_replaced_with_all_values():
    with Show() as show:
        show.store.set("strength", 0.25)
        first = show.process
        os.kill(first, signal.SIGKILL)
        show.wait(lambda: show.process not in (None, first))
        show.wait_frames(3)
        assert show.noted("SDB-ENGINE-DIED") and show.engine.restarts == 1
        assert show.frames[-1].pixels[0, 1, 0] == round(0.25 * 255)


def test_what_no_parameter_says_is_handed_from_engine_to_engine():
    """To the one that takes a killed one's place, and to one that takes over at a frame edge."""
    with Show(f"{__name__}:Grabbing") as show:
        assert show.frames[-1].pixels[0, 2, 0] == 0
        maker = show.engine._watcher.maker
        show.wait(lambda: maker._keepsakes == {"engines": b"1"})
        os.kill(show.process, signal.SIGKILL)
        show.wait(lambda: show.frames[-1].pixels[0, 2, 0] == 1)
        show.wait(lambda: maker._keepsakes == {"engines": b"2"})
        show.store.set("engine.restart", True)
        show.wait(lambda: show.frames[-1].pixels[0, 2, 0] == 2)


def test_an_engine_that_makes_no_frames_is_replaced_although_it_answers():
    with Show(stall_s=0.5) as show:
        show.store.set("prompt", "hang")
        show.wait(lambda: show.noted("SDB-ENGINE-STALLED"))
        show.store.set("prompt", "")
        show.wait(lambda: show.engine.state is STREAMING)
        show.wait_frames(3)


def test_a_stopped_process_is_replaced():
    with Show(stall_s=0.5) as show:
        os.kill(show.process, signal.SIGSTOP)
        show.wait(lambda: show.noted("SDB-ENGINE-STALLED") or show.noted("SDB-ENGINE-SILENT"))
        show.wait_frames(3)


def test_without_input_a_stopped_process_is_found_by_its_silence():
    with Show(stall_s=1.0) as show:
        show.feeding = False
        first = show.process
        os.kill(first, signal.SIGSTOP)
        show.wait(lambda: show.noted("SDB-ENGINE-SILENT"))
        show.feeding = True
        show.wait_frames(3)


def test_an_engine_that_raises_each_frame_goes_down_the_ladder_and_streams_with_defaults():
    """The prompt is at fault: restarts do not help, safe mode's defaults do."""
    with Show(budget=1) as show:
        show.store.set("prompt", "raise")
        show.wait(lambda: show.noted("SDB-ENGINE-SAFEMODE"))
        show.wait(lambda: show.engine.state is STREAMING)
        show.wait_frames(3)
        assert show.store.get("prompt") == "" and show.engine.safe_mode
        assert (show.store.get("width"), show.store.get("height")) == (64, 64)  # the config's


def test_the_last_good_values_come_before_the_defaults(monkeypatch):
    monkeypatch.setattr("sdbridge.engine.supervisor.SETTLED_S", 0.2)
    with Show(budget=1) as show:
        show.store.set_many({"prompt": "a good one", "strength": 0.5})
        show.wait(lambda: (show.engine._watcher.last_good or {}).get("prompt.1.text") == "a good one")
        show.store.set("prompt", "oom")
        show.wait(lambda: show.noted("SDB-ENGINE-LASTGOOD"))
        show.wait_frames(3)
        assert show.store.get("prompt") == "a good one"
        assert not show.noted("SDB-ENGINE-SAFEMODE")


def test_when_nothing_helps_it_gives_up_says_so_and_can_be_started_again():
    with Show("faulty", budget=1) as show:
        maker = show.engine._watcher.maker
        maker.section = maker.section.model_copy(update={"kind": "gone:Engine"})
        os.kill(show.process, signal.SIGKILL)
        show.wait(lambda: show.noted("SDB-ENGINE-GIVENUP"))
        show.wait(lambda: show.engine.state is EngineState.FAILED)
        assert show.engine.given_up and show.process is None
        show.store.set("engine.start", True)  # with the section of the config again
        show.wait_frames(3)
        assert not show.engine.given_up


def test_a_restart_by_hand_swaps_without_a_gap():
    with Show(load_s=0.5) as show:
        first = show.process
        show.store.set("engine.restart", True)
        show.wait(lambda: show.engine.incoming is not None)
        before = len(show.frames)
        show.wait(lambda: show.process not in (None, first))
        assert len(show.frames) - before > 10  # the old one went on while the new one loaded
        show.wait_frames(3)
        times = [frame.received_at_ns for frame in show.frames]
        assert times == sorted(times)
        assert not show.notes


def test_a_reload_loads_beside_and_carries_live_changes_over():
    with Show(load_s=0.5) as show:
        first = show.process
        show.store.set("model", "another")
        show.wait(lambda: show.engine.incoming is not None)
        show.store.set("strength", 0.75)  # while it loads
        show.wait(lambda: show.process != first)
        show.wait_frames(3)
        assert show.engine.client.config.model == "another"
        assert show.frames[-1].pixels[0, 1, 0] == round(0.75 * 255)


def test_a_model_that_does_not_load_leaves_the_old_one_running_and_the_store_truthful():
    with Show() as show:
        first = show.process
        show.store.set("model", "bad")
        show.wait(lambda: show.noted("SDB-ENGINE-RELOAD"))
        show.wait(lambda: show.store.get("model") == "")
        show.wait_frames(5)
        assert show.process == first and show.engine.incoming is None


def test_two_that_do_not_fit_run_one_after_the_other_and_the_old_returns_if_the_new_fits_not_at_all():
    with Show() as show:
        show.store.set("model", "oom")
        show.wait(lambda: show.noted("SDB-ENGINE-BESIDE"))
        show.wait(lambda: show.noted("SDB-ENGINE-RELOAD"))
        show.wait(lambda: show.store.get("model") == "" and show.engine.state is STREAMING)
        show.wait_frames(3)


def test_a_new_engine_gets_the_picture_of_a_source_that_stands_still():
    """A sender that only sends what changes must not leave a restarted engine without input."""
    with Show() as show:
        show.feeding = False
        os.kill(show.process, signal.SIGKILL)
        show.wait_frames(1)


def test_stop_and_start_by_hand():
    with Show() as show:
        show.store.set("engine.stop", True)
        show.wait(lambda: show.engine.state is EngineState.STOPPED)
        made = len(show.frames)
        time.sleep(0.2)  # nothing to wait for: it must stay stopped
        assert show.engine.state is EngineState.STOPPED and len(show.frames) <= made + 1
        show.store.set("engine.start", True)
        show.wait_frames(3)
        assert not show.notes


def test_a_reload_without_input_takes_over_all_the_same(monkeypatch):
    monkeypatch.setattr("sdbridge.engine.watcher.TAKE_OVER_NS", 100_000_000)
    with Show() as show:
        show.feeding = False
        first = show.process
        show.store.set("engine.restart", True)
        show.wait(lambda: show.process not in (None, first))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_restart_after_restart_leaks_nothing():
    with Show("passthrough") as show:

        def restart():
            first = show.process
            show.store.set("engine.restart", True)
            show.wait(lambda: show.process not in (None, first))
            show.wait(lambda: not show.engine._succession.retiring)
            show.wait_frames(2)

        def held():
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        restart()
        after_one = held()
        for _ in range(4):
            restart()
        show.wait(lambda: held() <= after_one)


@pytest.mark.parametrize("order", ["engine.restart", "engine.stop"])
def test_ending_in_the_middle_of_anything_leaves_nothing_behind(order):
    with Show(load_s=0.3) as show:
        show.store.set(order, True)
        clients = [show.engine.client]
        show.wait(lambda: show.engine.incoming is not None or show.engine.client is None)
        clients += [show.engine.incoming]
    for client in clients:
        assert client is None or not client.alive


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (64, 4), (None, 1)])
def test_an_engine_leaves_a_core_to_the_bridge(monkeypatch, cores, threads):
    monkeypatch.setattr(making.os, "cpu_count", lambda: cores)
    values = {}
    assert making.engine_config(EngineSection(), values).threads == threads
    assert making.engine_config(EngineSection(threads=7), values).threads == 7
    assert making.engine_config(EngineSection(in_process=True), values).threads == 0


def test_safe_mode_has_an_engine_even_where_the_config_names_none():
    nothing = lambda *given: None  # noqa: E731
    for kind, after in (("imagee", "image"), ("passthrough", "passthrough")):
        section = EngineSection(kind=kind, model="/no/such")
        made = making.EngineMaker(section, ParameterStore(), None, nothing, nothing, nothing)
        made.enter_safe_mode()
        assert made.section.kind == after
