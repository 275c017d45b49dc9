"""What an engine's process imports at its start, and what it leaves alone."""

import json
import subprocess
import sys
from pathlib import Path

from sdbridge.engine.image import imports

ROOT = Path(__file__).resolve().parents[3]
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
    said = subprocess.run(
        [sys.executable, "-c", ASK % ({*imports.NEVER_USED, *imports.SELDOM_USED},)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    loaded = set(found["modules"])
    assert {"sdbridge.engine.image.painter", "diffusers.models.unets.unet_2d_condition"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & {*imports.NEVER_USED, *imports.SELDOM_USED, "sympy"}
    assert "torch._dynamo" not in loaded
    assert found["collects"] and found["frozen"] > 100_000
    assert {"peft", "transformers"} <= set(found["importable"]), (
        "hidden for good, where it was to be hidden for a moment"
    )


def test_a_hidden_package_is_refused_for_the_moment_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "graphlib", raising=False)
    with imports.hidden(("graphlib", "json")):
        try:
            import graphlib
        except ImportError:
            pass
        else:
            raise AssertionError(f"{graphlib} could be imported")
        import json as still_there

        assert still_there.loads("1") == 1
    import graphlib

    assert graphlib.TopologicalSorter


POSTPONED = """
import json, sys, types
import torch
from sdbridge.engine.image import imports
with imports.compiler_postponed():
    @torch.compiler.disable
    def marked():
        return 1
    from torch._dynamo import allow_in_graph
    assert allow_in_graph(marked) is marked and marked() == 1
    stand_in = sys.modules["torch._dynamo"]
    from torch._dynamo.utils import is_compile_supported
    assert "sympy" not in sys.modules
assert "torch._dynamo" not in sys.modules
assert not torch._dynamo.is_compiling()  # the real one from here on, also for who kept the stand-in
assert stand_in.config is torch._dynamo.config
assert is_compile_supported("cpu") in (True, False)
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
print("good")
"""


def test_the_compiler_comes_when_it_is_used_and_not_when_it_is_mentioned():
    said = subprocess.run(
        [sys.executable, "-c", POSTPONED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert said.stdout == "good\n", said.stderr


ASKED_MEANWHILE = """
import sys
import torch
from sdbridge.engine.image import imports
with imports.compiler_postponed():
    import torch._dynamo.utils
    assert torch._dynamo.config.cache_size_limit  # no mark: the real one, with its own parts
    from torch._dynamo.utils import counters
    assert counters is sys.modules["torch._dynamo.utils"].counters and len(counters) >= 0
print("good")
"""


def test_asked_for_more_meanwhile_the_real_compiler_comes_whole():
    said = subprocess.run(
        [sys.executable, "-c", ASKED_MEANWHILE], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert said.stdout == "good\n", said.stderr


ON_A_GPU = """
import json, sys
from sdbridge.engine.image import imports
from sdbridge.engine.image.load import _import_what_loads_beside
from sdbridge.engine.interface import EngineConfig
woken = []
imports._device_of, imports.wake_gpu = lambda config: "cuda:0", woken.append
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
    said = subprocess.run(
        [sys.executable, "-c", ON_A_GPU], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr
    loaded = json.loads(said.stdout.splitlines()[-1])
    assert [name for name in loaded if any(f"{name}.".startswith(f"{dear}.") for dear in DEAR)] == []
    assert {"diffusers.models.controlnets.controlnet", "sdbridge.engine.image.clip_vision"} <= set(loaded)


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


def test_what_a_start_leaves_out_can_be_had_later():
    said = subprocess.run(
        [sys.executable, "-c", AFTER_A_START], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert said.stdout == "good\n", said.stderr
