"""The engine as the bridge knows it: one that runs, whichever process that is at the moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sdbridge.clock import Clock
from sdbridge.config import EngineSection
from sdbridge.engine.client import EngineClient
from sdbridge.engine.interface import EngineConfig, EngineState
from sdbridge.engine.pipe import Wake
from sdbridge.frame import Frame, Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Change, ParameterStore

log = logging.getLogger(__name__)

#: Parameters with effect "bridge" that the engine loop wants all the same, to pace itself.
PASSED_ON = frozenset({"output.fps"})


class RunningEngine:
    """Starts, feeds, replaces and ends engines. Methods may be called from any thread."""

    def __init__(
        self,
        section: EngineSection,
        store: ParameterStore,
        clock: Clock,
        ready: Wake,
        note: Callable[[str], None],
    ) -> None:
        self._section = section
        self._store = store
        self._clock = clock
        self._ready = ready
        self._note = note
        self.client: EngineClient | None = None

    @property
    def state(self) -> EngineState:
        return self.client.state if self.client is not None else EngineState.STOPPED

    def start(self) -> None:
        values, revision = self._store.snapshot()
        client = EngineClient(
            engine_config(self._section, values),
            self._for_engine(values),
            revision,
            self._ready,
            self._on_event,
            in_process=self._section.in_process,
        )
        self.client = client
        client.start()

    def stop(self) -> None:
        if self.client is not None:
            self.client.stop()

    def kill(self) -> None:
        if self.client is not None:
            self.client.stop(timeout_s=0.0)

    @property
    def size(self) -> tuple[int, int]:
        """The size that frames must be fitted to now."""
        client = self.client
        if client is not None:
            return client.size
        return int(self._store.get("width")), int(self._store.get("height"))

    def offer(self, role: Role, frame: Frame) -> None:
        if self.client is not None:
            self.client.offer(role, frame)

    def take(self, role: Role) -> Frame | None:
        return self.client.take(role) if self.client is not None else None

    def change(self, change: Change) -> None:
        """Pass on what the engine has a use for: everything live, and what paces its loop."""
        values = self._for_engine(change.values)
        values.update(self._for_engine(dict.fromkeys(change.triggers, True)))
        if values and self.client is not None:
            self.client.change(values, change.revision)

    def _for_engine(self, values: Mapping[str, Value]) -> dict[str, Value]:
        rows = self._store.table.rows
        return {n: v for n, v in values.items() if rows[n].effect != "bridge" or n in PASSED_ON}

    def _on_event(self, client: EngineClient, kind: str, what: Any) -> None:
        if kind == "state":
            log.info("engine %s: %s", client.config.kind, what)
        elif kind == "error":
            self._note(str(what))
        elif kind == "rejected":
            for rejection in what:
                self._note(f"{rejection.code}: {rejection.message}")


def engine_config(section: EngineSection, values: Mapping[str, Value]) -> EngineConfig:
    """What a new engine is told: the config's section, with the parameters that reload laid over it."""
    vae = str(values.get("vae", "auto"))
    acceleration = str(values.get("acceleration", "auto"))
    return EngineConfig(
        kind=section.kind,
        model=str(values.get("model", "")) or section.model,
        device=section.device,
        dtype=section.dtype,
        vae=vae if vae != "auto" else section.vae,
        acceleration=acceleration if acceleration != "auto" else section.acceleration,
        threads=section.threads,
        options={"allow_pickle": section.allow_pickle, **section.options},
    )
