"""Frames as PNG for single pictures and as small JPEGs for previews."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import simplejpeg

from sdbridge.frame import Frame

JPEG_QUALITY = 78


def png(frame: Frame) -> bytes:
    """The whole frame, exact to the bit, alpha included."""
    height, width = frame.pixels.shape[:2]
    rows = np.zeros((height, 1 + width * 4), np.uint8)  # each row starts with filter 0: none
    rows[:, 1:] = frame.pixels.reshape(height, width * 4)
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 8 bits, RGBA
    body = zlib.compress(rows.tobytes(), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + _png_part(b"IHDR", head) + _png_part(b"IDAT", body) + _png_part(b"IEND", b"")
    )


def _png_part(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def preview(frame: Frame, longest_side: int) -> bytes:
    """A JPEG of at most ``longest_side`` pixels. Every n-th pixel is taken: cheap, and enough."""
    step = max(1, -(-max(frame.width, frame.height) // longest_side))
    pixels = np.ascontiguousarray(frame.pixels[::step, ::step])
    return simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGBA", colorsubsampling="420")
