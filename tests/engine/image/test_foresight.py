"""A value that changes shapes waits until its graphs are there; all other values do not."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.image.foresight import LIMIT_S
from tests.engine.image.rig import Rig, frame, relative
from tests.engine.image.test_accelerate import StandInGraph, put_in

VALUES = {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2, "strength": 0.7}


class Graph(StandInGraph):
    """The same contract for calls whose results are lists and tuples."""

    def __init__(self, run, tensors) -> None:
        self._run = run
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        with torch.inference_mode():
            found, self._structure = tree_flatten(run(*self._inputs))
        self.outputs = [each.clone() for each in found]

    def run(self, tensors):
        for mine, given in zip(self._inputs, tensors, strict=True):
            assert mine.shape == given.shape
            mine.copy_(given)
        with torch.inference_mode():
            for mine, new in zip(self.outputs, tree_flatten(self._run(*self._inputs))[0], strict=True):
                mine.copy_(new)
        return tree_unflatten(self.outputs, self._structure)


class HeldCaptures:
    """Captures of the CPU's stand-in graph, those beside the stream only once ``let`` is set."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.fails = ""
        self.of_shapes: Counter[tuple[object, ...]] = Counter()  # how often each was captured beside
        self.in_stream = 0

    def __call__(self, run, tensors):
        if threading.current_thread().name != "accelerate":
            self.in_stream += 1
            return Graph(run, tensors)
        assert self.let.wait(60)
        if self.fails:
            raise RuntimeError(self.fails)
        graph = Graph(run, tensors)
        given = tuple(tuple(tensor.shape) for tensor in tensors)
        # by what it gives too: decoding to pixels and to a picture are captured from equal shapes
        result = graph.outputs[0]
        self.of_shapes[given, tuple(result.shape), result.dtype] += 1
        return graph


def streaming(checkpoint, values=VALUES) -> tuple[Rig, Compiled, HeldCaptures]:
    rig, held = Rig(checkpoint(), values, dtype="float64"), HeldCaptures()
    acceleration = Compiled(rig.model, capture=held)
    acceleration.graphs.beside = BesideTheStream(torch.device("cpu"))
    put_in(rig, acceleration)
    for number in range(2):
        rig.latent_of(frame(number))
    rig.calls.clear()
    return rig, acceleration, held


def end(rig: Rig, held: HeldCaptures) -> None:
    held.let.set()
    rig.engine.painter.acceleration.close()
    rig.engine.unload()


CHANGES = [
    {"steps": 3},
    {"width": 128},
    {"guidance_mode": "full", "guidance_scale": 2.0},
    {"guidance_mode": "initialize", "guidance_scale": 2.0},
    {"frame_batch": 2},
    {"step_indices": "10,20,30"},
    {"schedule_steps": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)) + str(change)[-12:-1])
def test_frames_run_in_the_old_shape_until_the_new_one_is_captured(checkpoint, change) -> None:
    rig, acceleration, held = streaming(checkpoint)
    before = rig.engine.painter.settings
    shape = rig.engine.spec, before.width, before.plan.count
    rig.set(**change)
    captured = held.in_stream
    for number in range(2, 7):
        rig.tick(frame(number))
        settings = rig.engine.painter.settings
        assert (rig.engine.spec, settings.width, settings.plan.count) == shape
    assert rig.engine.shows_up_to == 0 and rig.engine.wants_frame
    assert {call.sample.shape for call in rig.calls} == {(2, 4, 8, 8)}
    held.let.set()
    assert acceleration.settled(60)
    rig.calls.clear()
    for number in range(7, 11):
        rig.tick(frame(number))
    assert rig.engine.shows_up_to is None
    wanted = rig.engine._settings_of({**rig.engine._values, "step_indices (checked)": rig.engine._manual})
    assert rig.engine.painter.settings == wanted and wanted != before
    assert rig.calls and held.in_stream == captured, "nothing was captured in the stream"
    for call in rig.calls:  # and none ran operation by operation
        graph = acceleration.graphs.by_key[acceleration.unet.key_of(call)]
        assert isinstance(graph, StandInGraph)
    assert set(held.of_shapes.values()) == {1}, "nothing is captured twice"
    end(rig, held)


def test_values_that_change_no_shape_do_not_wait(checkpoint) -> None:
    rig, _, held = streaming(checkpoint)
    plain = Rig(checkpoint(), VALUES, dtype="float64")
    for number in range(2):
        plain.latent_of(frame(number))
    together = {"strength": 0.3, "seed__1__value": 9, "prompt__1__text": "ice"}
    plain.set(**together)
    rig.set(**together, steps=4, width=128)
    for number in range(2, 8):
        if number == 4:  # and what is said later does not either
            plain.set(strength=0.9, guidance_mode="self", guidance_scale=1.5)
            rig.set(strength=0.9, guidance_mode="self", guidance_scale=1.5)
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9, number
    assert rig.engine.shows_up_to is not None and rig.engine.painter.settings.plan.count == 2
    end(rig, held)
    plain.engine.unload()


