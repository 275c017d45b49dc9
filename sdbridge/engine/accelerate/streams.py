"""CUDA streams with one owner each.

``torch.cuda.Stream`` hands out the same 32 of a priority again and again. Whoever takes one for a capture
may so get the stream that frames run on, and their work would become part of the graph, or fail.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_IN_A_POOL = 32
_PRIORITIES = (0, -1, -2, -3)  # of which PyTorch has pools; the lower the number, the more urgent
_lock = threading.Lock()
_owned: set[tuple[int, int]] = set()
_shared: dict[int, torch.cuda.Stream] = {}  # by card, kept from its first capture on
_in_turns = threading.Lock()


class _Ownership:
    """Ends with the stream it is an attribute of.

    Not a weak reference to the stream: torch 2.11 takes those and never clears them, so they were never
    called, and the end of the process followed them to where the stream had been (SIGSEGV).
    """

    def __init__(self, place: tuple[int, int]) -> None:
        self._place = place
        self._owned = _owned

    def __del__(self) -> None:
        self._owned.discard(self._place)


def own_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """A stream that nobody else here has while the returned object lives.

    priority: 0 is the lowest; -1 goes before it where both could run. When all 32 of it have owners, one of
    another priority comes instead. Raises RuntimeError when those have owners too.
    """
    others = [other for other in _PRIORITIES if other != priority]
    for wanted in (priority, *others):
        for _ in range(_IN_A_POOL):
            stream = torch.cuda.Stream(device, priority=wanted)
            place = (stream.device_index, stream.cuda_stream)
            with _lock:
                if place in _owned:
                    continue
                _owned.add(place)
            stream.ownership = _Ownership(place)  # type: ignore[attr-defined]  # ours, to go with it
            return stream
    raise RuntimeError(f"all {_IN_A_POOL * len(_PRIORITIES)} CUDA streams have owners")


@contextmanager
def capture_stream(device: torch.device) -> Iterator[torch.cuda.Stream]:
    """A stream to capture on: an owned one, or when there are none left one for all, in turns.

    Keep it while the graph lives: PyTorch has one cuBLAS workspace for each stream, whose address the graph
    holds. And it is urgent, which the graph's kernels remember: frames go before what is warmed up beside.
    """
    card = torch.cuda.current_device() if device.index is None else device.index
    try:
        stream = own_stream(device, priority=-1)
    except RuntimeError as error:
        with _in_turns:
            if card not in _shared:
                raise RuntimeError(f"{error}, and none was kept for this") from None
            yield _shared[card]
        return
    if card not in _shared:
        _shared[card] = own_stream(device, priority=-1)
    yield stream
