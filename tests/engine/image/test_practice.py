"""What may be switched on at any frame runs beforehand: all of it, and nothing of it stays."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.replay import Replayed
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image import practice
from sdbridge.engine.image.control_networks import ControlNetwork
from sdbridge.engine.image.control_practice import ControlPractice
from sdbridge.engine.image.practice import practise
from sdbridge.engine.image.seams import UnetCall
from sdbridge.parameters.table import TABLE
from tests.engine.image.rig import Rig, frame, relative


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Which operations ran, and on which kinds of numbers: for each a GPU loads code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            kinds = {each.dtype for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
            self.names.add(f"{func} {sorted(map(str, kinds))}")
        return func(*args, **(kwargs or {}))


#: Each is in force for some frames of a stream that was warmed up without it.
CHANGES = {
    "blend": {"prompt.2.text": "ice", "prompt.2.weight": 0.5, "prompt_blend": "slerp"},
    "mean": {"prompt.2.text": "ice", "prompt.2.weight": 0.5, "prompt_blend": "linear"},
    "feedback": {"latent_feedback": 0.5},
    "self": {"guidance_mode": "self", "guidance_scale": 2.0},
    "initialize": {"guidance_mode": "initialize", "guidance_scale": 2.0},
    "full": {"guidance_mode": "full", "guidance_scale": 2.0},
    "blur": {"post.blur": 1.0, "pre.blur": 1.0},
    "sharpen": {"post.sharpen": 0.5, "pre.sharpen": 0.5},
    "colours": {"post.color_match": 0.5},
    "upscale": {"post.upscale": "2x"},
    "picture feedback": {"pre.feedback": 0.5},
    "mask": {"mask.source": "alpha", "mask.soft": 12},
    "bank": {"feature_bank.enabled": True, "feature_bank.interval": 1, "feature_bank.threshold": 0.3},
    "larger bank": {"feature_bank.enabled": True, "feature_bank.interval": 1, "feature_bank.frames": 2},
    "steps": {"steps": 3},
    "tcd": {"scheduler": "tcd", "steps": 2},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_live_change_runs_has_run_before(checkpoint, change: str) -> None:
    assert set(CHANGES[change]) <= {row.name for row in TABLE}
    rig = Rig(checkpoint(), {"prompt.1.text": "fox", "steps": 2, "scheduler": "lcm"}, dtype="float32")
    with Seen() as usual:
        for number in range(3):
            rig.tick(frame(number))
        with torch.inference_mode():
            practise(rig.model, rig.engine._extensions, 64, 64)
    rig.engine.apply(CHANGES[change], 1)
    rig.tick(frame(3))  # and what a change of shape makes once
    with Seen() as seen:
        for number in range(4, 7):
            rig.tick(frame(number))
    assert seen.names <= usual.names
    rig.engine.unload()


class Asked(TorchFunctionMode):
    """What libraries plan for by shape: convolutions, products, attention."""

    NAMES = ("conv2d", "linear", "addmm", "mm", "bmm", "scaled_dot_product_attention")

    def __init__(self) -> None:
        super().__init__()
        self.forms: set[tuple[object, ...]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            shapes = [tuple(each.shape) for each in args if isinstance(each, torch.Tensor)]
            if name == "linear" and len(shapes) == 3 and len(shapes[0]) == 2:
                name, shapes = "addmm", [shapes[2], shapes[0], shapes[1][::-1]]
            self.forms.add((name, *shapes))
        return func(*args, **(kwargs or {}))


def test_a_controlnet_asks_the_libraries_for_nothing_new(checkpoint) -> None:
    rig = Rig(checkpoint(), {}, dtype="float32")
    control = ControlNetModel.from_unet(rig.model.unet)
    network, packed = ControlNetwork(control), PackedControlNet(control)
    width = int(rig.model.unet.config.cross_attention_dim)
    call = UnetCall(torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, width))
    with torch.inference_mode():
        with Asked() as before:
            practise(rig.model, rig.engine._extensions, 64, 64)
            PackedUnet(rig.model.unet, PlainOps()).run(call)
        with Asked() as asked:
            (hint,) = network.hint(torch.rand(1, 3, 64, 64))
            packed.run(call, hint[0].unsqueeze(0))
    new = asked.forms - before.forms
    assert len(asked.forms) > 20 and not new, sorted(map(str, new))
    rig.engine.unload()


def test_a_controlnet_is_tried_where_graphs_are_made_too(checkpoint, monkeypatch) -> None:
    """Libraries plan anew in each thread, and a ControlNet's graph is captured beside the frames."""
    made, beside = [], BesideTheStream(torch.device("cpu"))

    def accelerate(run, name):
        made.append(type(run))
        return Replayed(run, name, lambda run, tensors: threads.append(threading.current_thread()), beside)

    threads: list[threading.Thread] = []
    rig = Rig(checkpoint(), {}, dtype="float32")
    (extension,) = (each for each in rig.engine._extensions if each.name == "controlnet")
    monkeypatch.setattr(extension, "_context", replace(extension._context, accelerate=accelerate))
    practise(rig.model, [extension], 64, 64)
    assert beside.wait(30)
    assert made.count(ControlPractice) == 1 and beside._thread in threads
    rig.engine.unload()
    beside.close()


def test_practice_changes_nothing(checkpoint) -> None:
    rigs = [Rig(checkpoint(), {"prompt.1.text": "fox", "steps": 2}, dtype="float64") for _ in range(2)]
    for number in range(6):
        if number == 3:
            practise(rigs[0].model, rigs[0].engine._extensions, 64, 64)
        mine, theirs = (rig.latent_of(frame(number)) for rig in rigs)
        assert relative(mine, theirs) == 0.0
    for rig in rigs:
        rig.engine.unload()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nand much more", "CUDNN_STATUS_NOT_SUPPORTED"),
        ("", "RuntimeError"),
    ],
)
def test_what_cannot_be_tried_is_a_line_and_no_fault(
    checkpoint, monkeypatch, caplog, text: str, told: str
) -> None:
    def fail(*arguments):
        raise RuntimeError(text)

    caplog.set_level("INFO")
    rig = Rig(checkpoint(), {}, dtype="float32")
    monkeypatch.setattr(practice, "_steps", fail)
    practise(rig.model, rig.engine._extensions, 64, 64)
    assert told in caplog.text and "much more" not in caplog.text
    rig.engine.unload()
