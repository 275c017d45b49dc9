"""A graph becomes an ONNX file, with a list of which of its weights are which of the model's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sdbridge.engine.accelerate.tensorrt.graphs import Graph

OPSET = 18


@dataclass(frozen=True)
class WeightName:
    """Where a model's parameter stands in the ONNX file. ``transposed``: the exporter turned it over."""

    parameter: str
    initializer: str
    transposed: bool


def export_onnx(graph: Graph, file: Path) -> tuple[WeightName, ...]:
    """Write ``graph`` to ``file`` (weights beside it in ``file.data`` when large) and name its weights.

    The list also goes to ``file`` with the suffix ``.weights.json``; refitting a LoRA needs it.
    Raises what torch.onnx raises: the caller turns it into one line and another acceleration.
    """
    free = torch.export.Dim.DYNAMIC
    examples = tuple(item.example for item in graph.inputs)
    shapes = tuple(dict.fromkeys(item.dynamic, free) for item in graph.inputs)
    takes_any = _takes_any_number(graph)
    with torch.no_grad():
        program = torch.onnx.export(
            graph.module,
            examples,
            dynamo=True,
            # a module with *args sees them as one tuple, and so must the shapes
            dynamic_shapes=(shapes,) if takes_any else shapes,
            input_names=[item.name for item in graph.inputs],
            output_names=list(graph.outputs),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx gave nothing for {graph.name}")
    program.save(str(file), external_data=_large(graph))
    names = match_weights(graph, program)
    listing = [
        {"parameter": n.parameter, "initializer": n.initializer, "transposed": n.transposed} for n in names
    ]
    file.with_suffix(".weights.json").write_text(json.dumps(listing), encoding="utf-8")
    return names


def read_weight_names(file: Path) -> tuple[WeightName, ...]:
    """The list that ``export_onnx`` wrote beside ``file``."""
    listing = json.loads(file.with_suffix(".weights.json").read_text(encoding="utf-8"))
    return tuple(WeightName(**entry) for entry in listing)


def match_weights(graph: Graph, program: torch.onnx.ONNXProgram) -> tuple[WeightName, ...]:
    """Pair parameters with initializers by name, and where the exporter folded a transpose, by value."""
    parameters = {name: value.detach() for name, value in graph.module.named_parameters()}
    initializers = {
        name: value.const_value
        for name, value in program.model.graph.initializers.items()
        if value.const_value
    }
    found: list[WeightName] = []
    for name in parameters.keys() & initializers.keys():
        found.append(WeightName(name, name, False))
    missing = [name for name in parameters if name not in initializers]
    others = {name: value for name, value in initializers.items() if name not in parameters}
    for name in missing:
        turned = parameters[name].T if parameters[name].dim() == 2 else None
        if turned is None:
            continue
        for other, value in others.items():
            if tuple(value.shape) == tuple(turned.shape):
                same = torch.from_numpy(value.numpy().copy())
                if torch.equal(same.to(turned.dtype), turned.cpu()):
                    found.append(WeightName(name, other, True))
                    break
    return tuple(sorted(found, key=lambda entry: entry.parameter))


def _takes_any_number(graph: Graph) -> bool:
    code = graph.module.forward.__code__  # type: ignore[union-attr]
    return bool(code.co_flags & 0x04)  # CO_VARARGS


def _large(graph: Graph) -> bool:
    """Protobuf stops at 2 GiB."""
    return sum(p.numel() * p.element_size() for p in graph.module.parameters()) > 1_500_000_000
