"""An ONNX file becomes a TensorRT engine, with progress and time left.

Names follow the TensorRT 10 Python API reference (docs.nvidia.com/deeplearning/tensorrt, "Python API").
TensorRT's libraries are not on PyPI, so this has been run only against a stand-in of that API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdbridge.engine.accelerate.tensorrt.cache import ShapeRange
from sdbridge.engine.accelerate.tensorrt.graphs import Graph
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError

WORKSPACE_BYTES = 4 * 2**30

OnProgress = Callable[[Progress], None]
#: Asked while building; True ends the build (the show stops, or the model changed).
Cancelled = Callable[[], bool]


def build_engine(
    trt: Any,
    graph: Graph,
    onnx_file: Path,
    ranges: Mapping[str, ShapeRange],
    on_progress: OnProgress,
    cancelled: Cancelled = lambda: False,
) -> bytes:
    """Build ``onnx_file`` for these ranges; gives the serialised engine.

    ``trt`` is the ``tensorrt`` module. The network is strongly typed (precision is the ONNX file's)
    and refittable (LoRAs change weights without a build). Raises SDB-TENSORRT-BUILD with the
    parser's or builder's own words.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        said = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise SdbridgeError("SDB-TENSORRT-BUILD", f"the graph {onnx_file.name} was not understood: {said}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.set_flag(trt.BuilderFlag.REFIT)
    config.add_optimization_profile(_profile(builder, graph, ranges))
    config.progress_monitor = progress_monitor(trt, graph.name, on_progress, cancelled)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        why = "it was cancelled" if cancelled() else "TensorRT gave no engine; its own log says why"
        raise SdbridgeError("SDB-TENSORRT-BUILD", f"building {graph.name} failed: {why}")
    return bytes(blob)


def _profile(builder: Any, graph: Graph, ranges: Mapping[str, ShapeRange]) -> Any:
    """Least, likeliest and largest shape of every input, from the ranges of its free dimensions."""
    profile = builder.create_optimization_profile()
    for item in graph.inputs:
        shapes = []
        for bound in ("least", "likely", "most"):
            shape = list(item.example.shape)
            for dimension, name in item.dynamic.items():
                value = getattr(ranges[name], bound)
                shape[dimension] = _scaled(value, graph, item.name, dimension, up=bound != "least")
            shapes.append(tuple(shape))
        profile.set_shape(item.name, *shapes)
    return profile


def _scaled(value: int, graph: Graph, name: str, dimension: int, *, up: bool) -> int:
    """Ranges of height and width are in latent pixels; a residual or a picture is smaller or larger.

    ``up``: halves of odd sizes count as the UNet makes them, rounded up.
    """
    if dimension < 2:
        return value
    base = next((i.example.shape[dimension] for i in graph.inputs if i.name in ("sample", "latent")), None)
    item = next(i for i in graph.inputs if i.name == name)
    if base is None:  # the encoder: only a picture goes in, eight times the latent
        return value * 8
    product = value * item.example.shape[dimension]
    return max(1, -(-product // base) if up else product // base)


def progress_monitor(trt: Any, part: str, on_progress: OnProgress, cancelled: Cancelled) -> Any:
    """A ``trt.IProgressMonitor`` that turns TensorRT's nested phases into one bar with time left."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self._began = time.monotonic()
            self._steps: dict[str, int] = {}
            self._top: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._top = phase_name
            self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self._steps.get(phase_name, 0)
            if total and phase_name == self._top:
                done = step + 1
                spent = time.monotonic() - self._began
                left = spent / done * (total - done)
                on_progress(Progress(f"TensorRT {part}", done, total, phase_name, left))
            return not cancelled()

    return Monitor()
