"""The senders inside the engine's process: their thread, their orders, and what is told to the bridge."""

import queue
import threading
from typing import ClassVar

import pytest

from sdbridge.engine import gpu_output
from sdbridge.engine.gpu_output import FAILURES_ALLOWED, GpuOutputs, GpuUnusableError
from sdbridge.errors import SdbridgeError


class RecordingShow:
    """Keeps the ``Show`` protocol; says what was done to it, and in which thread."""

    made: ClassVar[list] = []

    def __init__(self, options) -> None:
        self.options = options
        self.did: list[str] = []
        self.threads: set[int] = set()
        self.free = True
        self.broken: Exception | None = None
        self.change = threading.Condition()
        RecordingShow.made.append(self)

    def _note(self, what: str) -> None:
        with self.change:
            self.threads.add(threading.get_ident())
            self.did.append(what)
            self.change.notify_all()

    def open(self) -> None:
        if self.options.get("refuse"):
            raise SdbridgeError("SDB-ENGINE-TEXTURE", "no such GPU")
        if self.options.get("crash"):
            raise RuntimeError("the driver is gone")
        self._note("open")

    def take(self, name: str) -> bool:
        if self.free:
            self._note(f"take {name}")
        return self.free

    def keep(self, tensor):
        return f"kept {tensor}"

    def show(self, kept) -> None:
        if self.broken is not None:
            raise self.broken
        self._note(f"show {kept}")

    def release(self) -> None:
        self._note("release")

    def close(self) -> None:
        self._note("close")

    def wait_for(self, what: str) -> None:
        with self.change:
            assert self.change.wait_for(lambda: what in self.did, 20), self.did


class Heard:
    def __init__(self) -> None:
        self.said: queue.Queue = queue.Queue()

    def __call__(self, name, state, why) -> None:
        self.said.put((name, str(state), why))

    def next(self):
        return self.said.get(timeout=20)


@pytest.fixture
def outputs(monkeypatch):
    RecordingShow.made = []
    monkeypatch.setattr(gpu_output, "_make_show", lambda backend, options: RecordingShow(options))
    heard = Heard()
    outputs = GpuOutputs(heard)
    outputs.enable(True, "")
    yield outputs, heard
    outputs.close()


def ready(outputs, heard, **options) -> RecordingShow:
    outputs.order("prepare", "show", "spout", options)
    assert heard.next() == ("show", "ready", "")
    return RecordingShow.made[-1]


def test_it_shows_only_between_take_and_release_and_tells_both(outputs) -> None:
    outputs, heard = outputs
    show = ready(outputs, heard)
    outputs.offer("early")
    outputs.order("take", "show", "spout", {})
    outputs.offer("one")
    assert heard.next() == ("show", "showing", "")
    outputs.order("release", "show", "spout", {})
    assert heard.next() == ("show", "ready", "")
    outputs.offer("late")
    outputs.order("take", "show", "spout", {})
    outputs.offer("two")
    assert heard.next() == ("show", "showing", "")
    outputs.close()
    assert heard.next() == ("show", "unavailable", "the engine ends")
    assert show.did == [
        *("open", "take show", "show kept one", "release"),
        *("take show", "show kept two", "close"),
    ]
    assert len(show.threads) == 1 and threading.get_ident() not in show.threads


def test_a_release_of_a_name_that_is_not_held_is_answered_too(outputs) -> None:
    outputs, heard = outputs
    show = ready(outputs, heard)
    outputs.order("release", "show", "spout", {})
    assert heard.next() == ("show", "ready", "")
    assert show.did == ["open"]


def test_a_name_that_nobody_asks_for_any_more_is_given_up_and_may_be_asked_for_again(outputs) -> None:
    outputs, heard = outputs
    first = ready(outputs, heard)
    outputs.order("take", "show", "spout", {})
    outputs.offer("one")
    assert heard.next() == ("show", "showing", "")
    outputs.order("drop", "show", "spout", {})
    assert heard.next() == ("show", "none", "")
    second = ready(outputs, heard)
    first.wait_for("close")
    assert second is not first and heard.said.empty()
    outputs.order("drop", "nobody", "spout", {})


def test_it_waits_for_the_name_to_be_free(outputs) -> None:
    outputs, heard = outputs
    show = ready(outputs, heard)
    show.free = False
    outputs.order("take", "show", "spout", {})
    outputs.offer("one")
    outputs.offer("two")
    show.free = True
    while heard.said.empty():
        outputs.offer("three")
    assert heard.next() == ("show", "showing", "")


def test_some_bad_pictures_are_nothing_many_end_the_sender(outputs) -> None:
    outputs, heard = outputs
    show = ready(outputs, heard)
    outputs.order("take", "show", "spout", {})
    outputs.offer("one")
    assert heard.next()[1] == "showing"
    show.broken = SdbridgeError("SDB-ENGINE-TEXTURE", "Spout did not take it")
    tries = 0
    while heard.said.empty():
        outputs.offer(tries)
        tries += 1
    assert heard.next() == ("show", "unavailable", "Spout did not take it")
    assert tries >= FAILURES_ALLOWED
    show.wait_for("close")
    outputs.offer("after")
    outputs.order("take", "show", "spout", {})


def test_what_can_never_work_ends_the_sender_with_its_first_picture(outputs) -> None:
    outputs, heard = outputs
    show = ready(outputs, heard)
    show.broken = GpuUnusableError("SDB-ENGINE-TEXTURE", "what Spout shows is not the picture")
    outputs.order("take", "show", "spout", {})
    outputs.offer("one")
    assert heard.next() == ("show", "unavailable", "what Spout shows is not the picture")
    show.wait_for("close")


@pytest.mark.parametrize(
    ("options", "why"), [({"refuse": True}, "no such GPU"), ({"crash": True}, "RuntimeError: the driver")]
)
def test_a_sender_that_cannot_be_opened_says_why(outputs, options, why) -> None:
    outputs, heard = outputs
    outputs.order("prepare", "show", "spout", options)
    name, state, said = heard.next()
    assert (name, state) == ("show", "unavailable") and why in said


def test_an_engine_without_tensors_says_so_at_once() -> None:
    heard = Heard()
    outputs = GpuOutputs(heard)
    outputs.enable(False, "the engine runs on cpu")
    outputs.order("prepare", "show", "spout", {})
    assert heard.next() == ("show", "unavailable", "the engine runs on cpu")
    outputs.offer("nobody")
    outputs.order("take", "show", "spout", {})
    outputs.close()


def test_every_backend_that_may_be_handed_over_has_a_show() -> None:
    from sdbridge.textures.gpu_handover import BACKENDS

    assert set(gpu_output.SHOWS) == BACKENDS
