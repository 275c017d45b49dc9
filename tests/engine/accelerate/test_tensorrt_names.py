"""Every name of TensorRT that our code says, against the bindings that NVIDIA publishes (10 and 11)."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from sdbridge.engine.accelerate import tensorrt

FOLDER = Path(tensorrt.__file__).parent
PUBLISHED = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
#: What our variables hold.
HOLDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "refitter": "Refitter",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
}


def said() -> set[tuple[str, str]]:
    """(class, name) for ``trt.Class.NAME`` and for ``variable.method``; (class, '') for ``trt.Class``."""
    found: set[tuple[str, str]] = set()
    for file in ("build.py", "runtime.py"):
        for node in ast.walk(ast.parse((FOLDER / file).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            holder = _name(node.value)
            if holder in ("trt", "_trt"):
                found.add((node.attr, ""))
            elif holder in HOLDS:
                found.add((HOLDS[holder], node.attr))
            elif isinstance(node.value, ast.Attribute) and _name(node.value.value) in ("trt", "_trt"):
                found.add((node.value.attr, node.attr))
    return found


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda found: found["version"])
def test_every_name_that_is_said_is_published(published) -> None:
    names = said()
    assert {
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "progress_monitor"),
        ("BuilderFlag", "REFIT"),
        ("IExecutionContext", "execute_async_v3"),
        ("Refitter", "set_named_weights"),
        ("DataType", "BF16"),
    } <= names
    known = published["names"]
    wrong = [
        f"{kind}.{name}" for kind, name in names if kind not in known or (name and name not in known[kind])
    ]
    assert not wrong


def test_both_versions_that_pip_may_install_are_looked_at() -> None:
    assert [found["version"].partition(".")[0] for found in PUBLISHED] == ["10", "11"]
