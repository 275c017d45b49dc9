"""CUDA streams with one owner each.

``torch.cuda.Stream`` hands out the same 32 of a priority again and again. Whoever takes one for a capture
may so get the stream that frames run on, and their work would become part of the graph, or fail.
"""

from __future__ import annotations

import logging
import threading
import weakref

import torch

log = logging.getLogger(__name__)

_IN_A_POOL = 32
_PRIORITIES = (0, -1, -2, -3)  # of which PyTorch has pools; the lower the number, the more urgent
_lock = threading.Lock()
_owned: set[tuple[int, int]] = set()


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
            weakref.finalize(stream, _owned.discard, place).atexit = False
            return stream
    raise RuntimeError(f"all {_IN_A_POOL * len(_PRIORITIES)} CUDA streams have owners")
