"""Noting down what would be compiled: one thread only, the hook there only meanwhile, others as ever."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from sdbridge.engine.accelerate.kernels.recording import Kernel, is_recording, recording


@pytest.fixture
def runtime(monkeypatch) -> SimpleNamespace:
    """``triton.knobs.runtime`` with the one knob that is used."""
    knobs = SimpleNamespace(runtime=SimpleNamespace(jit_cache_hook=None))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(knobs=knobs))
    return knobs.runtime


def compiling(runtime, name: str, form: str = "{}") -> object:
    """As Triton asks before it compiles; a true answer says that it is taken care of."""
    if runtime.jit_cache_hook is None:
        return None
    fn = SimpleNamespace(module="m", name=name, jit_function=f"{name}'s")
    return runtime.jit_cache_hook(
        key="k",
        repr="r",
        fn=fn,
        compile={"specialization_data": form},
        is_manual_warmup=False,
        already_compiled=False,
    )


def test_each_form_is_noted_once_and_nothing_is_compiled(runtime) -> None:
    with recording() as found:
        assert is_recording()
        assert [compiling(runtime, name) for name in ("gemm", "norm", "gemm")] == [True] * 3
        assert compiling(runtime, "gemm", "other") is True
    assert found == {
        Kernel("m", "gemm", "{}"): "gemm's",
        Kernel("m", "norm", "{}"): "norm's",
        Kernel("m", "gemm", "other"): "gemm's",
    }
    assert not is_recording() and runtime.jit_cache_hook is None


def test_other_threads_compile_and_other_hooks_are_asked(runtime) -> None:
    asked: list[str] = []

    def theirs(**said: object) -> bool:
        asked.append(said["fn"].name)  # type: ignore[attr-defined]
        return False

    runtime.jit_cache_hook = theirs
    answers: list[object] = []
    with recording() as found:
        thread = threading.Thread(target=lambda: answers.append(compiling(runtime, "elsewhere")))
        thread.start()
        thread.join()
        assert compiling(runtime, "here") is True
    assert answers == [False] and asked == ["elsewhere"] and [kernel.name for kernel in found] == ["here"]
    assert runtime.jit_cache_hook is theirs


def test_two_threads_record_each_its_own_and_the_last_takes_the_hook_away(runtime) -> None:
    begun, go_on, theirs = threading.Event(), threading.Event(), []

    def other() -> None:
        with recording() as found:
            begun.set()
            go_on.wait(30)
            compiling(runtime, "theirs")
        theirs.extend(found)

    thread = threading.Thread(target=other)
    with recording() as found:
        thread.start()
        begun.wait(30)
        compiling(runtime, "ours")
    assert runtime.jit_cache_hook is not None
    go_on.set()
    thread.join()
    assert [kernel.name for kernel in found] == ["ours"] and [kernel.name for kernel in theirs] == ["theirs"]
    assert runtime.jit_cache_hook is None


def test_a_failed_pass_leaves_no_hook_behind(runtime) -> None:
    with pytest.raises(RuntimeError), recording():
        raise RuntimeError("the pass failed")
    assert runtime.jit_cache_hook is None and not is_recording()


def test_a_triton_that_cannot_be_asked_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    with pytest.raises(AttributeError), recording():
        raise AssertionError("unreachable")
    assert not is_recording()
