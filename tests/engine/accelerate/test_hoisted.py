"""Where keys and values of the text and time projections lie, and when they are made again."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.cuda_graph import CudaGraph
from sdbridge.engine.accelerate.hoisted import PARTS, Hoisted, Hoisting
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.packed_weights import Packed
from sdbridge.engine.accelerate.replay import Reading
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.seams import UnetCall
from tests.engine.accelerate.test_cuda_graph import on_cpu  # noqa: F401
from tests.engine.accelerate.test_packed_unet import KINDS, build, error, make_call, plainly


class Made:
    """A network's, with what was made noted down."""

    def __init__(self, kind: str = "sd15") -> None:
        self.unet = build(kind)
        self.packed = PackedUnet(self.unet, PlainOps())
        self.hoisting = Hoisting(self.packed.packed)
        self.parts: list[str] = []
        self.held: Hoisted | None = None

    def by(self, call: UnetCall) -> list[str]:
        """What this call has made."""
        self.parts.clear()
        self.held = self.hoisting.refreshed(call, self._make)
        return list(self.parts)

    def _make(self, part, hoisted: Hoisted, tensors: tuple[Tensor, ...]) -> None:
        self.parts.append(part)
        self.hoisting.bound(part, hoisted)(*tensors)

    def answer(self, call: UnetCall) -> Tensor:
        assert self.held is not None
        return self.packed.run(replace(call, encoder_hidden_states=call.sample), known=self.held.known)


def known_call(kind: str = "sd15", unet=None) -> UnetCall:
    return replace(make_call(kind, unet), timesteps_host=(359, 741), text_of=object())


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_pass_on_what_lies_ready_is_the_whole_pass(kind: str) -> None:
    made = Made(kind)
    call = known_call(kind, made.unet)
    assert made.by(call) == ["times", "text"]
    assert error(made.answer(call), plainly(made.unet, call)) < 1e-12
    assert made.by(call) == [] and made.by(replace(call, sample=call.sample + 1)) == []


@torch.inference_mode()
def test_what_may_have_changed_is_made_again(kind: str = "guided") -> None:
    made = Made(kind)
    call = known_call(kind, made.unet)
    made.by(call)
    text, guidance = call.encoder_hidden_states, call.timestep_cond
    assert guidance is not None
    assert made.by(replace(call, text_of=object())) == ["text"], "perhaps another text in the same buffer"
    call = replace(call, text_of=object(), encoder_hidden_states=text.clone())
    assert made.by(call) == ["text"]
    assert made.by(replace(call, encoder_hidden_states=text.clone())) == ["text"], "somebody put in another"
    made.by(call)
    assert made.by(replace(call, timesteps_host=(359, 740))) == ["times"]
    assert made.by(call) == ["times"]
    assert made.by(replace(call, timestep_cond=guidance.clone())) == ["times"]
    made.by(call)
    made.hoisting.weights_changed()
    assert made.by(call) == ["times", "text"] and made.by(call) == []
    nobody_knows = replace(call, text_of=None, timesteps_host=())
    for _ in range(2):
        assert made.by(nobody_knows) == ["times", "text"]
    assert made.by(call) == ["times", "text"], "a call of nobody's came between"


@torch.inference_mode()
def test_a_new_object_in_the_place_of_one_that_is_gone_is_another(kind: str = "sd15") -> None:
    """The id of what was let go comes again: so what something was made from is held."""
    made, call = Made(kind), known_call(kind)
    for _ in range(50):
        assert "text" in made.by(replace(call, text_of=object()))
        gc.collect()


@torch.inference_mode()
def test_calls_of_one_shape_share_them_as_long_as_anybody_reads_them() -> None:
    made, call = Made(), known_call()
    hoisting = made.hoisting
    reading = Reading(lambda *given: given[-1], hoisting.of(call))
    larger = make_call("sd15", None, size=24)
    assert hoisting.of(call) is hoisting.of(larger) is reading()
    longer = replace(call, encoder_hidden_states=torch.zeros(2, 14, 24).double())
    assert hoisting.of(longer) is not hoisting.of(call)
    gone = weakref.ref(reading.reads)
    del reading
    assert gone() is None, "with the last graph that reads it the memory comes back"


def test_beside_the_stream_only_a_capture_may_write_what_frames_read() -> None:
    made, call = Made(), known_call()
    with torch.inference_mode():
        made.by(call)
        hoisted = made.held
        assert hoisted is not None
        before = [tensor.clone() for tensor in hoisted.tensors]
    beside = BesideTheStream(torch.device("cpu"))
    found: list[Tensor] = []

    def rehearse() -> None:
        with torch.inference_mode():
            for part in PARTS:
                tensors = tuple(tensor + 1 for tensor in made.hoisting.inputs(part, call))
                found.append(made.hoisting.bound(part, hoisted)(*tensors))

    beside.submit(rehearse, lambda done: None, lambda fault: None)
    assert beside.wait(60) and len(found) == 2
    beside.close()
    for lies, was, tried in zip(hoisted.tensors, before, found, strict=True):
        assert torch.equal(lies, was) and error(tried, was) > 1e-3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_graph_reads_them_where_they_lie_and_keeps_them(device: str, request) -> None:
    if device == "cpu":
        request.getfixturevalue("on_cpu")  # graphs that run again what was noted down
    elif not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    dtype = torch.float64 if device == "cpu" else torch.float16
    unet = build("sd21").to(device, dtype)
    packed = PackedUnet(unet, PlainOps())
    hoisting = Hoisting(packed.packed)
    call = known_call("sd21")
    sample, text = (each.to(device, dtype) for each in (call.sample, call.encoder_hidden_states))
    call = replace(call, sample=sample, encoder_hidden_states=text, timesteps=call.timesteps.to(device))

    def run(sample: Tensor, hoisted: Hoisted) -> Tensor:
        return packed.run(replace(call, sample=sample), known=hoisted.known)

    with torch.inference_mode():
        hoisted = hoisting.of(call)
        graph = CudaGraph(Reading(run, hoisted), (sample,), piece=0)
        writing = {}
        for part in PARTS:
            given = hoisting.inputs(part, call)
            writing[part] = CudaGraph(hoisting.bound(part, hoisted), given, piece=0)
        kept = weakref.ref(hoisted)
        del hoisted
        gc.collect()
        for number in range(3):
            text = torch.randn_like(text)
            other = replace(call, encoder_hidden_states=text, text_of=object(), timesteps_host=(number, 1))
            hoisting.refreshed(other, lambda part, lies, tensors: writing[part].run(tensors))
            assert error(graph.run((sample,)).double(), plainly(unet, other).double()) < 0.02
        assert hoisting.made == {"times": 3, "text": 3}
        writing.clear()
        gc.collect()
        assert kept() is not None, "the graph reads it"


def test_a_packed_network_has_a_room_for_every_shape(kind: str = "sd15") -> None:
    packed = Packed(build(kind))
    known = packed.room(make_call(kind, None))
    assert known.times.shape == (2, packed.time_weight.shape[0])
    assert known.text.shape == (14 * packed.text_weight.shape[0],)
    assert not known.text.is_inference(), "it is written in every mode"
