"""A picture file in use: read beside the frames, and read again when another picture lies there."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdbridge.engine.image.beside import Arrived, Beside
from sdbridge.engine.image.seams import ExtensionContext
from sdbridge.engine.image.stills import load_still
from sdbridge.paths import typed_path

#: How often the file is looked at. A change is read once two looks have seen the same: nobody writes on it.
LOOK_S = 1.0

Mark = tuple[int, int, int]


@dataclass
class _Asked:
    """``read`` is what lay there when it was read last, ``seen`` at the last look; None: no file."""

    path: Path
    read: Mark | None = None
    seen: Mark | None = None


class StillFile:
    """``poll`` at every frame edge hands over what was read. The disk is touched in the loading thread only.

    A file that is missing or no picture is told of once, and read when it appears or is mended. One that goes
    is kept as it was.
    """

    def __init__(
        self,
        context: ExtensionContext,
        what: str,
        make: Callable[[Tensor], Tensor] = lambda image: image,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``make`` turns the picture ``[1, 4, H, W]`` 0..1 into what is wanted, in the loading thread."""
        self._context = context
        self._make = make
        self._now = now
        self._reading: Beside[Tensor] = Beside(context, what)
        self._looking: Future[bool] | None = None
        self._look_at = 0.0
        self._asked: _Asked | None = None
        self.failed = False  # the last reading

    @property
    def loads(self) -> int:
        return self._reading.loads

    @property
    def busy(self) -> bool:
        """Whether it is being read."""
        return self._reading.busy

    def ask(self, file: str) -> None:
        """Read ``file``, and watch it from now on; "" for none."""
        self.cancel()
        if file:
            self._asked = _Asked(typed_path(file))
            self._read(self._asked)

    def cancel(self) -> None:
        """No longer wish for anything."""
        self._reading.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._asked = self._looking = None
        self.failed = False

    def poll(self, watch: bool = True) -> Arrived[Tensor] | None:
        """What was read, once; None while there is nothing new. ``watch``: whether changes matter."""
        arrived = self._reading.poll()
        if arrived is not None:
            self.failed = arrived.thing is None
            self._look_at = self._now() + LOOK_S
        elif self._asked is not None and watch and not self._reading.busy:
            self._watch(self._asked)
        return arrived

    def _watch(self, asked: _Asked) -> None:
        looking = self._looking
        if looking is None:
            if self._now() >= self._look_at:
                self._looking = self._context.beside(lambda: _look(asked))
        elif looking.done():
            self._looking = None
            self._look_at = self._now() + LOOK_S
            if not looking.cancelled() and looking.result():
                self._read(asked)

    def _read(self, asked: _Asked) -> None:
        device = self._context.model.device

        def read() -> Tensor:
            asked.read = asked.seen = _mark(asked.path)
            return self._make(load_still(asked.path, device))

        self._reading.start(read)


def _look(asked: _Asked) -> bool:
    """Whether another file than the one that was read lies there, and has come to rest."""
    mark = _mark(asked.path)
    rests, asked.seen = mark == asked.seen, mark
    return rests and mark is not None and mark != asked.read


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
