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

    def receiver(self, config: TextureConfig) -> tuple[str, Receiver]:
        """(backend, receiver), not open yet. May take a second or two when ``auto`` looks for sources."""
        backend = config.backend
        if backend == AUTO:
            backend, why = auto.choose_receiver(config.name)
            log.info("input auto takes %s: %s", backend, why)
            if backend == "test_pattern" and not config.name:
                return AUTO, first_source.Receiver("", config.options)
        return backend, registry.receiver_class(backend)(config.name, config.options)

    def sender(self, config: OutputConfig, default_name: str) -> tuple[str, Sender]:
        """(backend, sender), not open yet."""
        backend = config.backend
        if backend == AUTO:
            backend, why = auto.choose_sender()
            log.info("output auto takes %s: %s", backend, why)
        return backend, registry.sender_class(backend)(config.name or default_name, config.options)

    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        """``(name, available, reason)`` of each receiver (``"in"``) or sender (``"out"``) backend."""
        if direction == "in":
            return [(name, *registry.receiver_available(name)) for name in registry.receiver_names()]
        return [(name, *registry.sender_available(name)) for name in registry.sender_names()]

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        """``(name, detail)`` of what a receiver backend can see now."""
        return [(source.name, source.detail) for source in registry.list_sources(backend)]
