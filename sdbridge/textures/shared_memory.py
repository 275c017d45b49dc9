"""Frames between programs on one machine through a documented block of shared memory, for any Python program.

Importable without the rest of the bridge, and without torch::

    from sdbridge.textures.shared_memory import FrameReader, FrameWriter

    with FrameReader("sdbridge") as reader:        # the bridge's shared_memory output
        frame = reader.read(timeout_s=1.0)         # frame.pixels: uint8 [H, W, 4] RGBA, or None
    with FrameWriter("camera", 1920, 1080) as writer:   # an input called camera
        writer.write(pixels)

The layout is that of ``sdbridge/slot.py``, described in docs/architecture.md.
"""

from __future__ import annotations

import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame, check_pixels
from sdbridge.slot import SharedSlot
from sdbridge.textures import stub
from sdbridge.textures.options import NoOptions, option, read_options

_PREFIX = "sdbtex_"
_LONGEST = 30  # of a shared memory name on macOS
_POLL_S = 0.0002
_LOOK_EVERY_S = 0.25
_SILENCE_S = 0.5


def block_name(name: str) -> str:
    """The shared memory's own name for a texture called ``name``: short and plain enough for every system."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if plain != name or len(_PREFIX + plain) > _LONGEST:
        plain = f"{plain[: _LONGEST - len(_PREFIX) - 9]}_{zlib.crc32(name.encode()):08x}"
    return _PREFIX + plain


class FrameWriter:
    """Offers frames of up to ``max_width`` x ``max_height`` under a name, from ``open`` to ``close``."""

    def __init__(self, name: str, max_width: int = 1920, max_height: int = 1080) -> None:
        self.name = name
        self._capacity = max_width * max_height * 4
        self._slot: SharedSlot | None = None
        self._written = 0

    def open(self) -> None:
        """Raises SDB-TEXTURE-NAME if another living program writes under this name."""
        block = block_name(self.name)
        try:
            self._slot = SharedSlot.create(self._capacity, block)
        except FileExistsError:
            if _writer_lives(block):
                raise SdbridgeError(
                    "SDB-TEXTURE-NAME", f"another program already shares memory as {self.name!r}"
                ) from None
            self._slot = SharedSlot.create(self._capacity, block)

    def write(self, pixels: np.ndarray) -> None:
        """Publish uint8 RGBA ``[H, W, 4]``, top row first. Raises SDB-FRAME-FORMAT or SDB-SLOT-SIZE."""
        self._written += 1
        self.write_frame(Frame(check_pixels(pixels), self._written, time.monotonic_ns()))

    def write_frame(self, frame: Frame) -> None:
        """Publish a frame with its own number and times."""
        if self._slot is not None:
            self._slot.write(frame)

    def fits(self, frame: Frame) -> bool:
        return frame.pixels.nbytes <= self._capacity

    def close(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameReader:
    """Reads the newest frame of a name. The writer may start later, stop, and start again."""

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self.name = name
        self.clock: Clock = clock or SystemClock()
        self._slot: SharedSlot | None = None
        self._last_frame_ns = 0
        self._last_look_ns = 0

    @property
    def attached(self) -> bool:
        """Whether the writer's block is there."""
        return self._slot is not None

    def read(self, timeout_s: float = 0.0) -> Frame | None:
        """A frame not read before, waiting up to ``timeout_s``; None if none came."""
        return self._wait(SharedSlot.take, timeout_s)

    def lend(self, timeout_s: float = 0.0) -> Frame | None:
        """``read`` without a copy: the pixels lie where the writer put them, with a loan (``frame.py``)."""
        return self._wait(SharedSlot.lend, timeout_s)

    def _wait(self, look: Callable[[SharedSlot], Frame | None], timeout_s: float) -> Frame | None:
        end = self.clock.now_ns() + int(timeout_s * 1e9)
        while True:
            now = self.clock.now_ns()
            frame = look(self._slot) if self._slot is not None else None
            if frame is not None:
                self._last_frame_ns = now
                return frame
            if (
                now - self._last_frame_ns > _SILENCE_S * 1e9
                and now - self._last_look_ns > _LOOK_EVERY_S * 1e9
            ):
                self._last_look_ns = now
                self._look()
                continue
            if now >= end:
                return None
            self.clock.sleep(min(_POLL_S if self._slot is not None else 0.02, (end - now) / 1e9))

    def close(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def _look(self) -> None:
        """Attach to the block that bears the name now, unless that is the one we have."""
        try:
            found = SharedSlot.attach(block_name(self.name), counting=False)
        except (OSError, ValueError, SdbridgeError):
            self.close()  # gone, or not yet whole
            return
        if not _lives(found.writer):
            # A killed writer's last frame is nothing new; and on Windows its name is free for the
            # next writer only once every reader has let go.
            found.close()
            self.close()
            return
        if self._slot is not None and found.born == self._slot.born:
            found.close()
            return
        self.close()
        self._slot = found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Receiver(stub.Receiver):
    """A program that writes frames with ``FrameWriter`` or by the documented layout."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._reader: FrameReader | None = None
        self._size: tuple[int, int] | None = None
        self._last_frame_ns: int | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "it is part of Python"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        if not sys.platform.startswith("linux"):
            return ()  # only Linux shows the names of its shared memory
        blocks = sorted(Path("/dev/shm").glob(_PREFIX + "*"))
        return tuple(
            stub.Source(block.name.removeprefix(_PREFIX), f"shared memory {block}") for block in blocks
        )

    def open(self) -> None:
        read_options(NoOptions, self.options, "shared_memory")
        self._reader = FrameReader(self.name, self.clock)

    def receive(self, timeout_s: float) -> np.ndarray | None:
        frame = self._noted(self._reader.read(timeout_s) if self._reader is not None else None)
        return frame.pixels if frame is not None else None

    def lend(self, timeout_s: float) -> Frame | None:
        return self._noted(self._reader.lend(timeout_s) if self._reader is not None else None)

    def _noted(self, frame: Frame | None) -> Frame | None:
        if frame is not None:
            self._last_frame_ns = self.clock.now_ns()
            self._size = (frame.width, frame.height)
        return frame

    @property
    def connected(self) -> bool:
        return (
            self._reader is not None
            and self._last_frame_ns is not None
            and self.clock.now_ns() - self._last_frame_ns < 2e9
        )

    def describe(self) -> str:
        block = block_name(self.name)
        if self.connected and self._size:
            return f"shared memory {block}, {self._size[0]}x{self._size[1]}"
        return f"shared memory, waiting for {block}"

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


@dataclass(frozen=True)
class SharedMemorySenderOptions:
    """The largest frame there is room for; a larger one is made smaller. Memory is taken as it is used."""

    max_width: int = option(3840, low=16, high=8192)
    max_height: int = option(2160, low=16, high=8192)


class Sender(stub.Sender):
    """Writes each frame where ``FrameReader`` finds it."""

    takes_loans = True

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = SharedMemorySenderOptions()
        self._writer: FrameWriter | None = None
        self._size: tuple[int, int] | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "it is part of Python"

    def open(self) -> None:
        self._chosen = read_options(SharedMemorySenderOptions, self.options, "shared_memory")
        self._writer = FrameWriter(self.name, self._chosen.max_width, self._chosen.max_height)
        try:
            self._writer.open()
        except OSError as error:
            raise SdbridgeError(
                "SDB-TEXTURE-UNAVAILABLE", f"shared memory {block_name(self.name)} cannot be made: {error}"
            ) from error

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._writer is None:
            return
        if not self._writer.fits(frame):
            frame = self._smaller(frame)
        self._size = (frame.width, frame.height)
        self._writer.write_frame(frame)

    def describe(self) -> str:
        size = f", {self._size[0]}x{self._size[1]}" if self._size else ""
        return f"shared memory {block_name(self.name)}{size}"

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _smaller(self, frame: Frame) -> Frame:
        # Imported here: programs that only use FrameReader and FrameWriter need no video library.
        from sdbridge.textures.geometry import resize

        scale = min(self._chosen.max_width / frame.width, self._chosen.max_height / frame.height)
        width, height = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
        smaller = resize(frame.pixels, width, height)
        # Still with its loan: if that is broken now, the copy of what was made from it is thrown away too.
        return replace(frame, pixels=smaller)


def _writer_lives(block: str) -> bool:
    """Whether the block's creator still runs; if not, the block is removed."""
    try:
        found = SharedSlot.attach(block, counting=False)
    except (OSError, ValueError, SdbridgeError):
        _remove(block)
        return False
    writer = found.writer
    found.close()
    if writer and _lives(writer):
        return True
    _remove(block)
    return False


def _lives(process: int) -> bool:
    """Whether a process runs; one that did not say its number is believed to."""
    import psutil

    return process == 0 or psutil.pid_exists(process)


def _remove(block: str) -> None:
    """Take a left-over block away, where the system keeps such (Windows does not)."""
    from multiprocessing import shared_memory

    try:
        left_over = shared_memory.SharedMemory(block)
    except (OSError, ValueError):
        Path("/dev/shm", block).unlink(missing_ok=True)  # an empty one cannot even be attached
        return
    left_over.close()
    left_over.unlink()
