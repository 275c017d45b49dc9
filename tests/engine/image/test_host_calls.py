"""How much a warm frame asks of the host: its calls of torch are counted, since each costs latency."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.image.test_allocations import ReplayedGraph, rig_of, run_on

#: ``Tensor.numpy()`` goes through these, and through others in another torch.
_OF_NUMPY = {"aten.detach.default", "aten.to.dtype_layout", "aten.resolve_conj.default"}
_OF_NUMPY |= {"aten.resolve_neg.default"}


class Calls(TorchDispatchMode):
    """Counts by place."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) not in _OF_NUMPY:
            self.made[f"{func} at {_place()}"] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    place = sys._getframe(1)
    while place.f_back is not None and place.f_globals.get("__name__", "").partition(".")[0] != "sdbridge":
        place = place.f_back
    return f"{place.f_globals.get('__name__')}: {place.f_lineno}"


class PreparedGraph(ReplayedGraph):
    """What it gives was made when it was captured: only what the host does for it is left."""

    def run(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        for mine, given in zip(self._inputs, tensors, strict=True):
            if mine is not given:
                mine.copy_(given)
        return self._output


# On a GPU most of them are a kernel's launch and a turn of the interpreter, 5 to 10 us of a frame's latency
# each, and more while something is loaded beside. Before anybody counted they were 54, 74, 64 and 77.
MOST = {
    "SD-Turbo, prompts and seed move": 17,
    "SDXL-Turbo, prompts and seed move": 26,
    "four steps": 29,
    "four steps, self": 32,
}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run on graphs that were prepared."""
    run_on(PreparedGraph, monkeypatch)


@pytest.mark.parametrize("case", MOST)
def test_a_warm_frame_makes_few_calls(checkpoint, prepared, case: str) -> None:
    _, tick = rig_of(checkpoint, case, "bfloat16")
    for number in range(25):
        tick(number)
    with Calls() as calls:
        tick(25)
    made = calls.made
    assert made.total() <= MOST[case], "\n".join(f"{count} x {what}" for what, count in made.items())


def test_a_weight_that_moves_asks_for_no_graph_and_no_text(checkpoint, prepared, monkeypatch) -> None:
    rig, tick = rig_of(checkpoint, "SD-Turbo, prompts and seed move", "float32")
    tick(0)
    painter = rig.engine.painter
    asked: list[str] = []
    for owner, name in ((painter.acceleration, "prepare_denoise"), (painter.prompts, "get_now")):
        before = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, f=before, n=name: (asked.append(n), f(*given))[1])
    for number in range(1, 4):
        tick(number)
    assert asked == []
    rig.set(prompt__2__text="ice")
    tick(4)
    assert "get_now" in asked and "prepare_denoise" not in asked
    rig.set(lora__1__weight=0.5)  # an extension may have done something to the layers
    tick(5)
    assert "prepare_denoise" in asked
