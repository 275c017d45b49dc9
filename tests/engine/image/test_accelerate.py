"""Choosing an acceleration, packing calls for graphs, and (on a GPU) that graphs give eager's numbers."""

from __future__ import annotations

import threading
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from sdbridge.engine.accelerate import build_acceleration, choose_acceleration, kernels
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.accelerate.flat_calls import flat, unflat
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.seams import UnetCall
from sdbridge.errors import SdbridgeError
from tests.engine.image.rig import Rig, frame, relative


def test_auto_takes_compile_on_cuda_and_eager_elsewhere_with_a_reason() -> None:
    assert choose_acceleration("auto", torch.device("cuda"))[0] == "compile"
    for device in ("cpu", "mps"):
        for choice in ("auto", "compile", "eager"):
            name, why = choose_acceleration(choice, torch.device(device))
            assert name == "eager" and why
    with pytest.raises(SdbridgeError, match="SDB-ENGINE-ACCELERATION"):
        build_acceleration("warp", None)  # type: ignore[arg-type]


def test_a_call_is_packed_and_unpacked_whole() -> None:
    def tensor() -> torch.Tensor:
        return torch.randn(2)

    call = UnetCall(
        tensor(),
        tensor(),
        tensor(),
        {"time_ids": tensor(), "text_embeds": tensor()},
        tuple(tensor() for _ in range(12)),
        tensor(),
        (tensor(), tensor()),
        timestep_cond=tensor(),
    )
    names, tensors = flat(call)
    empty = UnetCall(*(torch.zeros(0),) * 3)
    back = unflat(empty, names, tensors)
    for field in fields(UnetCall):
        ours, theirs = getattr(call, field.name), getattr(back, field.name)
        if isinstance(ours, tuple):
            assert all(a is b for a, b in zip(ours, theirs, strict=True)), field.name
        elif isinstance(ours, torch.Tensor):
            assert ours is theirs, field.name
        elif field.name in ("bank", "text_of"):
            assert ours is theirs is None
        else:
            assert dict(ours) == dict(theirs), field.name
    plain = UnetCall(tensor(), tensor(), tensor())
    assert unflat(plain, *flat(plain)) == plain


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_graphs_give_the_numbers_of_eager_through_live_changes(checkpoint, family: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = {}
    for acceleration in ("eager", "compile"):
        rig = Rig(
            checkpoint(family),
            {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2},
            dtype="float32",
            device="cuda",
            acceleration=acceleration,
        )
        latents = []
        for k in range(12):
            if k == 4:
                rig.set_and_await(steps=3, guidance_mode="full", guidance_scale=2.0)
            if k == 8:
                rig.set_and_await(width=128, prompt__1__text="(ice:1.3)")
            latents.append(rig.latent_of(frame(k)).clone().cpu())
        found[acceleration] = latents
        rig.engine.unload()
    for a, b in zip(found["eager"], found["compile"], strict=True):
        assert relative(b, a) < 1e-3


class StandInGraph:
    """A CUDA graph's contract without CUDA: fixed inputs, one output that the next replay overwrites."""

    made = 0

    def __init__(self, run, tensors) -> None:
        StandInGraph.made += 1
        self._run = run
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        with torch.inference_mode():
            self._output = run(*self._inputs).clone()

    def takes(self, *tensors) -> bool:
        return all(a.shape == b.shape for a, b in zip(self._inputs, tensors, strict=True))

    def run(self, tensors):
        for mine, given in zip(self._inputs, tensors, strict=True):
            assert mine.shape == given.shape
            mine.copy_(given)
        with torch.inference_mode():
            self._output.copy_(self._run(*self._inputs))
        return self._output


def put_in(rig: Rig, acceleration: Compiled) -> None:
    """Let a loaded rig run on an acceleration that the device would not have chosen."""
    painter = rig.engine.painter
    del painter.acceleration.run_denoise
    painter.acceleration = acceleration
    acceleration.prepare_pictures(1, 64, 64)
    painter._ready_for = ()
    rig._watch()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_fixed_buffers_change_nothing_and_a_known_shape_is_never_prepared_twice(
    checkpoint, family: str
) -> None:
    """The plumbing around graphs, on the CPU: with stand-ins for the graphs themselves."""
    values = {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2}
    changes = {
        3: {"steps": 3, "guidance_mode": "full", "guidance_scale": 2.0},
        5: {"guidance_scale": 1.0},
        6: {"guidance_scale": 2.0, "strength": 0.3},
        8: {"width": 128, "prompt__1__text": "(ice:1.3)"},
        10: {"feature_bank__enabled": True},
        12: {"feature_bank__enabled": False, "steps": 1},
    }
    found = {}
    for name in ("eager", "compile"):
        rig = Rig(checkpoint(family), values, dtype="float64")
        if name == "compile":
            put_in(rig, Compiled(rig.model, capture=StandInGraph))
        latents = []
        for k in range(14):
            rig.set(**changes.get(k, {}))
            before = StandInGraph.made
            latents.append(rig.latent_of(frame(k)).clone())
            if k in (4, 6, 7, 9):
                assert StandInGraph.made == before, f"frame {k} had a known shape"
        found[name] = latents
        rig.engine.unload()
    for k, (a, b) in enumerate(zip(found["eager"], found["compile"], strict=True)):
        assert relative(b, a) <= 1e-9, k


def test_what_cannot_be_captured_runs_operation_by_operation_and_says_so(checkpoint, caplog) -> None:
    def fail(run, tensors):
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    caplog.set_level("INFO")
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")
    wanted = rig.latent_of(frame(0))
    put_in(rig, Compiled(rig.model, capture=fail))
    assert relative(rig.latent_of(frame(0)), wanted) <= 1e-9
    assert "operation not permitted" in caplog.text and "much more" not in caplog.text


@pytest.mark.parametrize(
    "fault",
    [
        ImportError("DLL load failed while importing libtriton\nand more"),
        OSError("libtriton.so: cannot open shared object file"),
        AttributeError("module 'triton.language' has no attribute 'make_tensor_descriptor'"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_triton_that_does_not_load_is_one_line_and_graphs_without_our_kernels(
    checkpoint, monkeypatch, caplog, fault: Exception
) -> None:
    def broken(name: str):
        raise fault

    found = SimpleNamespace(find_spec=lambda name: object())
    monkeypatch.setattr(kernels, "importlib", SimpleNamespace(util=found, import_module=broken))
    monkeypatch.setattr(kernels, "interpreted", lambda: True)
    monkeypatch.setattr(kernels, "_FAULT", [])
    rig = Rig(checkpoint(), {}, dtype="float16")
    put_in(rig, Compiled(rig.model, capture=StandInGraph))
    put_in(rig, Compiled(rig.model, capture=StandInGraph))  # and another engine says it not again
    for k in range(2):
        assert rig.latent_of(frame(k)).isfinite().all()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "Triton cannot be used" in said and "and more" not in said and said.endswith("run instead")
    assert kernels.available() == (False, kernels._FAULT[0])
    rig.engine.unload()


def test_what_gets_better_beside_the_stream_takes_over_at_a_frame_edge(checkpoint) -> None:
    """The second form is captured in another thread; until it is done the first one answers."""
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")
    wanted = [rig.latent_of(frame(k)).clone() for k in range(3)]
    rig.engine.reset("hard")
    begin, threads = threading.Event(), []

    def capture(run, tensors):
        threads.append(threading.current_thread().name)
        if threads[-1] == "accelerate":
            begin.wait(30)
        return StandInGraph(run, tensors)

    acceleration = Compiled(rig.model, capture=capture)
    acceleration.unet.make_fast, acceleration.graphs.beside = PlainOps, BesideTheStream(torch.device("cpu"))
    put_in(rig, acceleration)
    found = [rig.latent_of(frame(0)).clone()]
    first = dict(acceleration.graphs.by_key)
    begin.set()
    assert acceleration.settled(30)
    found += [rig.latent_of(frame(k)).clone() for k in (1, 2)]
    replaced = [key[0] for key, graph in acceleration.graphs.by_key.items() if graph is not first[key]]
    assert replaced == ["unet"] and "accelerate" in threads
    for mine, theirs in zip(found, wanted, strict=True):
        assert relative(mine, theirs) <= 1e-9
    acceleration.close()
    assert not acceleration.graphs.beside._thread.is_alive()
    rig.engine.unload()


def test_when_the_better_form_fails_the_first_one_goes_on(checkpoint, caplog) -> None:
    caplog.set_level("INFO")
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")

    def capture(run, tensors):
        if threading.current_thread().name == "accelerate":
            raise RuntimeError("out of memory while compiling")
        return StandInGraph(run, tensors)

    acceleration = Compiled(rig.model, capture=capture)
    acceleration.unet.make_fast, acceleration.graphs.beside = PlainOps, BesideTheStream(torch.device("cpu"))
    put_in(rig, acceleration)
    before = rig.latent_of(frame(0)).clone()
    assert acceleration.settled(30)
    rig.engine.reset("hard")
    assert relative(rig.latent_of(frame(0)), before) <= 1e-9
    assert "our own kernels rest: out of memory" in caplog.text
    rig.engine.unload()


def test_a_shape_taken_up_unforeseen_is_captured_beside_the_stream_and_no_frame_waits(checkpoint) -> None:
    """More steps in a running stream: the frames until the capture is done run operation by operation."""
    values = {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2}
    changes = {2: {"steps": 3}, 4: {"width": 128}}
    plain = Rig(checkpoint(), values, dtype="float64")
    wanted = []
    for k in range(7):
        plain.set(**changes.get(k, {}))
        wanted.append(plain.latent_of(frame(k)).clone())
    rig = Rig(checkpoint(), values, dtype="float64")
    captured_in: list[str] = []
    hold = threading.Event()

    def capture(run, tensors):
        captured_in.append(threading.current_thread().name)
        if captured_in[-1] == "accelerate":
            hold.wait(30)
        return StandInGraph(run, tensors)

    acceleration = Compiled(rig.model, capture=capture)
    acceleration.graphs.beside = BesideTheStream(torch.device("cpu"))
    acceleration.foresee_denoise = lambda call: True  # as where waiting has taken too long
    acceleration.foresee_pictures = lambda *size: True
    put_in(rig, acceleration)
    for k in range(7):
        rig.set(**changes.get(k, {}))
        if k == 2:
            before = len(captured_in)
        assert relative(rig.latent_of(frame(k)), wanted[k]) <= 1e-9, k
        if k == 5:
            assert "accelerate" not in captured_in[:before]
            assert set(captured_in[before:]) <= {"accelerate"}  # the stream itself captured nothing more
            hold.set()
            assert acceleration.settled(30)
    present = [graph for key, graph in acceleration.graphs.by_key.items() if acceleration.is_wanted(key)]
    assert len(present) >= 6 and not any(type(graph).__name__ == "Uncaptured" for graph in present)
    acceleration.close()
    rig.engine.unload()
    plain.engine.unload()
