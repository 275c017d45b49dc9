"""Programs outside of the bridge that send numbered pictures to it, each run in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from sdbridge.frame import Frame
from sdbridge.slot import MAGIC
from sdbridge.testing import numbered_picture
from sdbridge.textures import touchdesigner_layout as layout
from sdbridge.textures.shared_memory import FrameWriter
from sdbridge.textures.shared_memory import block_name as shared_block_name
from sdbridge.textures.touchdesigner_memory import block_name

#: Pixel formats of TouchDesigner that the source knows: bytes as RGBA and BGRA, 16 bits, floats.
FORMATS = {"rgba8": layout.RGBA8, "bgra8": layout.BGRA8, "rgba16": 91, "rgba32f": 109}


def run_source(name: str, width: int, height: int, fps: float) -> None:
    """Over sdbridge's own shared memory."""
    with FrameWriter(name, 1920, 1080) as writer:
        _forever(width, height, fps, writer.write)


def run_garbage_source(name: str) -> None:
    """Noise under the name of a source: sometimes with the right first bytes, so that it is looked into."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = shared_block_name(name)
    with contextlib.suppress(FileNotFoundError):  # of a source that was killed
        left_over = shared_memory.SharedMemory(where)
        left_over.close()
        left_over.unlink()
    size = 1 << 20
    block = shared_memory.SharedMemory(where, create=True, size=size)
    memory: Any = block.buf
    try:
        for turn in itertools.count():
            kept = (0, 8, 24, 64)[turn % 4]  # bytes of the header that are right
            if kept:
                memory[:24] = MAGIC + struct.pack("<IIII", 1, 128 * 128 * 4, 3, 1)
            memory[kept : 1 << 16] = os.urandom((1 << 16) - kept)
            time.sleep(0.01)
    finally:
        del memory
        block.close()
        block.unlink()


def run_touchdesigner_source(
    name: str, width: int, height: int, fps: float, pixel_format: str = "rgba8"
) -> None:
    """As a Shared Mem Out TOP of that pixel format does."""
    number = FORMATS[pixel_format]
    size = layout.HEADER_BYTES[1] + width * height * 16
    try:
        block = shared_memory.SharedMemory(block_name(name), create=True, size=size)
    except FileExistsError:  # of a source that was killed
        block = shared_memory.SharedMemory(block_name(name))
    header = layout.pack_header(width, height, 1, number)

    def write(pixels: np.ndarray) -> None:
        rows = _in_format(pixels[::-1], pixel_format)
        content = bytearray(header)
        content[32:40] = len(rows).to_bytes(8, "little")
        memory: Any = block.buf
        memory[: len(content) + len(rows)] = bytes(content) + rows

    try:
        _forever(width, height, fps, write)
    finally:
        block.close()
        block.unlink()


def run_ndi_source(name: str, width: int, height: int, fps: float) -> None:
    """Over NDI, on the next free port."""
    # Imported here: measuring without NDI needs no video library.
    from sdbridge.textures.ndi.sender import Sender as NdiSender

    with NdiSender(name, {}) as sender:
        _forever(width, height, fps, lambda pixels: sender.send(Frame(pixels, 0, 0), {}))


def _in_format(rows: np.ndarray, pixel_format: str) -> bytes:
    if pixel_format == "bgra8":
        return rows[..., [2, 1, 0, 3]].tobytes()
    if pixel_format == "rgba16":
        return (rows.astype(np.uint16) * 257).tobytes()
    if pixel_format == "rgba32f":
        return (rows.astype(np.float32) / 255).tobytes()
    return rows.tobytes()


def _forever(width: int, height: int, fps: float, write: Callable[[np.ndarray], None]) -> None:
    """Pictures whose number starts anew with each run, until the process is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(os, "sched_setscheduler"):  # started, and from now on as punctual as the bench
        parent = os.getppid()
        os.sched_setscheduler(0, os.sched_getscheduler(parent), os.sched_getparam(parent))
    number, due = os.getpid() % 100, time.monotonic()
    while True:
        number += 1
        write(numbered_picture(number, width, height))
        due = max(due + 1 / fps, time.monotonic() - 1 / fps)
        time.sleep(max(0.0, due - time.monotonic()))
