"""Which preprocessors there are, and how one is made: by name, networks from local files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch

from sdbridge.engine.preprocess.base import Preprocessor
from sdbridge.errors import SdbridgeError, first_line

Network = Literal["", "depth", "softedge"]


@dataclass(frozen=True)
class Entry:
    """Where a preprocessor is made: ``module:class``, and which network it wants."""

    place: str
    network: Network = ""


PREPROCESSORS: dict[str, Entry] = {
    "passthrough": Entry("passthrough:Passthrough"),
    "canny": Entry("canny:Canny"),
    "softedge": Entry("softedge:SoftGradient", "softedge"),
    "depth": Entry("depth:Depth", "depth"),
    "normal": Entry("normal:Normal", "depth"),
    "lineart": Entry("lineart:Lineart"),
    "scribble": Entry("scribble:Scribble"),
    "color": Entry("color:ColorGrid"),
    "tile": Entry("tile:Tile"),
    "grey": Entry("grey:Grey"),
    "invert": Entry("invert:Invert"),
}


def make_preprocessor(
    name: str, network: Path | None, device: torch.device, dtype: torch.dtype, *, allow_pickle: bool = False
) -> Preprocessor:
    """The preprocessor ``name`` with its network, if it has one, read from ``network``. Slow: call it beside.

    ``softedge`` without a network blends gradients instead. Raises SDB-PREPROCESS-NETWORK where a
    network is needed and missing or of another kind, and SDB-FILE-... where its file is broken.
    """
    entry = PREPROCESSORS[name]
    if entry.network == "depth":
        return _with_depth(name, network, device, dtype)
    if entry.network == "softedge" and network is not None:
        return _load_hed(network, device, dtype, allow_pickle)
    module, _, kind = entry.place.partition(":")
    made: Preprocessor = getattr(import_module(f"sdbridge.engine.preprocess.{module}"), kind)()
    return made


def _with_depth(name: str, network: Path | None, device: torch.device, dtype: torch.dtype) -> Preprocessor:
    from sdbridge.engine.preprocess.depth import Depth
    from sdbridge.engine.preprocess.normal import Normal

    if network is None:
        raise SdbridgeError(
            "SDB-PREPROCESS-NETWORK", f"preprocessor {name} needs a depth network, none is given"
        )
    try:
        depth = Depth.from_folder(network, device, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SdbridgeError) as error:
        line = error.what if isinstance(error, SdbridgeError) else first_line(error)
        raise SdbridgeError(
            "SDB-PREPROCESS-NETWORK", f"{network} holds no depth network that transformers can load: {line}"
        ) from None
    return Normal(depth) if name == "normal" else depth


def _load_hed(network: Path, device: torch.device, dtype: torch.dtype, allow_pickle: bool) -> Preprocessor:
    from sdbridge.engine.image.skeleton import differing, give_weights, shapes_of, skeleton
    from sdbridge.engine.image.upload import upload_to
    from sdbridge.engine.image.weight_file import find_weights, open_weight_file, told_of_broken
    from sdbridge.engine.preprocess.softedge import Hed

    path = find_weights(network, "ControlNetHED.safetensors", "ControlNetHED.pth", "model.safetensors")
    weights = open_weight_file(path, allow_pickle=allow_pickle).tensors
    upload = upload_to(device)
    with skeleton(upload.gentle):
        hed = Hed()
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differ = differing(shapes_of(hed), given)
    if differ:
        raise SdbridgeError(
            "SDB-PREPROCESS-NETWORK",
            f"{path} holds no HED network: {len(differ)} tensors differ, such as {differ[0]}",
        )
    with told_of_broken(path):
        give_weights(hed, weights, upload, dtype)
    return hed
