"""How weights reach the device that paints, without a frame noticing: in pieces, through pinned memory.

A network's weights lie in one allocation, in the layout the frames read them in. On a GPU the copies run
on the calling thread's CUDA stream, from one pinned buffer in pieces short enough that a frame's own
copies never wait long behind one. What was brought on another stream than the frames' may be let go
at any time: its memory is used again only when the frames are done with it.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sdbridge.engine.accelerate.courtesy import give_way, gives_way, once_a_frame_is_queued
from sdbridge.engine.image.device import same_device
from sdbridge.engine.image.share import share_here
from sdbridge.engine.image.stored import Source, Stored, in_memory, read_into

#: Of one copy: 0.1 ms on a PCIe 5 bus, so that a frame's own upload waits no longer behind it.
PIECE = 4 << 20
#: While a model starts and no frame waits, larger pieces and several readers fill the bus.
START_PIECE, START_READERS = 8 << 20, 4
_START = 256  # bytes a network's weights begin at multiples of, as the driver's own allocations do
_PART = 64  # and parts of a piece
#: What the frames are left of the interpreter between two steps of work beside them.
PAUSE_S = 0.0002


class Upload:
    """Brings weights to ``device``. One thread uses it at a time; ``bring`` returns when all is there."""

    def __init__(
        self, device: torch.device, piece: int = PIECE, readers: int = 1, *, staged: bool | None = None
    ) -> None:
        """``staged``: whether it goes by pieces into one allocation; None: as the device wants it."""
        self.device = device
        #: Whom work beside the frames belongs to: freed memory waits until this stream is done with it.
        self.frames: torch.cuda.Stream | None = None
        self.gentle = False  # leave the interpreter to the frames between two steps
        self._piece = piece
        staged = device.type in ("cuda", "cpu") if staged is None else staged
        self._lanes = [_Lane(device, piece) for _ in range(2 * readers)] if staged else []

    def bring(
        self,
        sources: Mapping[str, Source],
        dtype: torch.dtype,
        *,
        channels_last: bool = False,
        side_by_side: Sequence[Sequence[str]] = (),
    ) -> dict[str, Tensor]:
        """The tensors by name on the device, floating ones as ``dtype``, in memory of their own.

        ``side_by_side`` names tensors that shall lie next to each other, for ``packed_unet.Packed``.
        ``channels_last`` lays out tensors of four dimensions so. Raises BrokenFileError or OSError where
        a file does not give what its header promised.
        """
        if not self._lanes:  # Apple's GPUs share the CPU's memory
            return {name: self._plainly(source, dtype, channels_last) for name, source in sources.items()}
        groups = _groups(sources, side_by_side)
        made, flat = _lay_out(groups, sources, dtype, channels_last, self.device)
        self.lend(flat)
        pieces = _pieces({name: sources[name] for group in groups for name in group}, self._piece)
        self._send(pieces, made)
        return made

    def lend(self, *tensors: Tensor) -> None:
        """Frames will read ``tensors``: let go, their memory is not written while one still does."""
        for tensor in tensors:
            if self.frames is not None and tensor.is_cuda:
                tensor.record_stream(self.frames)

    def pause(self) -> None:
        """Between two steps of long work: let the frames have the interpreter."""
        if self.gentle:
            time.sleep(PAUSE_S)
            if gives_way():
                give_way()

    def _plainly(self, source: Source, dtype: torch.dtype, channels_last: bool) -> Tensor:
        tensor = in_memory(source)
        wanted = _dtype_of(source, dtype)
        layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.contiguous_format
        if isinstance(source, Stored) and self.device.type == "cpu" and tensor.dtype == wanted:
            return tensor.contiguous(memory_format=layout)
        moved = tensor.to(device=self.device, dtype=wanted, copy=True)
        return moved.contiguous(memory_format=layout)

    def _send(self, pieces: Sequence[_Piece], made: Mapping[str, Tensor]) -> None:
        """Copy all pieces, by as many threads as there are pairs of lanes, and wait for the device."""
        cuda = self.device.type == "cuda"
        stream = torch.cuda.current_stream(self.device) if cuda else None
        left, lock, share = iter(pieces), threading.Lock(), share_here()
        given_up = threading.Event()

        def read(lanes: Sequence[_Lane]) -> None:
            whole = False
            try:
                with torch.no_grad(), torch.cuda.stream(stream), _OpenFiles() as files:
                    for turn in itertools.count():
                        with lock:
                            piece = next(left, None)
                        if piece is None or given_up.is_set():
                            break
                        lanes[turn % 2].send(piece, made, files)
                        share.did(piece.size)
                        self.pause()
                whole = True
            finally:
                if not whole:
                    given_up.set()

        pairs = [self._lanes[at : at + 2] for at in range(0, len(self._lanes), 2)][: max(1, len(pieces))]
        with ThreadPoolExecutor(len(pairs), thread_name_prefix="upload") as pool:
            others = [pool.submit(read, pair) for pair in pairs[1:]]  # none where one thread is enough
            try:
                read(pairs[0])
            finally:
                wait(others)
        if stream is not None:
            done = torch.cuda.Event(blocking=True)  # sleeping, not spinning
            done.record(stream)
            done.synchronize()
        for other in others:
            other.result()  # raises what it met


class Arena:
    """Room on the device for many tensors, taken in a few large allocations."""

    _LEAST = 64 << 20

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._flat = torch.empty(0, dtype=torch.uint8, device=upload.device)
        self._used = 0

    def like(self, tensor: Tensor) -> Tensor:
        """Room with the shape, layout and dtype of ``tensor``, which is on the device."""
        if not tensor.is_cuda:
            return torch.empty_like(tensor)
        if self._used + tensor.nbytes > self._flat.numel():
            size = max(self._LEAST, tensor.nbytes)
            self._flat = torch.empty(size, dtype=torch.uint8, device=tensor.device)
            self._upload.lend(self._flat)
            self._used = 0
        room = self._flat[self._used : self._used + tensor.nbytes].view(tensor.dtype)
        self._used = _up(self._used + tensor.nbytes, _START)
        strides = torch.empty_like(tensor, device="meta").stride()  # dense, whatever it is cut from
        return room.as_strided(tensor.shape, strides, room.storage_offset())


class _Lane:
    """A pinned buffer, its like on the device, and the event after which both may be filled again."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device = device
        self._free = torch.cuda.Event(blocking=True) if device.type == "cuda" else None
        self._used = False
        self._make(size)

    def _make(self, size: int) -> None:
        if self._free is None:  # on the CPU it is there already, and still in the processor's cache
            self._pinned = self._arrived = torch.empty(size, dtype=torch.uint8)
            return
        self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._arrived = torch.empty(size, dtype=torch.uint8, device=self._device)

    def send(self, piece: _Piece, made: Mapping[str, Tensor], files: _OpenFiles) -> None:
        if self._used and self._free is not None:
            self._free.synchronize()
        if piece.size > self._pinned.numel():  # one row of a tensor is longer than a piece
            self._make(piece.size)
        for part in piece.parts:
            part.fill(self._pinned[part.at : part.at + part.nbytes], files)
        arrived = self._arrived[: piece.size]
        if self._free is not None:
            arrived.copy_(self._pinned[: piece.size], non_blocking=True)
        for part in piece.parts:
            came = arrived[part.at : part.at + part.nbytes].view(part.source.dtype)
            part.place(made[part.name]).copy_(came.view(part.shape))
        if self._free is not None:
            self._free.record(torch.cuda.current_stream(self._device))
        self._used = True


