"""What an engine's process imports at its start, and what it leaves alone."""

import json
from itertools import product

import pytest

from sdbridge.engine.image import imports
from sdbridge.engine.image.postponed import NEVER_USED
from sdbridge.engine.interface import EngineConfig
from tests.engine.image.fresh_python import in_fresh_python

ASK = """
import gc, json, sys
from sdbridge.engine.interface import EngineConfig
from sdbridge.engine.registry import prepare_process
prepare_process(EngineConfig(kind="image", device="cpu"))
begun = sorted(sys.modules)
import importlib.util
print(json.dumps({
    "modules": begun,
    "collects": gc.isenabled(),
    "frozen": gc.get_freeze_count(),
    "importable": [name for name in sorted(%r) if importlib.util.find_spec(name) is not None],
}))
"""


def test_an_engine_process_imports_all_it_needs_and_nothing_it_never_uses():
    said = in_fresh_python(ASK % ({*NEVER_USED, *imports.SELDOM_USED},))
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    loaded = set(found["modules"])
    assert {"sdbridge.engine.image.painter", "diffusers.models.unets.unet_2d_condition"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & {*NEVER_USED, *imports.SELDOM_USED, "sympy"}
    assert "torch._dynamo" not in loaded
    assert found["collects"] and found["frozen"] > 100_000
    assert {"peft", "transformers"} <= set(found["importable"]), (
        "hidden for good, where it was to be hidden for a moment"
    )


ON_A_GPU = """
import json, sys
from sdbridge.engine.image import imports
from sdbridge.engine.image.load import _import_what_loads_beside
from sdbridge.engine.interface import EngineConfig
woken = []
imports._device_of, imports.wake_gpu = lambda config: "cuda:0", woken.append
imports._has_triton = lambda: False
imports.import_sparingly(EngineConfig(kind="image"))
assert woken == ["cuda:0"]
_import_what_loads_beside()
import sdbridge.engine.image.extensions, sdbridge.engine.image.clip_vision
print(json.dumps(sorted(sys.modules)))
"""
DEAR = (
    "transformers",
    "torchvision",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
)


def test_a_start_with_a_gpu_imports_neither_transformers_nor_the_compiler():
    said = in_fresh_python(ON_A_GPU)
    assert said.returncode == 0, said.stderr
    loaded = json.loads(said.stdout.splitlines()[-1])
    assert [name for name in loaded if any(f"{name}.".startswith(f"{dear}.") for dear in DEAR)] == []
    assert {"diffusers.models.controlnets.controlnet", "sdbridge.engine.image.clip_vision"} <= set(loaded)
    networks = [name for name in loaded if name.startswith("diffusers.models.") and "flux" in name]
    assert networks == [], "diffusers' packages run their whole __init__ again"


def test_our_kernels_are_imported_for_a_gpu_that_runs_them(monkeypatch):
    imported = []
    monkeypatch.setattr(imports, "_import", lambda module, *names: imported.append(module) is None)
    monkeypatch.setattr(imports, "wake_gpu", lambda device: None)
    monkeypatch.setattr(imports, "wake_driver", lambda config: None)
    kernels = "sdbridge.engine.accelerate.kernels.unet"
    for device, acceleration, triton in product(
        ("cuda:0", "cpu"), ("auto", "compile", "eager"), (True, False)
    ):
        imported.clear()
        monkeypatch.setattr(imports, "_device_of", lambda config, device=device: device)
        monkeypatch.setattr(imports, "_has_triton", lambda triton=triton: triton)
        imports.import_sparingly(EngineConfig(acceleration=acceleration))
        assert (kernels in imported) == (device != "cpu" and acceleration != "eager" and triton)


AFTER_A_START = """
import sys
from sdbridge.engine.image import imports
from sdbridge.engine.interface import EngineConfig
imports.import_sparingly(EngineConfig(kind="image", device="cpu"))
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, masking_utils
with masking_utils.TransformGetItemToIndex():
    assert type(sys.modules["torch._dynamo"]).__name__ == "module"
print("good")
"""


@pytest.mark.slow
def test_what_a_start_leaves_out_can_be_had_later():
    said = in_fresh_python(AFTER_A_START)
    assert said.stdout == "good\n", said.stderr
