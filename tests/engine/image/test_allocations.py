"""No tensor is made in a warm tick: every result lies in a buffer that was there before."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.frame import Chunk
from tests.engine.image.rig import Rig, frame
from tests.engine.image.test_accelerate import StandInGraph


class Recorder(TorchDispatchMode):
    """Counts operations whose output lies where none of their inputs does, by place in our code."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()
        self.asleep = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _storages((args, kwargs))
        made = func(*args, **(kwargs or {}))
        name = str(func)
        # torch.tensor() makes its storage before the dispatcher sees anything, and gives it to lift_fresh.
        if not self.asleep and ("lift_fresh" in name or not _storages(made) <= given):
            self.made[f"{name} at {_place()}"] += 1
        return made


def _storages(values: Any) -> set[int]:
    tensors = [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
    return {each.untyped_storage().data_ptr() for each in tensors if each.numel()}


def _place() -> str:
    for entry in reversed(traceback.extract_stack()):
        if "/sdbridge/" in entry.filename and "/tests/" not in entry.filename:
            return f"{entry.filename.rpartition('/sdbridge/')[2]}: {entry.line}"
    return "nowhere in sdbridge"


class ReplayedGraph(StandInGraph):
    """What a CUDA graph computes is in memory of its own."""

    recorder: Recorder | None = None

    def run(self, tensors: Any) -> Any:
        with _asleep(type(self).recorder):
            return super().run(tensors)


@contextmanager
def _asleep(recorder: Recorder | None) -> Iterator[None]:
    if recorder is not None:
        recorder.asleep = True
    yield
    if recorder is not None:
        recorder.asleep = False


def still(rig: Rig, number: int) -> None:
    """No parameter moves."""


def moving(rig: Rig, number: int) -> None:
    """What moves in every frame of the benchmark: a blend of two prompts, and the seed."""
    rig.set(prompt__2__weight=0.1 + 0.01 * number, seed__1__value=number)


SELF = {"guidance_mode": "self", "guidance_scale": 1.4}
FOUR = {"steps": 4, "scheduler": "lcm", "step_indices": "32,36,40,44"}
ONE = {"steps": 1, "strength": 0.36}

CASES: dict[str, tuple[str, Mapping[str, Any], str, Callable[[Rig, int], None]]] = {
    "SD-Turbo": ("sd21", ONE, "turbo", still),
    "SD-Turbo, prompts and seed move": ("sd21", ONE, "turbo", moving),
    "SDXL-Turbo, prompts and seed move": ("sdxl", ONE, "turbo", moving),
    "four steps": ("sd15", FOUR, "", moving),
    "four steps, self": ("sd15", {**FOUR, **SELF}, "", moving),
    "four steps, initialize": ("sd15", {**FOUR, **SELF, "guidance_mode": "initialize"}, "", moving),
    "SDXL, four steps, full": ("sdxl", {**FOUR, **SELF, "guidance_mode": "full"}, "", moving),
    "two frames at a time": ("sd21", {**ONE, "frame_batch": 2}, "turbo", moving),
    "two frames at a time, two steps": ("sd15", {"steps": 2, "frame_batch": 2, **SELF}, "", moving),
    "from the prompt alone": ("sd15", {"mode": "txt2img", "steps": 2}, "lcm", moving),
}


def warm_rig(checkpoint: Any, case: str, dtype: str, **given: Any) -> tuple[Rig, Callable[[int], None]]:
    """A rig after its first ticks, and a tick of it."""
    family, values, distilled, move = CASES[case]
    texts = {"prompt.1.text": "fire", "prompt.2.text": "ocean", "prompt_transition": 0.0}
    rig = Rig(checkpoint(family, distilled), {**texts, **values}, dtype=dtype, **given)
    rig.stop_watching()
    frames = int(values.get("frame_batch", 1))

    def tick(number: int) -> None:
        move(rig, number)
        entries = [frame(number * frames + each).frames[0] for each in range(frames)]
        rig.tick(None if values.get("mode") == "txt2img" else Chunk(tuple(entries)))

    return rig, tick


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_a_warm_tick_makes_no_tensor(checkpoint, case: str, dtype: str) -> None:
    rig, tick = warm_rig(checkpoint, case, dtype)
    painter = rig.engine.painter
    recorder = ReplayedGraph.recorder = Recorder()
    painter.acceleration = Compiled(rig.model, capture=ReplayedGraph)
    painter.acceleration.prepare_pictures(int(CASES[case][1].get("frame_batch", 1)), 64, 64)
    painter._ready_for = ()
    for number in range(20):  # as many noises are kept
        tick(number)
    with recorder:
        for number in range(20, 24):
            tick(number)
    assert not recorder.made, "\n".join(f"{count} x {what}" for what, count in recorder.made.items())
