"""An order for one TensorRT engine: which part, at which shapes, of which module. Read by the workshop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdbridge.engine.accelerate.tensorrt.cache import ShapeRange

#: Latent pixels either way that an engine serves: 256 to 1024 pixels of the picture.
LEAST_SIDE, MOST_SIDE = 32, 128
MOST_ROWS = 8
TOKENS, MOST_TOKENS = 77, 4 * 77

WEIGHTS_FILE, ORDER_FILE, ENGINE_FILE = "weights.safetensors", "order.json", "engine"


@dataclass(frozen=True)
class Order:
    """``part`` is unet, encode or decode. ``residuals`` are shapes ``[C, h, w]`` a ControlNet adds, if any.

    ``module`` is the diffusers class that the weights belong to, with its ``config``; ``latent`` the scale
    and shift of a VAE; ``library`` the module that speaks TensorRT's API.
    """

    part: str
    module: str
    config: Mapping[str, Any]
    ranges: Mapping[str, ShapeRange]
    residuals: tuple[tuple[int, int, int], ...] = ()
    latent: tuple[float, float] = (1.0, 0.0)
    library: str = "tensorrt"

    def takes(self, rows: int, height: int, width: int, tokens: int = TOKENS) -> bool:
        """Whether the engine will serve these, in latent pixels."""
        asked = {"rows": rows, "height": height, "width": width, "tokens": tokens}
        return all(r.least <= asked[name] <= r.most for name, r in self.ranges.items())

    def write(self, folder: Path) -> None:
        (folder / ORDER_FILE).write_text(json.dumps(asdict(self), default=list), encoding="utf-8")


def read_order(folder: Path) -> Order:
    read = json.loads((folder / ORDER_FILE).read_text(encoding="utf-8"))
    read["ranges"] = {name: ShapeRange(**bounds) for name, bounds in read["ranges"].items()}
    read["residuals"] = tuple(tuple(shape) for shape in read["residuals"])
    read["latent"] = tuple(read["latent"])
    return Order(**read)


def ranges_for(rows: int, height: int, width: int, *, tokens: bool) -> dict[str, ShapeRange]:
    """What an engine made for this shape (latent pixels) serves beside it."""
    found = {
        "rows": ShapeRange(1, rows, max(rows, MOST_ROWS)),
        "height": ShapeRange(min(height, LEAST_SIDE), height, max(height, MOST_SIDE)),
        "width": ShapeRange(min(width, LEAST_SIDE), width, max(width, MOST_SIDE)),
    }
    if tokens:
        found["tokens"] = ShapeRange(TOKENS, TOKENS, MOST_TOKENS)
    return found
