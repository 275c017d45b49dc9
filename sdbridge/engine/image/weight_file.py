"""What is in a file of weights: safetensors; pickles only when allowed; and what is broken about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.at_rest import wait_until_at_rest
from sdbridge.engine.image.pickled import PickleRefusedError, unpickle
from sdbridge.engine.image.stored import BrokenFileError, Source, in_memory, look_into
from sdbridge.errors import SdbridgeError
from sdbridge.paths import typed_path

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin"})
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_FEW = 8
_HEADER = b"{"  # after eight bytes of length, which may begin as a pickle does


#: What lies at a path: of the file, or of each file in the folder, its name, time, size and number.
Mark = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class WeightFile:
    """Tensors by key, on the CPU, and the file's own notes."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class OpenedFile:
    """The same with the tensors still in their file, where that is a safetensors file."""

    path: Path
    tensors: Mapping[str, Source]
    metadata: Mapping[str, str]


def read_weight_file(path: Path, *, allow_pickle: bool = False) -> WeightFile:
    """Read every tensor of ``path`` into memory of its own: the file may be replaced while we run.

    Raises SDB-FILE-MISSING, SDB-FILE-PICKLE (a pickle, which can run code, without leave), or
    SDB-FILE-BROKEN (cut short, or no weights at all), each naming the file and what it holds.
    """
    opened = open_weight_file(path, allow_pickle=allow_pickle)
    with told_of_broken(path):
        tensors = {key: in_memory(source) for key, source in opened.tensors.items()}
    return WeightFile(path, tensors, opened.metadata)


def open_weight_file(path: Path, *, allow_pickle: bool = False) -> OpenedFile:
    """See what ``path`` holds without reading its tensors (those of a pickle are read). Raises the same."""
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise _unreadable(path, error) from None
    disguised = head.startswith((_ZIP, _PICKLE)) and head[8:9] != _HEADER
    if path.suffix.lower() in PICKLE_SUFFIXES or disguised:
        read = _read_pickle(path, allow_pickle)
        return OpenedFile(path, read.tensors, read.metadata)
    with told_of_broken(path):
        wait_until_at_rest(path)
        file = look_into(path)
    if not file.tensors:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} is a safetensors file without any tensor")
    return OpenedFile(path, file.tensors, file.metadata)


@contextmanager
def told_of_broken(path: Path) -> Iterator[None]:
    """A file that does not give its tensors becomes SDB-FILE-BROKEN, or SDB-FILE-MISSING."""
    try:
        yield
    except BrokenFileError as error:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> SdbridgeError:
    return SdbridgeError("SDB-FILE-MISSING", f"{path} cannot be read: {error.strerror or error}")


def _read_pickle(path: Path, allow_pickle: bool) -> WeightFile:
    if not allow_pickle:
        raise SdbridgeError(
            "SDB-FILE-PICKLE",
            f"{path} is a pickle ({path.suffix or 'by its first bytes'}), which can run code",
        )
    try:
        loaded: Any = unpickle(path)
    except PickleRefusedError as error:
        raise SdbridgeError("SDB-FILE-BROKEN", f"{path} {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
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
    inside = sorted(entry.name for entry in path.iterdir())
    if not inside:
        raise SdbridgeError("SDB-FILE-MISSING", f"folder {path} is empty")
    wanted = names[0] if names else "a .safetensors file"
    raise SdbridgeError("SDB-FILE-MISSING", f"folder {path} holds no {wanted}, but {', '.join(inside[:6])}")


def resolve(text: str) -> Path:
    """The local path of what a user typed: a path, the id of something pulled before, or ``embedded/...``.

    Raises SDB-FILE-MISSING. The engine never downloads: the bridge pulls.
    """
    path = typed_path(text)
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


def mark_of(*texts: str) -> Mark | None:
    """Whatever tells that something else lies where these names lead; None while one leads nowhere.

    Empty names are left out. Asks the disk: call it beside the frame loop.
    """
    found: list[tuple[str, int, int, int]] = []
    try:
        for text in filter(None, texts):
            path = resolve(text)
            for file in sorted(path.iterdir()) if path.is_dir() else (path,):
                about = file.stat()
                found.append((str(file), about.st_mtime_ns, about.st_size, about.st_ino))
    except (SdbridgeError, OSError):
        return None
    return tuple(found)


def refuse_spoilt(path: Path, tensors: Mapping[str, Source]) -> None:
    """Training that ran away leaves NaN: one of them in a weight and every picture is black.

    Raises SDB-FILE-BROKEN naming file and tensor.
    """
    with told_of_broken(path):
        spoilt = [
            key
            for key, source in tensors.items()
            if source.dtype.is_floating_point and not torch.isfinite(in_memory(source).float()).all()
        ]
    if spoilt:
        raise SdbridgeError(
            "SDB-FILE-BROKEN",
            f"{path} holds values that are no numbers in {len(spoilt)} of {len(tensors)} tensors looked at, "
            f"such as {spoilt[0]}",
            "Its training went wrong; take another file.",
        )


def few_of(tensors: Mapping[str, Source]) -> dict[str, Source]:
    """Some small ones from all over the file, read in no time: what training spoils it spoils everywhere."""
    small = [key for key, source in tensors.items() if len(source.shape) == 1]
    return {key: tensors[key] for key in small[:: max(1, len(small) // _FEW)]}