def test_guidance_waits_as_a_whole(checkpoint) -> None:
    """The new scale in the old mode, or the other way round, would be a picture that nobody asked for."""
    values = {**VALUES, "guidance_mode": "self", "guidance_scale": 1.2}
    rig, acceleration, held = streaming(checkpoint, values)
    plain = Rig(checkpoint(), values, dtype="float64")
    for number in range(2):
        plain.latent_of(frame(number))
    change = {"guidance_mode": "full", "guidance_scale": 3.0, "delta": 0.7}
    rig.set(**change)
    for number in range(2, 6):
        if number == 4:
            rig.set(guidance_scale=4.0)
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9, number
    held.let.set()
    assert acceleration.settled(60)
    plain.set(**{**change, "guidance_scale": 4.0})
    for number in range(6, 9):
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9, number
    end(rig, held)
    plain.engine.unload()


def test_a_frame_says_no_revision_whose_values_are_not_in_it(checkpoint) -> None:
    rig, acceleration, held = streaming(checkpoint)
    apply = rig.engine.apply
    apply({"strength": 0.5}, 7)
    made = rig.tick(frame(2))
    assert made.frames[0]["generated"].revision == 7
    apply({"width": 128}, 8)
    apply({"strength": 0.6}, 9)
    for number in range(3, 5):
        picture = rig.tick(frame(number)).frames[0]["generated"]
        assert (picture.revision, picture.width) == (7, 64)
    assert rig.engine.shows_up_to == 7
    held.let.set()
    assert acceleration.settled(60)
    picture = rig.tick(frame(5)).frames[0]["generated"]
    assert (picture.revision, picture.width) == (9, 128)
    end(rig, held)


def test_what_is_taken_back_is_forgotten(checkpoint) -> None:
    rig, acceleration, held = streaming(checkpoint)
    rig.set(width=128)
    rig.tick(frame(2))
    assert rig.engine.shows_up_to is not None
    rig.set(width=64)
    rig.tick(frame(3))
    assert rig.engine.shows_up_to is None
    held.let.set()
    assert acceleration.settled(60)
    rig.tick(frame(4))
    assert rig.engine.painter.settings.width == 64
    end(rig, held)


def test_of_a_dragged_size_only_the_last_is_captured(checkpoint) -> None:
    """A size that nobody wants any more when its turn comes costs the card nothing."""
    rig, acceleration, held = streaming(checkpoint)
    for number, width in enumerate((72, 80, 88, 96, 104, 128)):
        rig.set(width=width)
        rig.tick(frame(number + 2))
    held.let.set()
    assert acceleration.settled(60)
    rig.tick(frame(9))
    assert rig.engine.painter.settings.width == 128
    pixels = [given[0] for given, *_ in held.of_shapes if given[0][-1] == 4]  # of encoding
    assert sorted(set(pixels)) == [(1, 64, 72, 4), (1, 64, 128, 4)], "the first had begun"
    rows = [given[0] for given, *_ in held.of_shapes if given[0][:2] == (2, 4)]  # of the UNet
    assert set(rows) == {(2, 4, 8, 16)}
    end(rig, held)


def test_a_capture_that_fails_is_told_once_and_the_shape_is_taken_up_all_the_same(checkpoint, caplog) -> None:
    caplog.set_level("INFO")
    rig, acceleration, held = streaming(checkpoint)
    plain = Rig(checkpoint(), {**VALUES, "steps": 3}, dtype="float64")
    held.fails = "out of memory\nand pages of more"
    rig.set(steps=3)
    rig.tick(frame(2))
    held.let.set()
    assert acceleration.settled(60)
    rig.engine.reset("hard")
    for number in range(3, 8):
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9
    assert caplog.text.count("unet cannot be captured: out of memory; it runs operation by operation") == 1
    end(rig, held)
    plain.engine.unload()


def test_a_shape_that_never_gets_ready_is_taken_up_in_the_end(checkpoint, caplog) -> None:
    rig, _, held = streaming(checkpoint)
    rig.set(steps=3)
    rig.tick(frame(2))
    rig.clock.sleep(LIMIT_S - 1)
    rig.tick(frame(3))
    assert rig.engine.painter.settings.plan.count == 2
    rig.set(steps=4)  # another wish: its time begins anew
    rig.tick(frame(4))
    rig.clock.sleep(LIMIT_S - 1)
    rig.tick(frame(5))
    assert rig.engine.painter.settings.plan.count == 2
    rig.clock.sleep(2)
    rig.tick(frame(6))
    assert rig.engine.painter.settings.plan.count == 4
    assert caplog.text.count("before its graphs are there") == 1
    end(rig, held)


