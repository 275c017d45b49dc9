"""Would an Apple GPU run all that a stream calls? No Mac is here, so torch's own list of operations says.

Every operation of a stream that uses everything is noted, in the frames' thread and beside it, and looked up
in the table from which torch is built. Apple GPUs have no 64-bit floats.
"""

from __future__ import annotations

import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from sdbridge.engine.accelerate import choose_acceleration
from sdbridge.engine.image import feedback
from sdbridge.engine.image.device import Placement
from sdbridge.engine.image.loading import LoadingThread
from sdbridge.engine.image.prompt import PromptCache
from sdbridge.frame import Chunk, Frame
from tests.engine.image.test_conditioning_live import SIZE, Stream, everything, files  # noqa: F401

TABLE = (
    Path(torch.__file__).parent.parent / "torchgen" / "packaged" / "ATen" / "native" / "native_functions.yaml"
)
#: What an operation has where it runs by others that are looked up too, or on whatever device.
COMPOSITE = {
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}
#: On the CPU attention is one operation; on an Apple GPU torch takes another for it.
STAND_INS = {"_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps"}
#: Where 64-bit floats are made on the host and leave it in another precision.
HOST_ONLY = {"levels.py:levels_of"}

CHANGES: list[dict[str, Any]] = [
    {},
    {"guidance_mode": "full", "guidance_scale": 2.0, "negative_prompt": "grey"},
    {"guidance_mode": "initialize"},
    {"guidance_mode": "self"},
    {"feature_bank.enabled": True, "feature_bank.interval": 1},
    {"feature_bank.frames": 2},
    {"feature_bank.enabled": False},
    {"prompt.2.text": "ice", "prompt.2.weight": 0.5},
    {"prompt_blend": "slerp"},
    {"seed.2.weight": 0.5, "seed_blend": "slerp"},
    {"seed_mode": "walk"},
    {"latent_feedback": 0.3},
    {"scheduler": "tcd"},
    {"scheduler": "turbo"},
    {"mode": "txt2img"},
    {"mode": "img2img", "width": 128},
    {"width": 64},
]
PREPROCESSORS = ("softedge", "lineart", "scribble", "color", "tile", "grey", "invert")


class Noted(TorchDispatchMode):
    """Names of the operations, and who of ours called those that gave 64-bit floats."""

    names: ClassVar[set[str]] = set()
    wide: ClassVar[defaultdict[str, set[str]]] = defaultdict(set)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode torch shows an operation whole that is made of others
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        made = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        self.names.add(name)
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.complex128):
                self.wide[name].add(_who())
        return made


def _who() -> str:
    frames = [each for each in traceback.extract_stack() if "/sdbridge/" in each.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"


def kernels_of(table: dict[str, Any], name: str) -> set[str]:
    """For which devices an operation has a kernel."""
    entry = table[name]
    if "structured_delegate" in entry:
        return kernels_of(table, entry["structured_delegate"])
    dispatch = entry.get("dispatch")
    if not dispatch:
        return {"CompositeImplicitAutograd"}
    return {key.strip() for keys in dispatch for key in keys.split(",")}


@pytest.fixture
def noted(monkeypatch):
    """Every thread of an engine that computes notes what it calls."""
    run, make = LoadingThread._run, PromptCache._make

    def beside(self, job):
        with Noted():
            return run(self, job)

    def embedded(self, *given):
        with Noted():
            return make(self, *given)

    monkeypatch.setattr(LoadingThread, "_run", beside)
    monkeypatch.setattr(PromptCache, "_make", embedded)
    Noted.names, Noted.wide = set(), defaultdict(set)
    return Noted


@pytest.mark.skipif(not TABLE.is_file(), reason="this torch brings no table of its operations")
def test_every_operation_of_a_stream_runs_on_an_apple_gpu(noted, files, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(feedback, "_NO_STD_IN_PLACE", {"cpu"})  # the way it goes there
    stream = Stream()
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    with noted():
        more = [{"controlnet.1.preprocessor": kind} for kind in PREPROCESSORS]
        for changes in (*CHANGES, everything(files), *more):
            stream.apply(changes)
            for number in range(3):  # the last one of another size: it is fitted
                one = Frame(pixels[: SIZE - 8 * (number == 2)].copy(), stream.sent, stream.sent)
                stream.sent += 1
                stream.engine.tick(Chunk.of(one, control=one, mask=one, style=one))
    stream.engine.unload()
    table = {
        each["func"].partition("(")[0]: each for each in yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    }
    names = {STAND_INS.get(name, name) for name in noted.names}
    assert len(names) > 100 and {"_upsample_bilinear2d_aa", "native_group_norm", "addmm"} <= names
    without = {name: kernels_of(table, name) for name in names}
    assert not {name: found for name, found in without.items() if not found & ({"MPS"} | COMPOSITE)}
    called = set().union(*noted.wide.values()) if noted.wide else set()
    assert called <= HOST_ONLY, noted.wide


def test_an_apple_gpu_runs_eager_in_half_with_channels_where_they_are() -> None:
    placement = Placement(torch.device("mps"), torch.float16, "")
    assert not placement.channels_last
    for choice in ("auto", "compile", "tensorrt", "eager"):
        assert choose_acceleration(choice, torch.device("mps"))[0] == "eager"
