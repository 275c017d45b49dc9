"""Where the bridge's receivers and senders come from: the registry here, fakes in tests."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sdbridge.config import OutputConfig, TextureConfig
from sdbridge.textures import auto, first_source, registry
from sdbridge.textures.stub import Receiver, Sender

AUTO = "auto"

log = logging.getLogger(__name__)


class Textures:
    """Makes the backend that a config names. ``auto`` is decided here and the reason is logged."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}  # what was chosen last, by input or output

    def receiver(self, config: TextureConfig) -> tuple[str, Receiver]:
        """(backend, receiver), not open yet. May take a second or two when ``auto`` looks for sources."""
        backend = config.backend
        if backend == AUTO:
            backend, why = auto.choose_receiver(config.name)
            self._say_once(f"input auto {config.name}".strip(), backend, why)
            if backend == "test_pattern" and not config.name:
                return AUTO, first_source.Receiver("", config.options)
        return backend, registry.receiver_class(backend)(config.name, config.options)

    def sender(self, config: OutputConfig, default_name: str) -> tuple[str, Sender]:
        """(backend, sender), not open yet."""
        backend = config.backend
        if backend == AUTO:
            backend, why = auto.choose_sender()
            self._say_once(f"output auto {config.name}".strip(), backend, why)
        return backend, registry.sender_class(backend)(config.name or default_name, config.options)

    def _say_once(self, who: str, backend: str, why: str) -> None:
        """What would not open is tried every second; the same choice again is no news."""
        line = f"{who} takes {backend}: {why}"
        if self._said.get(who) != line:
            self._said[who] = line
            log.info("%s", line)

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        """``(name, available, reason)`` of each receiver (``"in"``) or sender (``"out"``) backend."""
        if direction == "in":
            return [(name, *registry.receiver_available(name)) for name in registry.receiver_names()]
        return [(name, *registry.sender_available(name)) for name in registry.sender_names()]

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        """``(name, detail)`` of what a receiver backend can see now."""
        return [(source.name, source.detail) for source in registry.list_sources(backend)]
