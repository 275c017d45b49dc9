"""Choosing an acceleration, packing calls for graphs, and (on a GPU) that graphs give eager's numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from sdbridge.engine.accelerate import build_acceleration, choose_acceleration
from sdbridge.engine.accelerate.compile import _flat, _unflat
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
    names, tensors = _flat(call)
    empty = UnetCall(*(torch.zeros(0),) * 3)
    back = _unflat(empty, names, tensors)
    for field in fields(UnetCall):
        ours, theirs = getattr(call, field.name), getattr(back, field.name)
        if isinstance(ours, tuple):
            assert all(a is b for a, b in zip(ours, theirs, strict=True)), field.name
        elif isinstance(ours, torch.Tensor):
            assert ours is theirs, field.name
        else:
            assert dict(ours) == dict(theirs), field.name
    plain = UnetCall(tensor(), tensor(), tensor())
    assert _unflat(plain, *_flat(plain)) == plain


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
                rig.set(steps=3, guidance_mode="full", guidance_scale=2.0)
            if k == 8:
                rig.set(width=128, prompt__1__text="(ice:1.3)")
            latents.append(rig.latent_of(frame(k)).clone().cpu())
        found[acceleration] = latents
        rig.engine.unload()
    for a, b in zip(found["eager"], found["compile"], strict=True):
        assert relative(b, a) < 1e-3


class StandInGraph:
    """A CUDA graph's contract without CUDA: fixed inputs, one output that the next replay overwrites."""

    made = 0

    def __init__(self, run, tensors, pool) -> None:
        StandInGraph.made += 1
        self._run = run
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        with torch.inference_mode():
            self._output = run(*self._inputs).clone()

    def run(self, tensors):
        for mine, given in zip(self._inputs, tensors, strict=True):
            assert mine.shape == given.shape
            mine.copy_(given)
        with torch.inference_mode():
            self._output.copy_(self._run(*self._inputs))
        return self._output


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_fixed_buffers_change_nothing_and_a_known_shape_is_never_prepared_twice(
    checkpoint, monkeypatch, family: str
) -> None:
    """The plumbing around graphs, on the CPU: with stand-ins for the graphs themselves."""
    from sdbridge.engine.accelerate import compile as compiling

    monkeypatch.setattr(compiling, "_Graph", StandInGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
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
            del rig.engine.painter.acceleration.run_denoise, rig.engine.painter.acceleration.run_decode
            rig.engine.painter.acceleration = compiling.Compiled(rig.model)
            rig.engine.painter.acceleration.prepare_pictures(1, 64, 64)
            rig.engine.painter._ready_for = ()
            rig._watch()
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


def test_what_cannot_be_compiled_runs_from_a_plain_graph_and_says_so(checkpoint, monkeypatch, caplog) -> None:
    from sdbridge.engine.accelerate import compile as compiling

    def no_compiler(run, **options):
        def fail(*tensors):
            raise RuntimeError("Cannot find a working triton installation\nand much more")

        return fail

    monkeypatch.setattr(compiling, "_Graph", StandInGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch, "compile", no_compiler)
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")
    wanted = rig.latent_of(frame(0))
    rig.engine.painter.acceleration = compiling.Compiled(rig.model)
    rig.engine.painter.acceleration.prepare_pictures(1, 64, 64)
    rig.engine.painter._ready_for = ()
    rig._watch()
    assert relative(rig.latent_of(frame(0)), wanted) <= 1e-9
    assert "working triton" in caplog.text and "much more" not in caplog.text
