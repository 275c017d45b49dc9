"""One-frame mailboxes where the newest wins and drops are counted: for threads, and in shared memory."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.shared_block import attach_block, fence, full_fence, let_go

MAGIC = b"SDBSLOT1"
VERSION = 1
BUFFERS = 3
HEADER_BYTES = 64
BUFFER_HEADER_BYTES = 64

# Places of the header's words, counted in u32 (4 bytes) and u64 (8 bytes) from its start.
_VERSION, _CAPACITY, _BUFFERS, _LATEST = 2, 3, 4, 5
_WRITES, _DROPS = 3, 4
_TAKEN = 5  # in the spare bytes: number of the write that the counting reader took last
_WRITER = 12  # in the spare bytes, as u32: process id of the creator, so that a left-over block can be told
_BORROWED = 13  # in the spare bytes, as u32: buffer that the counting reader looks at, plus one; 0 for none
_BORN = 7  # in the spare bytes: when it was created, so that a new block of an old name can be told
# Places in a buffer's own header.
_SEQUENCE, _FRAME_ID, _RECEIVED, _REVISION = 0, 1, 2, 3
_WIDTH, _HEIGHT = 8, 9


T = TypeVar("T")


class LatestSlot(Generic[T]):
    """A mailbox between threads of one process."""

    def __init__(self) -> None:
        self._item: T | None = None
        self._fresh = False
        self._closed = False
        self._condition = threading.Condition()
        self.writes = 0
        self.drops = 0

    def put(self, item: T) -> None:
        """Leave ``item``; one that nobody took before is dropped and counted."""
        with self._condition:
            self.writes += 1
            self.drops += self._fresh
            self._item, self._fresh = item, True
            self._condition.notify()

    def take(self, timeout_s: float = 0.0) -> T | None:
        """The newest item not taken yet; waits up to ``timeout_s`` for one, None if none came."""
        with self._condition:
            if not self._fresh and not self._closed and timeout_s > 0:
                self._condition.wait_for(lambda: self._fresh or self._closed, timeout_s)
            if not self._fresh:
                return None
            self._fresh = False
            item, self._item = self._item, None  # a taken frame's memory is the taker's to free
            return item

    def close(self) -> None:
        """Wake whoever waits; what was left here can still be taken."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class SharedSlot:
    """A mailbox in shared memory: one writer, one counting reader, any number of onlookers.

    The layout is pinned in docs/architecture.md: a 64-byte header, then three buffers with a
    64-byte header each. A buffer's sequence is twice the number of the write it holds, one less
    (odd) while that write is under way, so a reader that finds the same even number before and
    after its copy has a whole frame. The writer takes the buffers in turn, so a reader has two
    whole writes of time before it must try again; a buffer that the reader has borrowed is left
    out of turn. The creator unlinks the block; a larger size is a new block.
    """

    def __init__(self, block: shared_memory.SharedMemory, owner: bool, counting: bool) -> None:
        self._block = block
        memory: Any = block.buf
        self._memory = memory
        self._owner = owner
        self._counting = counting
        self._lock = threading.Lock()  # write, take and close of this object, never across processes
        self._words: Any = np.frombuffer(self._memory, np.uint32, HEADER_BYTES // 4)
        self._longs: Any = np.frombuffer(self._memory, np.uint64, HEADER_BYTES // 8)
        self._last = 0
        self._spares = _Spares()
        self._borrowed: _SlotLoan | None = None
        self.capacity = 0  # bytes of one buffer; read once, so that nobody can change it under us
        if owner:
            return
        if bytes(self._memory[:8]) != MAGIC or int(self._words[_VERSION]) != VERSION:
            self.close()
            raise SdbridgeError("SDB-SLOT-LAYOUT", f"the shared memory {block.name} holds no SDBSLOT1 layout")
        self.capacity = int(self._words[_CAPACITY])
        if HEADER_BYTES + BUFFERS * (BUFFER_HEADER_BYTES + self.capacity) > block.size:
            self.close()
            raise SdbridgeError("SDB-SLOT-LAYOUT", f"the shared memory {block.name} is shorter than it says")
        self._last = int(self._longs[_TAKEN]) if counting else 0

    @classmethod
    def create(cls, capacity: int, name: str | None = None, counting: bool = False) -> SharedSlot:
        """A new block whose buffers hold ``capacity`` bytes of pixels each (rounded up to 64).

        ``counting`` is for a creator who reads what another writes.
        """
        capacity = max(64, (capacity + 63) // 64 * 64)
        size = HEADER_BYTES + BUFFERS * (BUFFER_HEADER_BYTES + capacity)
        # macOS allows 31 characters in a name; tmpfs gives no memory before a buffer is written.
        block = shared_memory.SharedMemory(name or f"sdb_{secrets.token_hex(6)}", create=True, size=size)
        slot = cls(block, owner=True, counting=counting)
        slot.capacity = capacity
        slot._words[_VERSION], slot._words[_CAPACITY], slot._words[_BUFFERS] = VERSION, capacity, BUFFERS
        slot._words[_WRITER], slot._longs[_BORN] = os.getpid(), time.time_ns()
        slot._memory[:8] = MAGIC
        return slot

    @classmethod
    def attach(cls, name: str, counting: bool = True) -> SharedSlot:
        """Open another's block. ``counting`` readers keep the drop count; let only one do so."""
        return cls(attach_block(name), owner=False, counting=counting)

    @property
    def name(self) -> str:
        return self._block.name

    @property
    def writes(self) -> int:
        return int(self._longs[_WRITES])

    @property
    def drops(self) -> int:
        """Frames replaced before the counting reader took them, those it has yet to notice included."""
        writes, taken, drops = (int(self._longs[at]) for at in (_WRITES, _TAKEN, _DROPS))
        return drops + max(0, writes - taken - 1)

    @property
    def waiting(self) -> int:
        """Frames that the counting reader has yet to take: 0 or 1, for only the newest counts."""
        return int(int(self._longs[_WRITES]) > int(self._longs[_TAKEN]))

    @property
    def writer(self) -> int:
        """Process id of the creator; 0 if it did not say."""
        return int(self._words[_WRITER])

    @property
    def born(self) -> int:
        """When the block was created, which no other block of the same name shares; 0 if unsaid."""
        return int(self._longs[_BORN])

    def fits(self, frame: Frame) -> bool:
        return frame.pixels.nbytes <= self.capacity

    def write(self, frame: Frame) -> bool:
        """Publish ``frame``; False when the slot is closed, or when a lent frame changed under the copy.

        Raises SDB-SLOT-SIZE when it is too large.
        """
        with self._lock:
            if self._words is None:
                return False
            size = frame.pixels.nbytes
            if size > self.capacity:
                raise SdbridgeError(
                    "SDB-SLOT-SIZE",
                    f"a frame of {frame.width}x{frame.height} needs {size} bytes, "
                    f"the slot holds {self.capacity}",
                )
            number = int(self._longs[_WRITES]) + 1
            index, longs, words, pixels = self._claim(number)
            longs[_FRAME_ID], longs[_RECEIVED] = frame.frame_id, frame.received_at_ns
            longs[_REVISION] = frame.revision
            words[_WIDTH], words[_HEIGHT] = frame.width, frame.height
            np.copyto(pixels[:size].reshape(frame.pixels.shape), frame.pixels)
            fence()
            if frame.loan is not None and not frame.loan.whole():
                longs[_SEQUENCE] = 0  # holds nothing; nobody was ever pointed to it
                return False
            longs[_SEQUENCE] = 2 * number
            self._words[_LATEST] = index
            self._longs[_WRITES] = number
            return True

    def _claim(self, number: int) -> tuple[int, Any, Any, Any]:
        """Mark the next buffer as being written, or the one after it if the reader has borrowed that."""
        latest = int(self._words[_LATEST])
        for step in (1, 2) * 32:  # the reader may move its mark from one to the other as we come by
            index = (latest + step) % BUFFERS
            if int(self._words[_BORROWED]) == index + 1:
                continue
            longs, words, pixels = self._buffer(index)
            before = int(longs[_SEQUENCE])
            longs[_SEQUENCE] = 2 * number - 1
            full_fence()
            if int(self._words[_BORROWED]) != index + 1:
                return index, longs, words, pixels
            longs[_SEQUENCE] = before  # untouched: the reader goes on looking at it
        raise AssertionError("one reader cannot be quicker than the writer that many times in a row")

    def borrow(self) -> Frame | None:
        """The newest frame that this reader has not taken yet, uncopied; only the counting reader may.

        Its pixels are a read-only view, whole and unchanging until the next ``borrow``; after that the
        loan tells. A slot or a writer that is gone changes nothing about it.
        """
        with self._lock:
            if self._words is None:
                return None
            for _attempt in range(64):
                if not self._longs[_WRITES]:
                    return None
                index = int(self._words[_LATEST]) % BUFFERS
                longs, words, pixels = self._buffer(index)
                if int(longs[_SEQUENCE]) // 2 <= self._last:
                    return None
                self._release()
                # Writer and reader each mark first and look then, so at least one sees the other.
                self._words[_BORROWED] = index + 1
                full_fence()
                number, odd = divmod(int(longs[_SEQUENCE]), 2)
                width, height = int(words[_WIDTH]), int(words[_HEIGHT])
                size = width * height * 4
                if odd or number <= self._last or not 0 < size <= self.capacity:
                    continue
                self._count(number)
                frame, self._borrowed = self._lent(longs, 2 * number, pixels[:size].reshape(height, width, 4))
                self._borrowed.protected = True
                return frame
            return None

    def _release(self) -> None:
        """From here on the frame borrowed before may be written over."""
        if self._borrowed is not None:
            self._borrowed.protected = False
            self._borrowed = None

    def lend(self) -> Frame | None:
        """The newest frame that this reader has not taken yet, uncopied; for onlookers, who cannot borrow.

        The writer knows nothing of it and comes round to its buffer with the third write from now at
        the latest; the loan tells whether it has.
        """
        with self._lock:
            if self._words is None:
                return None
            for longs, before, view in self._looks():
                frame, loan = self._lent(longs, before, view)
                if loan.whole():
                    self._count(before // 2)
                    return frame
            return None

    def _lent(self, longs: Any, sequence: int, view: np.ndarray) -> tuple[Frame, _SlotLoan]:
        view.flags.writeable = False
        loan = _SlotLoan(longs, sequence, view, self._spares, self._lock)
        return Frame(view, int(longs[_FRAME_ID]), int(longs[_RECEIVED]), int(longs[_REVISION]), loan), loan

    def _count(self, number: int) -> None:
        if self._counting:
            self._longs[_DROPS] = int(self._longs[_DROPS]) + number - self._last - 1
            self._longs[_TAKEN] = number
        self._last = number

    def take(self) -> Frame | None:
        """A copy of the newest frame that this reader has not taken yet, or None."""
        with self._lock:
            if self._words is None:
                return None
            found = self._copy_newest()
            if found is None:
                return None
            frame, number = found
            self._count(number)
            return frame

    def _looks(self) -> Iterator[tuple[Any, int, np.ndarray]]:
        """(header, sequence, pixels) of the newest frame not taken; looks again if it changed meanwhile."""
        for _attempt in range(64):
            if not self._longs[_WRITES]:
                return
            longs, words, pixels = self._buffer(int(self._words[_LATEST]) % BUFFERS)
            before = int(longs[_SEQUENCE])
            if before % 2:
                continue
            if before // 2 <= self._last:
                return
            fence()
            width, height = int(words[_WIDTH]), int(words[_HEIGHT])
            size = width * height * 4
            if 0 < size <= self.capacity:
                yield longs, before, pixels[:size].reshape(height, width, 4)

    def _copy_newest(self) -> tuple[Frame, int] | None:
        for longs, before, view in self._looks():
            copy = self._spares.take(view.shape)
            np.copyto(copy, view)
            frame = Frame(copy, int(longs[_FRAME_ID]), int(longs[_RECEIVED]), int(longs[_REVISION]))
            fence()
            if int(longs[_SEQUENCE]) == before:
                return frame, before // 2
        return None  # the writer lapped us 64 times: the caller comes back anyway

    def _buffer(self, index: int) -> tuple[Any, Any, Any]:
        start = HEADER_BYTES + index * (BUFFER_HEADER_BYTES + self.capacity)
        memory = self._memory
        longs = np.frombuffer(memory, np.uint64, 4, start)
        words = np.frombuffer(memory, np.uint32, BUFFER_HEADER_BYTES // 4, start)
        pixels = np.frombuffer(memory, np.uint8, self.capacity, start + BUFFER_HEADER_BYTES)
        return longs, words, pixels

    def close(self) -> None:
        """Let go of the block; its creator also removes it. May be called twice."""
        with self._lock:
            if self._words is None:
                return
            self._words = self._longs = self._memory = None  # the block cannot close while views of it exist
            let_go(self._block)
            if self._owner:
                self._block.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SlotLoan:
    """The loan of one frame in a buffer: good while it is borrowed, then until the buffer is written again.

    A writer may die in the middle of anything, so while it is borrowed its sequence is not even asked.
    """

    def __init__(
        self, longs: Any, sequence: int, view: np.ndarray, spares: _Spares, lock: threading.Lock
    ) -> None:
        self.protected = False
        self._longs = longs
        self._sequence = sequence
        self._view = view
        self._spares = spares
        self._spares_lock = lock
        self._copying = threading.Lock()
        self._copy: np.ndarray | None = None

    def whole(self) -> bool:
        fence()
        return self.protected or int(self._longs[_SEQUENCE]) == self._sequence

    def copy(self) -> np.ndarray | None:
        with self._copying:
            if self._copy is None and self.whole():
                height, width = self._view.shape[:2]
                with self._spares_lock:
                    copy = self._spares.take((height, width, 4))
                np.copyto(copy, self._view)
                if self.whole():
                    self._copy = copy
            return self._copy


class _Spares:
    """Arrays to copy into, used again once nobody else refers to them.

    A fresh array of a large frame costs more than the copy itself, because the system hands out its
    memory page by page. Views refer to the array they show, so whoever holds any part of a frame
    keeps it from being used again; who holds none cannot notice.
    """

    MOST = 8

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, int, int]) -> np.ndarray:
        """An array of ``shape`` with arbitrary content, the caller's own."""
        if self._arrays and self._arrays[0].shape != shape:
            self._arrays.clear()
        for at in range(len(self._arrays)):
            # Two: the list's and the argument's. A name for it here would be a third.
            if sys.getrefcount(self._arrays[at]) == 2:
                return self._arrays[at]
        array = np.empty(shape, np.uint8)
        if len(self._arrays) < self.MOST:
            self._arrays.append(array)
        return array
