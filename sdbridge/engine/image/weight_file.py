"""What is in a file of weights: safetensors; pickles only when allowed; and what is broken about it."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge.errors import SdbridgeError

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin"})
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
#: What torch raises on a pickle that is damaged or holds more than weights.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    AttributeError,
    LookupError,
    TypeError,
    ImportError,
)
_HEADER = b"{"  # after eight bytes of length, which may begin as a pickle does


@dataclass(frozen=True)
class WeightFile:
    """Tensors by key, on the CPU, and the file's own notes."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_weight_file(path: Path, *, allow_pickle: bool = False) -> WeightFile:
    """Read every tensor of ``path``.

    Raises SDB-FILE-MISSING, SDB-FILE-PICKLE (a pickle, which can run code, without leave), or
    SDB-FILE-BROKEN (cut short, or no weights at all), each naming the file and what it holds.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
        size = path.stat().st_size
    except OSError as error:
        reason = error.strerror or str(error)
        raise SdbridgeError("SDB-FILE-MISSING", f"{path} cannot be read: {reason}") from None
    disguised = head.startswith((_ZIP, _PICKLE)) and head[8:9] != _HEADER
    if path.suffix.lower() in PICKLE_SUFFIXES or disguised:
        return _read_pickle(path, allow_pickle)
    _check_length(path, head, size)
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            # Cloned: the file may be replaced by a training program while we run.
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, ValueError, OSError) as error:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} is no whole safetensors file: {error}") from None
    if not tensors:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} is a safetensors file without any tensor")
    return WeightFile(path, tensors, metadata)


def _check_length(path: Path, head: bytes, size: int) -> None:
    """Say in numbers how much of a half-written file is there; the library only says that it is wrong."""
    if size < 10:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} holds only {size} bytes, no weights")
    length = struct.unpack("<Q", head[:8])[0]
    if head[8:9] != _HEADER or length > 100_000_000:
        start = head[:8].decode("latin-1").encode("unicode_escape").decode()
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} is no safetensors file, it starts with {start!r}")
    if size < 8 + length:
        raise SdbridgeError(
            "SDB-FILE-BROKEN", f"{path} is cut short: {size} bytes, its header alone has {8 + length}"
        )
    try:
        with path.open("rb") as stream:
            stream.seek(8)
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} has a damaged safetensors header") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} is cut short: {size} of {whole} bytes are there")


def _read_pickle(path: Path, allow_pickle: bool) -> WeightFile:
    if not allow_pickle:
        raise SdbridgeError(
            "SDB-FILE-PICKLE",
            f"{path} is a pickle ({path.suffix or 'by its first bytes'}), which can run code",
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} cannot be loaded as weights only: {line}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    tensors = dict(_flatten(loaded)) if isinstance(loaded, dict) else {}
    if not tensors:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} holds no tensors, only {type(loaded).__name__}")
    return WeightFile(path, tensors, {})


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Tensor]]:
    """IP-Adapter pickles nest their tensors one level deep; safetensors write the same with dots."""
    found: list[tuple[str, Tensor]] = []
    for key, value in tree.items():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{key}", value))
        elif isinstance(value, dict):
            found += _flatten(value, f"{prefix}{key}.")
    return found


def find_weights(path: Path, *names: str) -> Path:
    """The weights file at ``path``: itself, or in a folder the first of ``names`` or its only file.

    Raises SDB-FILE-MISSING saying what the folder holds.
    """
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    several = sorted(path.glob("*.safetensors"))
    if len(several) == 1:
        return several[0]
    inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    wanted = names[0] if names else "a .safetensors file"
    raise SdbridgeError("SDB-FILE-MISSING", f"folder {path} holds no {wanted}, but {inside}")


def resolve(text: str) -> Path:
    """The local path of what a user typed: a path, the id of something pulled before, or ``embedded/...``.

    Raises SDB-FILE-MISSING. The engine never downloads: the bridge pulls.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path
    from sdbridge.models import catalog, embedded_model

    inside = embedded_model.EMBEDDED_DIR / text.removeprefix("embedded/")
    if text.startswith("embedded/") and inside.exists():
        return inside
    pulled = catalog.local_path(text)
    if pulled is not None:
        return Path(pulled)
    if catalog.find(text) is not None:
        raise SdbridgeError(
            "SDB-FILE-MISSING",
            f"{text} is in the catalog, but has not been pulled",
            f"Run `sdbridge pull {text}`.",
        )
    raise SdbridgeError("SDB-FILE-MISSING", f"there is no file or folder {text}, nor such a catalog id")