class _OpenFiles:
    """Files by path, opened once for one reader and closed with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, FileIO] = {}

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, stored: Stored) -> FileIO:
        if stored.path not in self._files:
            self._files[stored.path] = self._stack.enter_context(stored.open())
        return self._files[stored.path]


@dataclass(frozen=True)
class _Part:
    """Rows ``first`` to ``first + rows`` of one tensor, at byte ``at`` of a piece."""

    name: str
    source: Source
    first: int
    rows: int
    at: int

    @property
    def shape(self) -> tuple[int, ...]:
        whole = tuple(self.source.shape)
        return (self.rows, *whole[1:]) if whole else ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.source.dtype.itemsize

    def fill(self, buffer: Tensor, files: _OpenFiles) -> None:
        source = self.source
        if isinstance(source, Stored):
            before = self.first * math.prod(source.shape[1:]) * source.dtype.itemsize
            read_into(files.of(source), source.start + before, buffer)
        else:
            buffer.view(source.dtype).view(self.shape).copy_(self.place(source))

    def place(self, whole: Tensor) -> Tensor:
        return whole[self.first : self.first + self.rows] if whole.dim() else whole


@dataclass(frozen=True)
class _Piece:
    parts: tuple[_Part, ...]
    size: int


def _pieces(sources: Mapping[str, Source], largest: int) -> list[_Piece]:
    """All tensors in pieces of about ``largest`` bytes: small ones together, large ones by rows."""
    made: list[_Piece] = []
    parts: list[_Part] = []
    at = 0
    for name, source in sources.items():
        total = source.shape[0] if source.shape else 1
        row = max(1, math.prod(source.shape[1:]) * source.dtype.itemsize)
        first = 0
        while first < total:
            if parts and at + row > largest:
                made.append(_Piece(tuple(parts), at))
                parts, at = [], 0
            rows = min(total - first, max(1, (largest - at) // row))
            part = _Part(name, source, first, rows, at)
            parts.append(part)
            at = _up(at + part.nbytes, _PART)
            first += rows
    if parts:
        made.append(_Piece(tuple(parts), at))
    return made


def _groups(sources: Mapping[str, Source], side_by_side: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every name once: those that shall lie together first, then the others each alone."""
    together = [tuple(group) for group in side_by_side if all(name in sources for name in group)]
    grouped = {name for group in together for name in group}
    return [*together, *((name,) for name in sources if name not in grouped)]


