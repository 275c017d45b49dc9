"""Which form of a call is made first beside the stream: the one on our own kernels, unless that takes long.

A network by the library's kernels takes up to twice the time, so a change that was taken up in that form made
every frame late until the faster one was there. Frames lose nothing while the change waits for its kernels:
they go on as they were. Only where compiling takes longer than an artist wants to wait, or frames are held up
already, the plain form goes before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.precompile import Compilation

#: So long a change waits for its kernels. Those of a ControlNet beside a UNet that runs are compiled in a
#: second or two; those of another size may take 20 s, and then it is taken up without them first.
PATIENCE_S = 5.0

#: Captures a form; None where it is no longer wanted.
Make = Callable[[], Any]
Hear = Callable[[Exception], None]


class FirstForms:
    """One call's forms on their way, of which the last to come stays. It works beside the stream."""

    def __init__(
        self,
        beside: BesideTheStream,
        plain: Make,
        put_in: Callable[[Any], None],
        given_up: Callable[[], None],
        failed: Hear,
        held_up: Callable[[], bool],
    ) -> None:
        """``put_in`` gets each form that is made; ``given_up``: none was wanted. ``failed``: none can be.

        ``held_up``: frames run the call already, operation by operation.
        """
        self._beside = beside
        self._plain, self._put_in, self._given_up = plain, put_in, given_up
        self._failed, self._held_up = failed, held_up
        self._faster: Make | None = None
        self._rests: Hear = failed
        self._compiled: Callable[[], bool] = lambda: False
        self._compiles_here = False
        self._until = time.monotonic() + PATIENCE_S
        self._open = 1  # forms that may still come
        self._plain_is_in = self._fast_is_in = False

    def submit_plain(self) -> None:
        """There is only this one."""
        self._beside.submit(self._make_plain, self._have_plain, self._plain_failed, first=True)

    def submit_both(
        self, begin: Callable[[], Compilation], faster: Make, rests: Hear, known: bool = False
    ) -> None:
        """``begin`` has the kernels of ``faster`` compiled; ``known``: they are.

        ``rests``: it cannot be made.
        """
        self._open = 2
        self._faster, self._rests = faster, rests
        if known:
            self._compiled = lambda: True
        beside = self._beside
        beside.submit(self._make_plain, self._have_plain, self._plain_failed, True, self._plain_is_due)
        beside.submit(begin, self._compiling, self._fast_failed, first=True)

    # --- the plain one ---

    def _plain_is_due(self) -> bool:
        if self._open < 2 or self._compiles_here:
            return True
        return not self._compiled() and (time.monotonic() >= self._until or self._held_up())

    def _make_plain(self) -> Any:
        return None if self._fast_is_in else self._plain()

    def _have_plain(self, graph: Any) -> None:
        if graph is not None:
            self._plain_is_in = True
            self._put_in(graph)
        self._one_less()

    def _plain_failed(self, error: Exception) -> None:
        self._open -= 1
        self._failed(error)

    # --- the faster one ---

    def _compiling(self, compilation: Compilation) -> None:
        self._compiles_here, self._compiled = compilation.here, compilation.is_done

        def made() -> Any:
            compilation.check()
            assert self._faster is not None
            return self._faster()

        def ready() -> bool:  # compiling in this process would hold frames up: they get something first
            return compilation.is_done() and not (compilation.here and self._open == 2)

        first = not self._plain_is_in  # else nobody waits any more
        self._beside.submit(made, self._have_fast, self._fast_failed, first, ready)

    def _have_fast(self, graph: Any) -> None:
        if graph is not None:
            self._fast_is_in = True
            self._put_in(graph)
        self._one_less()

    def _fast_failed(self, error: Exception) -> None:
        self._open -= 1
        self._rests(error)

    def _one_less(self) -> None:
        self._open -= 1
        if not self._open and not (self._fast_is_in or self._plain_is_in):
            self._given_up()
