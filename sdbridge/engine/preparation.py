"""Brings what an engine needs to this machine, in a thread of its own: a download must stop nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: Gives the config with local paths; may take minutes. Raises SDB-MODEL-* or SDB-PULL-*.
Prepare = Callable[[EngineConfig], EngineConfig]

#: What is here already is found within this time, so that usually nobody needs to come back.
QUICK_S = 0.5


class Preparation:
    """At most one preparation counts: the one asked for last."""

    def __init__(self, prepare: Prepare, done: Callable[[], None]) -> None:
        self._prepare = prepare
        self._done = done
        self._lock = threading.Lock()
        self._asked: EngineConfig | None = None
        self._found: EngineConfig | SdbridgeError | None = None

    @property
    def under_way(self) -> bool:
        return self._asked is not None

    def of(self, config: EngineConfig) -> EngineConfig | None:
        """The prepared config, once; None while that takes long, and ``done`` is called when to ask again.

        Raises what ``prepare`` raised.
        """
        with self._lock:
            begun = self._asked == config
            if not begun:
                self._asked, self._found = config, None
        if not begun:
            quick = threading.Thread(target=self._run, args=(config,), name="prepare", daemon=True)
            quick.start()
            quick.join(QUICK_S)
        with self._lock:
            if self._asked != config or self._found is None:
                return None
            found, self._asked, self._found = self._found, None, None
        if isinstance(found, SdbridgeError):
            raise found
        return found

    def _run(self, config: EngineConfig) -> None:
        found: EngineConfig | SdbridgeError
        try:
            found = self._prepare(config)
        except SdbridgeError as error:
            found = error
        except Exception as error:  # edge: a library's fault while pulling must reach the operator as a line
            log.exception("preparing %s failed", config.model)
            found = SdbridgeError("SDB-MODEL-MISSING", f"{config.model!r} cannot be had: {error}")
        with self._lock:
            if self._asked != config:
                return  # another one is wanted by now
            self._found = found
        self._done()
