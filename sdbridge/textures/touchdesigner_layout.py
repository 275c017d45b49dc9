"""How TouchDesigner's Shared Mem In and Out TOPs lay a picture out in shared memory, both header versions."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

MAGIC = 0xD95EF835
VERSIONS = (1, 2)
HEADER_BYTES = {1: 48, 2: 56}

INFO_MAGIC = 0x56ED34BA
INFO_VERSION = 2
INFO_BYTES = 76

RGBA8, RGBA8_SRGB, BGRA8, BGRA8_SRGB = 37, 43, 44, 50

# Up to the pixels' offset both versions are the same; version 2 adds gamut and transfer.
_CORE = struct.Struct("<IIiiffI4xqi")
_COLOUR = struct.Struct("<II4x")
_INFO = struct.Struct("<II?x64s?x")
_REC709, _LINEAR = 2, 0
_LARGEST_SIDE = 16384

#: Pixel format -> type of one channel, channels a pixel.
_FORMATS: dict[int, tuple[type[np.generic], int]] = {
    9: (np.uint8, 1),
    16: (np.uint8, 2),
    RGBA8: (np.uint8, 4),
    RGBA8_SRGB: (np.uint8, 4),
    BGRA8: (np.uint8, 4),
    BGRA8_SRGB: (np.uint8, 4),
    70: (np.uint16, 1),
    77: (np.uint16, 2),
    91: (np.uint16, 4),
    76: (np.float16, 1),
    83: (np.float16, 2),
    97: (np.float16, 4),
    100: (np.float32, 1),
    103: (np.float32, 2),
    109: (np.float32, 4),
}


@dataclass(frozen=True)
class Header:
    """What the block says about its picture. Rows run upwards: the first is the lowest."""

    version: int
    width: int
    height: int
    pixel_format: int
    data_bytes: int
    data_offset: int


def pack_header(width: int, height: int, version: int, pixel_format: int = RGBA8) -> bytes:
    """The header of a four-channel byte picture that follows it at once."""
    size = HEADER_BYTES[version]
    core = _CORE.pack(MAGIC, version, width, height, 1.0, 1.0, pixel_format, width * height * 4, size)
    return (core + (_COLOUR.pack(_REC709, _LINEAR) if version == 2 else b"")).ljust(size, b"\0")


def read_header(block: memoryview) -> Header:
    """The header of a block. Raises ValueError saying what is wrong with it."""
    if len(block) < HEADER_BYTES[1]:
        raise ValueError(f"the block has {len(block)} bytes, a header needs {HEADER_BYTES[1]}")
    magic, version, width, height, _, _, pixel_format, data_bytes, offset = _CORE.unpack_from(block)
    if magic != MAGIC:
        raise ValueError(f"the block begins with {magic:#010x}, not with {MAGIC:#010x}")
    if version not in VERSIONS:
        raise ValueError(f"its version {version} is not known; 1 and 2 are")
    if pixel_format not in _FORMATS:
        raise ValueError(f"its pixel format {pixel_format} is not known; use an 8, 16 or 32-bit RGBA one")
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise ValueError(f"its size is {width}x{height}")
    kind, channels = _FORMATS[pixel_format]
    needed = width * height * channels * np.dtype(kind).itemsize
    if offset < HEADER_BYTES[1] or needed > data_bytes or offset + needed > len(block):
        raise ValueError(f"{needed} bytes of pixels at {offset} do not fit into {data_bytes} of {len(block)}")
    return Header(version, width, height, pixel_format, data_bytes, offset)


def read_pixels(block: memoryview, header: Header) -> np.ndarray:
    """The picture as uint8 RGBA, top row first, of our own memory."""
    kind, channels = _FORMATS[header.pixel_format]
    count = header.width * header.height * channels
    raw = np.frombuffer(block, kind, count, header.data_offset)
    rows = raw.reshape(header.height, header.width, channels)[::-1]
    if header.pixel_format in (RGBA8, RGBA8_SRGB):
        return rows.copy()
    if header.pixel_format in (BGRA8, BGRA8_SRGB):
        return rows[..., [2, 1, 0, 3]]
    return _to_rgba8(rows)


def pack_info() -> bytes:
    """The little block beside: nobody has attached yet, the name has no ending, nothing was detached."""
    return _INFO.pack(INFO_MAGIC, INFO_VERSION, False, b"", False)


def read_name_ending(block: memoryview) -> str | None:
    """What the present block's name ends with, by the info block; None if that is none or was detached."""
    if len(block) < INFO_BYTES:
        return None
    magic, _, _, ending, detached = _INFO.unpack_from(block)
    if magic != INFO_MAGIC or detached:
        return None
    text: str = ending.decode("utf-16-le", errors="replace").partition("\0")[0]
    return text


def _to_rgba8(rows: np.ndarray) -> np.ndarray:
    if rows.dtype == np.uint16:
        bytes_ = (rows >> 8).astype(np.uint8)
    elif rows.dtype == np.uint8:
        bytes_ = rows
    else:
        finite = np.nan_to_num(rows.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        bytes_ = (finite.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    height, width, channels = bytes_.shape
    if channels == 4:
        return np.ascontiguousarray(bytes_)
    picture = np.full((height, width, 4), 255, np.uint8)
    if channels == 1:
        picture[..., :3] = bytes_  # one channel is grey
    else:
        picture[..., :2], picture[..., 2] = bytes_, 0
    return picture
