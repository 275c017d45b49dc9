"""The process in which an order becomes a TensorRT engine: export and build, away from the running stream.

``python -m sdbridge.engine.accelerate.tensorrt.workshop FOLDER``. A process of its own because tracing
changes things that every thread of a process shares, and because a builder that crashes or runs out of
memory must not take the stream with it. It says on stdout, a JSON line each, how far it is, and ends by
itself when its stdin closes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from sdbridge.engine.accelerate.tensorrt.order import (
    ENGINE_FILE,
    WEIGHTS_FILE,
    Order,
    read_order,
)
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)


def main(folder: Path) -> int:
    """Exit code 0 with ``engine`` in ``folder``; 1 after a line that says what failed."""
    _end_with_the_stream()
    if hasattr(os, "nice"):
        os.nice(10)  # the stream's frames go first
    try:
        make(folder)
    except SdbridgeError as error:
        _say({"error": error.what})
        return 1
    except Exception as error:  # edge: this process's end; torch.onnx and TensorRT raise anything
        log.exception("the order in %s failed", folder)
        text = " ".join(str(error).split())[:300]
        _say({"error": f"{type(error).__name__}: {text}"})
        return 1
    return 0


def make(folder: Path) -> None:
    """Export the order's graph as ONNX and build its engine; both lie in ``folder`` then."""
    from sdbridge.engine.accelerate.tensorrt.build import build_engine
    from sdbridge.engine.accelerate.tensorrt.export import export_onnx

    order = read_order(folder)
    library = import_module(order.library)
    _tell(Progress(f"TensorRT {order.part}", 0.0, 0.0, "Exporting"))
    graph = order_graph(order, folder)
    file = folder / f"{order.part}.onnx"
    names = export_onnx(graph, file)
    _tell(Progress(f"TensorRT {order.part}", 0.0, 0.0, "Building"))
    blob = build_engine(library, graph, file, order.ranges, _tell)
    (folder / ENGINE_FILE).write_bytes(blob)
    _say({"names": [asdict(name) for name in names]})


def order_graph(order: Order, folder: Path) -> Any:
    """The graph of the order's part, its module filled with the weights in ``folder``."""
    import diffusers
    import torch
    from safetensors.torch import load_file

    from sdbridge.engine.accelerate.tensorrt import graphs

    kind = getattr(diffusers, order.module)
    with torch.device("meta"):
        module = kind.from_config(dict(order.config))
    module.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    module.eval().requires_grad_(False)
    # any size will do for tracing, for its dimensions are free; but not so small that a level vanishes
    side = 16
    if order.part == "unet":
        height, width = order.ranges["height"].likely, order.ranges["width"].likely
        residuals = tuple(
            (c, *(side >> _halvings((height, width), (h, w)),) * 2) for c, h, w in order.residuals
        )
        return graphs.unet_graph(module, None, side, side, residuals=residuals)
    scale, shift = order.latent
    tiny = order.module == "AutoencoderTiny"
    encode, decode = graphs.autoencoder_graphs(module, tiny, scale, shift, 8 * side, 8 * side)
    return encode if order.part == "encode" else decode


def _halvings(whole: tuple[int, int], part: tuple[int, int]) -> int:
    """How often a picture was halved, odd sizes rounded up, until it was as large as ``part``."""
    size = whole
    for times in range(8):
        if size == part:
            return times
        size = (-(-size[0] // 2), -(-size[1] // 2))
    raise SdbridgeError("SDB-TENSORRT-BUILD", f"a residual of {part} does not come from {whole}")


def _tell(progress: Progress) -> None:
    _say({"progress": asdict(progress)})


def _say(line: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(line) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _end_with_the_stream() -> None:
    """When whoever ordered is gone, so are we: its end of our stdin closes with it."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
