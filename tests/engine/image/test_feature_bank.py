"""The feature bank from graphs: the same pictures as module by module, through faders, resets and sizes."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.accelerate.replay import WARM_CALLS, Replayed
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image import bank_memory
from tests.engine.image.rig import Rig, frame, relative
from tests.engine.image.test_accelerate import StandInGraph, put_in

VALUES = {"prompt.1.text": "fox", "scheduler": "lcm", "feature_bank.threshold": 0.3}
ON = {"feature_bank__enabled": True, "feature_bank__interval": 2}


def walk(rig: Rig, changes: dict[int, dict[str, object]], count: int, known: tuple[int, ...] = ()) -> list:
    latents = []
    for k in range(count):
        if changes.get(k):
            rig.set_and_await(**changes[k])
        before = StandInGraph.made
        latents.append(rig.latent_of(frame(k)).clone())
        if k in known:
            assert StandInGraph.made == before, f"frame {k} had nothing new in it"
    return latents


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_graphs_with_the_bank_give_what_the_modules_give(checkpoint, family: str) -> None:
    changes = {
        1: ON,
        6: {"feature_bank__strength": 0.3},  # faders, an interval: nothing is captured for them
        7: {"feature_bank__threshold": 0.9, "feature_bank__interval": 1},
        9: {"feature_bank__frames": 2},  # other buffers
        13: {"feature_bank__enabled": False},
        14: {"feature_bank__enabled": True},  # the same buffers, seeded anew
        17: {"steps": 2},
    }
    found = {}
    for name in ("eager", "compile"):
        rig = Rig(checkpoint(family), VALUES, dtype="float64")
        if name == "compile":
            put_in(rig, Compiled(rig.model, capture=StandInGraph))
        found[name] = walk(rig, changes, 21, (4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 19, 20))
        if name == "compile":
            kept = rig.engine.painter.acceleration.graphs.by_key
            assert {key[1] for key in kept if key[0] == "unet"} == {0, 3}, "of dead buffers nothing is kept"
            assert not rig.engine.painter.acceleration.graphs.said & {"operation by operation"}
        rig.engine.unload()
    for k, (a, b) in enumerate(zip(found["eager"], found["compile"], strict=True)):
        assert relative(b, a) <= 1e-9, k


def test_recache_seeds_in_place_and_gives_the_first_frames_again(checkpoint) -> None:
    rig = Rig(checkpoint(), VALUES, dtype="float64")
    put_in(rig, Compiled(rig.model, capture=StandInGraph))
    rig.set(**ON)
    rig.engine.reset("hard")
    first = walk(rig, {}, 6)
    memory = rig.engine.painter._bank.memory
    places = [layer.kv.data_ptr() for layer in memory.layers.values()]
    rig.engine.reset("hard")
    again = walk(rig, {}, 6, tuple(range(6)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert rig.engine.painter._bank.memory is memory
    assert [layer.kv.data_ptr() for layer in memory.layers.values()] == places
    rig.engine.unload()


def test_trying_beside_the_stream_writes_nothing_where_frames_read(checkpoint) -> None:
    """The faster form is tried while frames run; the bank of those frames must not notice."""
    wanted_rig = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True}, dtype="float64")
    wanted = walk(wanted_rig, {}, 8)
    rig = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True}, dtype="float64")
    tried: list[list[torch.Tensor]] = []
    at_rest = threading.Event()

    def capture(run, tensors):
        if threading.current_thread().name == "accelerate":
            assert at_rest.wait(60)
            layers = rig.engine.painter._bank.memory.layers.values()
            before = [layer.kv.clone() for layer in layers]
            made = StandInGraph(run, tensors)
            tried.append([(a - layer.kv).abs().max() for a, layer in zip(before, layers, strict=True)])
            return made
        return StandInGraph(run, tensors)

    acceleration = Compiled(rig.model, capture=capture)
    acceleration.unet.make_fast, acceleration.graphs.beside = PlainOps, BesideTheStream(torch.device("cpu"))
    put_in(rig, acceleration)
    rig.engine.reset("hard")
    found = []
    for k in range(8):
        found.append(rig.latent_of(frame(k)).clone())
        if k == 2:
            at_rest.set()
            assert acceleration.settled(60)
    assert tried and not any(moved for one in tried for moved in one)
    assert all(type(graph).__name__ == "StandInGraph" for graph in acceleration.graphs.by_key.values())
    for k, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert relative(mine, theirs) <= 1e-9, k
    rig.engine.unload()
    wanted_rig.engine.unload()


def test_merging_from_a_graph_is_merging(checkpoint) -> None:
    wanted_rig = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True}, dtype="float64")
    rig = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True}, dtype="float64")
    made: list[str] = []

    def capture(run, tensors):
        made.append(run.__name__)
        return StandInGraph2(run, tensors)

    bank = rig.engine.painter._bank
    bank._wrap = lambda run, name: Replayed(run, name, capture)
    bank._memory = None
    for each in (rig, wanted_rig):
        each.engine.reset("hard")
        each.set(feature_bank__interval=1)
    count = WARM_CALLS + 6
    wanted, found = walk(wanted_rig, {}, count), walk(rig, {}, count)
    assert made == ["merged"] * bank_memory.SHARES
    for k, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert relative(mine, theirs) <= 1e-9, k


class StandInGraph2(StandInGraph):
    """The same contract for a call with several results."""

    def __init__(self, run, tensors) -> None:
        self._run = run
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        self._output = [each.clone() for each in run(*tensors)]

    def run(self, tensors):
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        for mine, new in zip(self._output, self._run(*self._inputs), strict=True):
            mine.copy_(new)
        return self._output


def test_every_layer_takes_up_a_frame_once_an_interval_and_the_work_is_spread(checkpoint) -> None:
    rig = Rig(checkpoint(), {**VALUES, "feature_bank.enabled": True}, dtype="float32")
    rig.engine.reset("hard")
    bank = rig.engine.painter._bank
    for interval, wanted in ((5, 1), (2, 1), (1, 1)):
        rig.set(feature_bank__interval=interval)
        rig.engine.reset("hard")
        rig.latent_of(frame(0))
        layers = list(bank.memory.layers.values())
        for k in range(1, interval):
            rig.latent_of(frame(k))
        moved = [0] * len(layers)
        for k in range(interval, 2 * interval):
            before = [layer.kv[:, layer.kv.shape[1] // 2 :].clone() for layer in layers]
            rig.latent_of(frame(k))
            now = [
                not torch.equal(layer.kv[:, layer.kv.shape[1] // 2 :], held)
                for layer, held in zip(layers, before, strict=True)
            ]
            moved = [a + b for a, b in zip(moved, now, strict=True)]
            assert interval < 2 or sum(now) < len(layers), "not all in one frame"
        assert moved == [wanted] * len(layers), interval


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_similarity_in_pieces_is_similarity_at_once(monkeypatch, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(3, 32, width, generator=generator).to(dtype) for width in (8, 6)]
    order = torch.randperm(32, generator=generator)
    whole = bank_memory.merge(tensors, order)
    monkeypatch.setattr(bank_memory, "_AT_ONCE", 16 * 5)
    for mine, theirs in zip(bank_memory.merge(tensors, order), whole, strict=True):
        assert mine.dtype == dtype and torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_on_the_gpu_gives_the_same_bits_every_time_and_the_cpus_numbers(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, 2048, 64, generator=generator).to(dtype) for _ in range(2)]
    order = torch.randperm(2048, generator=generator)
    exact = bank_memory.merge([t.double() for t in tensors], order)
    on_gpu = [[t.cuda() for t in tensors], order.cuda()]
    runs = [bank_memory.merge(*on_gpu) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    if dtype == torch.float32:
        close = [(a.cpu().double() - b).abs().amax(-1) < 1e-4 for a, b in zip(runs[0], exact, strict=True)]
        assert all(float(each.float().mean()) > 0.999 for each in close), "but for near ties"


@pytest.mark.gpu
def test_on_the_gpu_graphs_with_the_bank_give_what_the_modules_give(checkpoint) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # two frames in the bank: taken up as they are: nothing hangs on which of two likely keys is nearer
    banked = {"feature_bank__enabled": True, "feature_bank__interval": 1, "feature_bank__frames": 2}
    changes = {2: banked, 40: {"feature_bank__strength": 0.2}, 44: {"steps": 2}}
    found = {}
    for acceleration in ("eager", "compile"):
        rig = Rig(
            checkpoint(),
            {**VALUES, "feature_bank.threshold": 1.0},
            dtype="float32",
            device="cuda",
            acceleration=acceleration,
        )
        found[acceleration] = [each.cpu() for each in walk(rig, changes, 50)]
        rig.engine.unload()
    for k, (a, b) in enumerate(zip(found["eager"], found["compile"], strict=True)):
        assert relative(b, a) < 5e-3, k


def test_a_memory_goes_when_nobody_has_it_and_not_when_garbage_is_searched_for() -> None:
    """It is a hundred megabytes of the card; a rehearsal is made for every capture beside the stream."""
    sizes = {1: bank_memory.LayerSize(16, 8, True), 2: bank_memory.LayerSize(16, 8, False)}
    gc.disable()
    try:
        memory = bank_memory.Memory(sizes, 1, 1, 1, torch.zeros(1), lambda run, name: Replayed(run, name))
        form = memory.form(True)
        rehearsed = form.rehearsal()
        here, there = weakref.ref(memory), weakref.ref(rehearsed.memory)
        del memory, rehearsed
        assert there() is None and here() is not None
        del form
        assert here() is None
    finally:
        gc.enable()
