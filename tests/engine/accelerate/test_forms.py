"""Which form of a call is made first: the fast one, unless its kernels take long or frames are held up."""

from __future__ import annotations

import threading

import pytest
import torch

from sdbridge.engine.accelerate import forms
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.precompile import Compilation


class Compiling(Compilation):
    """Done when it is told so."""

    def __init__(self, done: bool = False, here: bool = False) -> None:
        super().__init__(here=here)
        self._open = not done

    def finish(self, fault: str = "") -> None:
        self._fault, self._open = fault, False


class Call:
    """What happened to one call's forms, in order."""

    def __init__(self) -> None:
        self.beside = BesideTheStream(torch.device("cpu"))
        self.said: list[str] = []
        self.in_place: list[str] = []
        self.changed = threading.Condition()
        self.held_up = False
        self.wanted = {"plain": True, "fast": True}
        self.forms = forms.FirstForms(
            self.beside,
            lambda: self.make("plain"),
            self.put_in,
            lambda: self.said.append("given up"),
            lambda error: self.said.append(f"no plain: {error}"),
            lambda: self.held_up,
        )

    def make(self, name: str) -> str | None:
        return name if self.wanted[name] else None

    def put_in(self, name: str) -> None:
        with self.changed:
            self.in_place.append(name)
            self.changed.notify_all()

    def rests(self, error: Exception) -> None:
        self.said.append(f"no fast: {error}")

    def submit(self, compilation: Compiling, known: bool = False) -> None:
        self.forms.submit_both(lambda: compilation, lambda: self.make("fast"), self.rests, known)

    def has(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.in_place) >= count, 30)

    def over(self) -> bool:
        return self.beside.wait(30)


@pytest.fixture
def call():
    made = Call()
    yield made
    made.beside.close()


@pytest.mark.parametrize("known", [False, True])
def test_frames_go_on_as_they_were_until_the_fast_form_is_there(call: Call, known: bool) -> None:
    compilation = Compiling(done=known)
    call.submit(compilation, known)
    if not known:
        assert not call.beside.wait(0.2) and not call.in_place
        compilation.finish()
    assert call.over()
    assert call.in_place == ["fast"] and not call.said


def test_a_change_does_not_wait_for_ever(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "PATIENCE_S", 0.0)
    call.forms._until = 0.0
    compilation = Compiling()
    call.submit(compilation)
    assert call.has(1) and call.in_place == ["plain"]
    compilation.finish()
    assert call.over()
    assert call.in_place == ["plain", "fast"] and not call.said


def test_frames_that_are_held_up_get_the_plain_form_and_then_the_fast_one(call: Call) -> None:
    compilation = Compiling()
    call.submit(compilation)
    call.held_up = True
    assert call.has(1) and call.in_place == ["plain"]
    compilation.finish()
    assert call.over() and call.in_place == ["plain", "fast"]


def test_what_is_known_is_not_made_plainly_for_frames_that_are_held_up(call: Call) -> None:
    call.held_up = True
    call.submit(Compiling(done=True), known=True)
    assert call.over() and call.in_place == ["fast"]


def test_what_would_be_compiled_in_this_process_comes_after_the_plain_form(call: Call) -> None:
    call.submit(Compiling(done=True, here=True))
    assert call.over() and call.in_place == ["plain", "fast"]


def test_a_kernel_that_does_not_compile_leaves_the_plain_form(call: Call) -> None:
    compilation = Compiling()
    compilation.finish("no space left")
    call.submit(compilation)
    assert call.over() and call.in_place == ["plain"]
    assert call.said == ["no fast: no space left"]


def test_a_fault_while_kernels_are_looked_for_leaves_the_plain_form(call: Call) -> None:
    def begin() -> Compilation:
        raise RuntimeError("out of memory")

    call.forms.submit_both(begin, lambda: call.make("fast"), call.rests)
    assert call.over() and call.in_place == ["plain"]
    assert call.said == ["no fast: out of memory"]


def test_what_nobody_wants_any_more_may_be_asked_for_again(call: Call) -> None:
    call.wanted = {"plain": False, "fast": False}
    call.submit(Compiling(done=True))
    assert call.over() and not call.in_place and call.said == ["given up"]


def test_one_that_has_no_fast_form(call: Call) -> None:
    call.forms.submit_plain()
    assert call.over() and call.in_place == ["plain"] and not call.said