def _lay_out(
    groups: Sequence[Sequence[str]],
    sources: Mapping[str, Source],
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor]:
    """Empty tensors for all names in one allocation, and that allocation."""
    starts: dict[str, int] = {}
    at = 0
    for group in groups:
        at = _up(at, _START)
        for name in group:
            starts[name] = at
            at += math.prod(sources[name].shape) * _dtype_of(sources[name], dtype).itemsize
    once_a_frame_is_queued()  # beside the stream: the driver's lock is held until the memory is there
    flat = torch.empty(_up(at, _START), dtype=torch.uint8, device=device)
    made: dict[str, Tensor] = {}
    for name, start in starts.items():
        source, kind = sources[name], _dtype_of(sources[name], dtype)
        room = flat[start : start + math.prod(source.shape) * kind.itemsize].view(kind)
        made[name] = room.as_strided(
            tuple(source.shape), _strides(source.shape, channels_last), room.storage_offset()
        )
    return made, flat


def _strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    if channels_last and len(shape) == 4:
        _, channels, height, width = shape
        return (height * width * channels, 1, width * channels, channels)
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def _dtype_of(source: Source, dtype: torch.dtype) -> torch.dtype:
    return dtype if source.dtype.is_floating_point else source.dtype


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- who uploads now ---

_HERE = threading.local()


@contextmanager
def uploading(upload: Upload) -> Iterator[Upload]:
    """In this thread ``upload_to`` gives ``upload`` for its device."""
    before = getattr(_HERE, "upload", None)
    _HERE.upload = upload
    try:
        yield upload
    finally:
        _HERE.upload = before


def upload_to(device: torch.device) -> Upload:
    """The calling thread's way to ``device``; a new one where it has none."""
    here: Upload | None = getattr(_HERE, "upload", None)
    return here if here is not None and same_device(here.device, device) else Upload(device)
