"""Which path of our own port each output is served at (MJPEG, WebRTC): no two at the same one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import chain

from sdbridge.config import OutputConfig
from sdbridge.errors import SdbridgeError

#: The path that an output has which names none, by backend.
USUAL = {"mjpeg": "/output.mjpeg", "webrtc": "/whep"}


class ServedPaths:
    """Paths that outputs have taken. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[OutputConfig, str]] = {}  # with the backend that serves there

    def take(self, config: OutputConfig, backend: str) -> str:
        """The path of ``config``, the same at every call; "" for a backend that serves none.

        What it names itself, else what it has, else the usual one, else one made of its role or name. Raises
        SDB-TEXTURE-NAME where another output is at the path that it names.
        """
        with self._lock:
            mine = [path for path, (owner, by) in self._taken.items() if owner is config and by == backend]
            self._drop(config)
            if backend not in USUAL:
                return ""
            named = str(config.options.get("path", ""))
            places = iter((named,)) if named else chain(mine, _candidates(config, USUAL[backend]))
            for path in places:
                if path not in self._taken:
                    self._taken[path] = config, backend
                    return path
        raise SdbridgeError(
            "SDB-TEXTURE-NAME",
            f"another output is served at {named} already",
            "Give each output a path of its own in its options.",
        )

    def hand_over(self, old: OutputConfig, new: OutputConfig) -> None:
        """``new`` stands where ``old`` did."""
        with self._lock:
            for path, (owner, by) in self._taken.items():
                self._taken[path] = (new if owner is old else owner), by

    def release(self, config: OutputConfig) -> None:
        with self._lock:
            self._drop(config)

    def _drop(self, config: OutputConfig) -> None:
        self._taken = {path: taken for path, taken in self._taken.items() if taken[0] is not config}


def _candidates(config: OutputConfig, usual: str) -> Iterator[str]:
    """``/output.mjpeg``, ``/control.mjpeg``, ``/stage.mjpeg``, ``/output-2.mjpeg``, ..."""
    stem, dot, ending = usual.removeprefix("/").partition(".")
    kind = f".{ending}" if dot else ""
    yield usual
    for word in (config.role if config.role != "generated" else "", config.name):
        plain = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
        if plain:
            yield f"/{plain}{kind}" if dot else f"/{stem}-{plain}"
    number = 2
    while True:
        yield f"/{stem}-{number}{kind}"
        number += 1