def test_a_longer_text_waits_for_its_graphs_and_shows_the_old_one_meanwhile(checkpoint) -> None:
    rig, acceleration, held = streaming(checkpoint)
    plain = Rig(checkpoint(), VALUES, dtype="float64")
    for number in range(2):
        plain.latent_of(frame(number))
    long = "word " * 90 + "fire"
    rig.set(prompt__1__text=long)
    for number in range(2, 5):
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9
    assert rig.engine.wants_frame
    captured = held.in_stream
    held.let.set()
    assert acceleration.settled(60)
    plain.set(prompt__1__text=long)
    for number in range(5, 8):
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9
    assert rig.calls[-1].encoder_hidden_states.shape[1] > 77 and held.in_stream == captured
    end(rig, held)
    plain.engine.unload()


def test_the_way_back_and_forth_is_known(checkpoint) -> None:
    rig, acceleration, held = streaming(checkpoint)
    held.let.set()
    counts = []
    for number, steps in enumerate((3, 2, 3, 2)):
        rig.set(steps=steps)
        rig.tick(frame(number))
        assert acceleration.settled(60)
        rig.tick(frame(number))
        assert rig.engine.painter.settings.plan.count == steps
        counts.append(sum(held.of_shapes.values()))
    assert len(set(counts)) == 1
    end(rig, held)


def test_the_bank_is_switched_on_with_graphs_that_were_captured_before(checkpoint) -> None:
    """Seeding, running and merging: nothing of it runs or is captured in the stream for the first time."""
    values = {**VALUES, "feature_bank.threshold": 0.3, "feature_bank.interval": 1}
    plain = Rig(checkpoint(), values, dtype="float64")
    rig, acceleration, held = streaming(checkpoint, values)
    rig.engine.painter._bank._wrap = acceleration.wrap
    for number in range(2):
        plain.latent_of(frame(number))
    rig.set(feature_bank__enabled=True)
    for number in range(2, 5):
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9, number
        assert rig.calls[-1].bank is None
    captured = held.in_stream
    held.let.set()
    assert acceleration.settled(60)
    plain.set(feature_bank__enabled=True)
    rig.calls.clear()
    for number in range(5, 15):
        if number == 10:  # seeded anew, and at once
            plain.engine.reset("recache")
            rig.engine.reset("recache")
        assert relative(rig.latent_of(frame(number)), plain.latent_of(frame(number))) <= 1e-9, number
    assert [call.bank.seeding for call in rig.calls] == [number in (0, 5) for number in range(10)]
    assert held.in_stream == captured
    assert sum(held.of_shapes.values()) == 6, "seeding, running, and the merging of four shares"
    for call in rig.calls:
        assert isinstance(acceleration.graphs.by_key[acceleration.unet.key_of(call)], StandInGraph)
    merges = [merge for merge, _ in rig.engine.painter._bank.memory.merges()]
    assert len(merges) == 4 and all(merge._graph is not None for merge in merges)
    rig.set(steps=3)  # another memory, made beside the one in use
    plain.set(steps=3)
    rig.tick(frame(15))
    assert acceleration.settled(60)
    rig.calls.clear()
    rig.tick(frame(16))
    assert [call.bank.seeding for call in rig.calls] == [True] and held.in_stream == captured
    end(rig, held)
    plain.engine.unload()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd21"])
def test_the_bank_knows_its_layers_sizes_before_any_frame(checkpoint, family: str) -> None:
    """At odd sizes too: whatever does not fit its buffer raises."""
    rig = Rig(checkpoint(family), {"feature_bank.enabled": True}, dtype="float32")
    for number, (width, height) in enumerate(((72, 104), (200, 88))):
        rig.set(width=width, height=height)
        for again in range(2):
            assert rig.latent_of(frame(2 * number + again)).isfinite().all()
    rig.engine.unload()


def test_an_inpainting_unet_waits_with_its_further_channels(checkpoint) -> None:
    """They come from an extension, and are of the new shape before any frame is."""
    rig, held = Rig(checkpoint("sd15-inpaint"), VALUES, dtype="float64"), HeldCaptures()
    acceleration = Compiled(rig.model, capture=held)
    acceleration.graphs.beside = BesideTheStream(torch.device("cpu"))
    put_in(rig, acceleration)
    for number in range(2):
        rig.latent_of(frame(number))
    captured = held.in_stream
    rig.set(width=128, steps=3)
    for number in range(2, 5):
        rig.latent_of(frame(number))
    assert rig.calls[-1].sample.shape == (2, 9, 8, 8)
    held.let.set()
    assert acceleration.settled(60)
    rig.latent_of(frame(5))
    assert rig.calls[-1].sample.shape == (3, 9, 8, 16)
    assert isinstance(acceleration.graphs.by_key[acceleration.unet.key_of(rig.calls[-1])], StandInGraph)
    assert {key[0] for key in acceleration.graphs.by_key if key[0] == "unet"} and held.in_stream == captured
    end(rig, held)
