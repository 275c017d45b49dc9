"""What libraries bring along comes later or not at all, and nobody who asks for it sees a difference."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path

import pytest

from sdbridge.engine.image import postponed
from tests.engine.image.fresh_python import in_fresh_python


def test_a_hidden_package_is_refused_for_the_moment_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "graphlib", raising=False)
    with postponed.hidden(("graphlib", "json")):
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
from sdbridge.engine.image import postponed
with postponed.compiler_postponed():
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


@pytest.mark.slow
def test_the_compiler_comes_when_it_is_used_and_not_when_it_is_mentioned():
    said = in_fresh_python(POSTPONED)
    assert said.stdout == "good\n", said.stderr


ASKED_MEANWHILE = """
import sys
import torch
from sdbridge.engine.image import postponed
with postponed.compiler_postponed():
    import torch._dynamo.utils
    assert torch._dynamo.config.cache_size_limit  # no mark: the real one, with its own parts
    from torch._dynamo.utils import counters
    assert counters is sys.modules["torch._dynamo.utils"].counters and len(counters) >= 0
print("good")
"""


@pytest.mark.slow
def test_asked_for_more_meanwhile_the_real_compiler_comes_whole():
    said = in_fresh_python(ASKED_MEANWHILE)
    assert said.stdout == "good\n", said.stderr


INIT = """
from sdb_late.one import value
from .two import value as second
ran = __name__
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "sdb_late"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "one.py").write_text("value = 1")
    (folder / "two.py").write_text("value = 2")
    monkeypatch.syspath_prepend(tmp_path)
    with postponed.packages_late(("sdb_late",)):
        importlib.import_module("sdb_late")
    return "sdb_late"


@pytest.fixture(autouse=True)
def forgotten() -> object:
    yield
    for name in [name for name in sys.modules if name.startswith("sdb_late")]:
        del sys.modules[name]


def test_a_late_package_gives_its_modules_and_runs_when_it_is_asked(package: str) -> None:
    late = sys.modules[package]
    one = importlib.import_module("sdb_late.one")
    assert one.value == 1 and late.one is one
    assert "ran" not in vars(late) and "sdb_late.two" not in sys.modules
    assert not hasattr(late, "__wrapped__") and "ran" not in vars(late), "looked at, not asked"
    assert late.second == 2 and late.ran == "sdb_late" and late.one is one
    assert type(late) is type(sys) and sys.modules[package] is late
    assert late.__spec__.loader is late.__loader__ and late.__file__.endswith("__init__.py")
    with pytest.raises(AttributeError):
        late.nothing  # noqa: B018


def test_a_late_package_can_be_taken_from(package: str) -> None:
    from sdb_late import second, two

    assert second == two.value == 2


def test_a_late_package_that_is_broken_says_so_to_who_asks(package: str, tmp_path: Path) -> None:
    (tmp_path / "sdb_late" / "two.py").write_text("raise ImportError('not here')")
    with pytest.raises(ImportError, match="not here"):
        sys.modules[package].second  # noqa: B018


def test_what_is_installed_is_read_when_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[None] = []

    def read() -> dict[str, list[str]]:
        reads.append(None)
        return {"cv2": ["opencv-python"]}

    monkeypatch.setattr(importlib.metadata, "packages_distributions", read)
    with postponed.installed_packages_unread():
        found = importlib.metadata.packages_distributions()
        assert reads == []
    assert "cv2" in found and found["cv2"] == ["opencv-python"] and "torch" not in found
    assert (found or {}).get("PIL") is None and len(reads) == 1
    assert importlib.metadata.packages_distributions is read


LATE_DIFFUSERS = """
import sys
from sdbridge.engine.image import imports
from sdbridge.engine.interface import EngineConfig
imports.import_sparingly(EngineConfig(kind="image", device="cpu"))
import diffusers
assert "diffusers.models.transformers.transformer_flux" not in sys.modules
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from diffusers.models.controlnets import FluxControlNetModel
from diffusers.models.unets import UNetMotionModel
assert FluxTransformer2DModel is diffusers.models.transformers.FluxTransformer2DModel
assert diffusers.models.unets.unet_2d_condition.UNet2DConditionModel is diffusers.UNet2DConditionModel
import requests
assert requests.get and requests.exceptions.HTTPError
print("good")
"""


def test_all_of_diffusers_can_be_had_after_a_start() -> None:
    said = in_fresh_python(LATE_DIFFUSERS)
    assert said.stdout == "good\n", said.stderr
