"""Where built engines lie: the key that changes with all they depend on, and when one is trusted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Changes when the graphs or the way they are built change.
CODE_VERSION = 1


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, likeliest and largest value of one free dimension."""

    least: int
    likely: int
    most: int


@dataclass(frozen=True)
class EngineKey:
    """Everything a built engine depends on. Two equal keys may share a file, nothing else may.

    ``weights`` is the hash of the part's weights as exported; LoRAs are refitted, so they do not
    belong here. ``ranges`` maps a dimension's name to its range.
    """

    graph: str
    weights: str
    gpu: str
    capability: str
    driver: str
    tensorrt: str
    torch: str
    dtype: str
    ranges: Mapping[str, ShapeRange]
    code: int = CODE_VERSION

    @property
    def digest(self) -> str:
        """Short enough for Windows' longest path, long enough never to meet another."""
        values = {**asdict(self), "ranges": {name: asdict(r) for name, r in sorted(self.ranges.items())}}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def engine_file(folder: Path, key: EngineKey) -> Path:
    return folder / f"{key.graph}-{key.digest}.engine"


def save_engine(folder: Path, key: EngineKey, blob: bytes, about: Mapping[str, object] | None = None) -> Path:
    """Write engine and key, whole or not at all; ``about`` is kept with them and goes to JSON.

    Raises OSError when the disk is full or read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = engine_file(folder, key)
    seal = {"key": key.digest, "sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob)}
    seal |= {"about": dict(about or {}), "about_sha256": _hash_of(about or {})}
    _write_whole(file, blob)
    try:
        _write_whole(file.with_suffix(".json"), json.dumps(seal).encode())
    except OSError:
        drop_engine(folder, key)  # gigabytes that nobody would ever trust
        raise
    return file


def drop_engine(folder: Path, key: EngineKey) -> None:
    """Take a built engine away, as far as that can be done: it was damaged, or TensorRT refused it."""
    for file in (engine_file(folder, key), engine_file(folder, key).with_suffix(".json")):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def load_engine(folder: Path, key: EngineKey) -> bytes | None:
    """The bytes of a built engine, or None if there is none or it is damaged (then it is removed)."""
    file = engine_file(folder, key)
    try:
        seal = _read_seal(file)
        blob = file.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("the built engine %s cannot be read (%s); it is built anew", file.name, error)
        drop_engine(folder, key)
        return None
    if seal.get("key") != key.digest or seal.get("sha256") != hashlib.sha256(blob).hexdigest():
        log.warning("the built engine %s is damaged; it is built anew", file.name)
        drop_engine(folder, key)
        return None
    return blob


def load_about(folder: Path, key: EngineKey) -> dict[str, Any]:
    """What was kept with a built engine; empty if there is none or it is damaged."""
    try:
        seal = _read_seal(engine_file(folder, key))
    except (OSError, ValueError, RecursionError):
        return {}
    about = seal.get("about")
    whole = isinstance(about, dict) and seal.get("about_sha256") == _hash_of(about)
    return about if whole and isinstance(about, dict) else {}


def _read_seal(file: Path) -> dict[str, Any]:
    """What stands beside an engine. Raises OSError, ValueError or RecursionError for anything else."""
    read = json.loads(file.with_suffix(".json").read_bytes())
    if not isinstance(read, dict):
        raise ValueError(f"{file.stem}.json holds no seal")
    return read


def _hash_of(about: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def hash_weights(module_state: Mapping[str, object]) -> str:
    """Hash of names, shapes and values of a part's weights (``module.state_dict()``)."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module_state.items()):
        assert isinstance(tensor, torch.Tensor)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _write_whole(file: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
