"""Brings the model that an engine needs to this machine, and tells how far the download is."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace

from sdbridge.engine.interface import EngineConfig, Progress
from sdbridge.models.resolve import resolve_model
from sdbridge.status import ProgressStatus

#: Engine kinds that read model files; the others are left alone.
KINDS_WITH_MODELS = frozenset({"image"})


class ModelSupply:
    """``prepare`` is called in the engine watcher's thread and may take minutes; ``progress`` in any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulling: Progress | None = None

    def prepare(self, config: EngineConfig) -> EngineConfig:
        """The same config with its model as a local path. Raises SDB-MODEL-MISSING or SDB-PULL-*."""
        if config.kind not in KINDS_WITH_MODELS:
            return config
        try:
            return replace(config, model=str(resolve_model(config.model, self._note)))
        finally:
            with self._lock:
                self._pulling = None

    def progress(self) -> tuple[ProgressStatus, ...]:
        """The download under way, if there is one."""
        with self._lock:
            return () if self._pulling is None else (ProgressStatus(**asdict(self._pulling)),)

    def _note(self, progress: Progress) -> None:
        with self._lock:
            self._pulling = progress
