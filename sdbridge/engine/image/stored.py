"""Where each tensor of a safetensors file lies, and how it is read from there without a copy too many."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 100_000_000  # as the format's own library allows


class BrokenFileError(ValueError):
    """The file is cut short, damaged, or no safetensors file; the text says what is wrong, in numbers."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: contiguous, from byte ``start`` on."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    stamp: tuple[int, ...]  # of the file whose header said so

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, count: int) -> Stored:
        """A part of it along the first dimension."""
        row = self.nbytes // self.shape[0]
        return Stored(self.path, self.start + first * row, (count, *self.shape[1:]), self.dtype, self.stamp)

    def open(self) -> FileIO:
        """Its file, to be closed by the caller. Raises BrokenFileError where that is another one by now."""
        file = self.path.open("rb", buffering=0)
        if stamp_of(os.fstat(file.fileno())) != self.stamp:
            file.close()
            raise BrokenFileError("was replaced while it was read")
        return file

    def read(self) -> Tensor:
        """The tensor on the CPU, in memory of its own. Raises BrokenFileError where the file has shrunk."""
        flat = torch.empty(self.nbytes, dtype=torch.uint8)
        if self.nbytes:
            with self.open() as file:
                read_into(file, self.start, flat)
        return flat.view(self.dtype).view(self.shape)


#: A tensor that is in memory already, or one that still lies in its file.
Source = Stored | Tensor


def in_memory(source: Source) -> Tensor:
    """The tensor itself. Raises BrokenFileError or OSError where the file does not give it."""
    return source.read() if isinstance(source, Stored) else source


def split_rows(source: Source, count: int) -> tuple[Source, ...]:
    """``count`` equal parts along the first dimension, without reading anything."""
    rows = source.shape[0] // count
    if isinstance(source, Stored):
        return tuple(source.rows(part * rows, rows) for part in range(count))
    return tuple(source.split(rows))


@dataclass(frozen=True)
class StoredFile:
    """What the header of a safetensors file says: its tensors by key, and its notes."""

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_into(file: FileIO, start: int, into: Tensor) -> None:
    """Fill ``into`` (uint8, on the CPU) with the bytes from ``start`` on; the interpreter is free meanwhile.

    Raises BrokenFileError where they are not there, OSError where the disk does not give them.
    """
    view: memoryview = into.numpy().data.cast("B")
    file.seek(start)
    while view:
        got = file.readinto(view)
        if not got:
            raise BrokenFileError(f"ends {len(view)} bytes early")
        view = view[got:]


def look_into(path: Path) -> StoredFile:
    """Read and check the header only. Raises BrokenFileError, or OSError where the file cannot be read."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        size = about.st_size
        if size < 10:
            raise BrokenFileError(f"holds only {size} bytes, no weights")
        head = file.read(9)
        length = struct.unpack("<Q", head[:8])[0]
        if head[8:9] != b"{" or length > _LONGEST_HEADER:
            start = head[:8].decode("latin-1").encode("unicode_escape").decode()
            raise BrokenFileError(f"is no safetensors file, it starts with {start!r}")
        if size < 8 + length:
            raise BrokenFileError(f"is cut short: {size} bytes, its header alone has {8 + length}")
        text = head[8:9] + file.read(length - 1)
    try:
        header = json.loads(text)
        notes = dict(header.pop("__metadata__", None) or {})
        tensors = {key: _stored(path, 8 + length, entry, stamp_of(about)) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BrokenFileError(f"has a damaged safetensors header ({error})") from None
    _check_extent(tensors, 8 + length, size)
    return StoredFile(path, tensors, notes)


def _stored(path: Path, data: int, entry: Mapping[str, Any], stamp: tuple[int, ...]) -> Stored:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"a tensor of type {entry['dtype']}")
    stored = Stored(path, data + begin, shape, _DTYPES[entry["dtype"]], stamp)
    if begin < 0 or any(length < 0 for length in shape) or end - begin != stored.nbytes:
        raise ValueError(f"{stored.nbytes} bytes of a tensor lie from {begin} to {end}")
    return stored


def stamp_of(about: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another at its place, and from itself once it was written to."""
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _check_extent(tensors: Mapping[str, Stored], data: int, size: int) -> None:
    """The tensors must fill the file from header to end, each byte once."""
    at = data
    for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.nbytes)):
        if stored.start != at:
            raise BrokenFileError(
                f"has a damaged safetensors header (bytes {at} and {stored.start} do not join)"
            )
        at += stored.nbytes
    if size < at:
        raise BrokenFileError(f"is cut short: {size} of {at} bytes are there")
    if size > at:
        raise BrokenFileError(f"has {size - at} bytes more than its header says")
