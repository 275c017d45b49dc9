"""How a new engine is made: what it is told at birth, and what it missed until it could be told more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from sdbridge.config import EngineSection
from sdbridge.engine.client import EngineClient, OnEvent
from sdbridge.engine.interface import EngineConfig
from sdbridge.engine.pipe import Wake
from sdbridge.engine.preparation import Preparation, Prepare
from sdbridge.engine.registry import ENGINES
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import ParameterStore

#: Parameters with effect "bridge" that the engine loop wants all the same, to pace itself.
PASSED_ON = frozenset({"output.fps"})


class EngineMaker:
    """Makes engines from the config's section and the store's values; safe mode has its own section."""

    def __init__(
        self,
        section: EngineSection,
        store: ParameterStore,
        ready: Wake,
        on_event: OnEvent,
        prepare: Prepare,
        prepared: Callable[[], None],
    ) -> None:
        self._configured = section
        self._store = store
        self._ready = ready
        self._on_event = on_event
        self._preparation = Preparation(prepare, prepared)
        self._keepsakes: dict[str, bytes] = {}  # handed from each engine to the next
        self.section = section
        self.safe_mode = False

    @property
    def preparing(self) -> bool:
        """Whether a model is on its way, so that ``make`` gave nothing yet."""
        return self._preparation.under_way

    def forgive(self) -> None:
        """Make engines by the config again."""
        self.section = self._configured
        self.safe_mode = False

    def enter_safe_mode(self) -> dict[str, Value]:
        """Make engines of the model inside the package; gives the values that belong to that."""
        self.safe_mode = True
        known = self.section.kind in ENGINES or ":" in self.section.kind
        if self.section.kind == "image" or not known:
            self.section = self.section.model_copy(
                update={"kind": "image", "model": "embedded", "vae": "auto", "acceleration": "auto"}
            )
        defaults = self.for_engine(self._store.table.defaults())
        return {**defaults, "width": self.section.width, "height": self.section.height}

    def for_engine(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values that an engine is told."""
        rows = self._store.table.rows
        return {name: v for name, v in values.items() if rows[name].effect != "bridge" or name in PASSED_ON}

    def reload_values(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Those that only a new engine can follow."""
        rows = self._store.table.rows
        return {name: value for name, value in values.items() if rows[name].effect == "reload"}

    def make(self) -> EngineClient | None:
        """A new engine, not started; None while its model is on its way, whose arrival brings us here again.

        Raises SDB-MODEL-* and SDB-PULL-* if the model cannot be had.
        """
        values, revision = self._store.snapshot()
        told = self.for_engine(values)
        config = self._preparation.of(engine_config(self.section, told))
        if config is None:
            return None
        return EngineClient(
            config,
            told,
            revision,
            self._ready,
            self._on_event,
            in_process=self.section.in_process,
            keepsakes=self._keepsakes,
        )

    def start(self, client: EngineClient) -> None:
        """Start an engine that can be told already, and tell it what changed since it was made."""
        client.start()
        rows = self._store.table.rows
        with self._store.steady():
            values, revision = self._store.snapshot()
            missed = {
                name: value
                for name, value in self.for_engine(values).items()
                if client.values.get(name) != value and rows[name].effect != "reload"
            }
            if missed:
                client.change(missed, revision)


def spare_cores() -> int:
    """Threads for an engine on the CPU: all cores but one, which the bridge wants, and no more than four.

    Small models gain nothing from more (the embedded one at 256x256, two cores: 41 ms with one
    thread, 46 ms with two).
    """
    return max(1, min(4, (os.cpu_count() or 2) - 1))


def engine_config(section: EngineSection, values: Mapping[str, Value]) -> EngineConfig:
    """What a new engine is told: the config's section, with the parameters that reload laid over it."""
    vae = str(values.get("vae", "auto"))
    acceleration = str(values.get("acceleration", "auto"))
    base = EngineConfig(
        kind=section.kind,
        model=section.model,
        device=section.device,
        dtype=section.dtype,
        vae=section.vae,
        acceleration=section.acceleration,
        attention=section.attention,
        threads=section.threads or (0 if section.in_process else spare_cores()),
        options={"allow_pickle": section.allow_pickle, **section.options},
    )
    return replace(
        base,
        model=str(values.get("model", "")) or base.model,
        vae=vae if vae != "auto" else base.vae,
        acceleration=acceleration if acceleration != "auto" else base.acceleration,
    )
