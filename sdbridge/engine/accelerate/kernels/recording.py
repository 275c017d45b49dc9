"""Which kernels would a call have compiled? Found by a pass in which Triton compiles and launches none.

Triton asks a hook before it compiles. While a thread records, ours notes down what would be compiled, in
Triton's own words, and answers that it is taken care of: nothing is compiled, and nothing launched. All
other operations of the pass run, on whatever lies in memory, so it costs about what one pass does, and
what it computes is worth nothing. Other threads' kernels are compiled and launched as ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_PAUSE_S = 2e-4  # after each kernel: the frame thread gets the interpreter at once, not after a time slice


@dataclass(frozen=True)
class Kernel:
    """One kernel in one form: where its source is, and what Triton calls specialisation data (JSON)."""

    module: str
    name: str
    form: str


class _Recording(threading.local):
    kernels: dict[Kernel, Any] | None = None


_of_thread = _Recording()
_turn = threading.Lock()
_recordings = 0  # under way, in all threads
_before: Callable[..., Any] | None = None  # somebody else's hook, which goes on being asked


def is_recording() -> bool:
    """Whether this thread's kernels are noted down, so that no result may be looked at."""
    return _of_thread.kernels is not None


@contextmanager
def recording() -> Iterator[dict[Kernel, Any]]:
    """Within it this thread launches no kernel of Triton's that would have to be compiled.

    Gives the kernels, each with Triton's own object for it. Raises ImportError or AttributeError where this
    Triton cannot be asked (before 3.4).
    """
    global _recordings, _before
    import triton

    runtime = triton.knobs.runtime
    assert _of_thread.kernels is None, "this thread records already"
    with _turn:
        if _recordings == 0:  # only meanwhile: with a hook Triton writes every form down, which some resist
            _before, runtime.jit_cache_hook = runtime.jit_cache_hook, _note_down
        _recordings += 1
    found: dict[Kernel, Any] = {}
    _of_thread.kernels = found
    try:
        yield found
    finally:
        _of_thread.kernels = None
        with _turn:
            _recordings -= 1
            if _recordings == 0:
                runtime.jit_cache_hook = _before


def _note_down(**said: Any) -> Any:
    kernels = _of_thread.kernels
    if kernels is None:
        return _before(**said) if _before is not None else None
    source = said["fn"]
    kernel = Kernel(source.module, source.name, said["compile"]["specialization_data"])
    kernels[kernel] = source.jit_function
    time.sleep(_PAUSE_S)
    return True
