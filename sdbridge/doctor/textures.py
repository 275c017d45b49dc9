"""Findings about textures: which backends run here and why not, and whether NDI sources can be discovered."""

from __future__ import annotations

from collections.abc import Iterator

from sdbridge.doctor.finding import Finding
from sdbridge.textures import registry


def check_textures() -> Iterator[Finding]:
    for name in registry.receiver_names():
        available, reason = registry.receiver_available(name)
        yield Finding(f"receive {name}", "good" if available else "note", reason)
    for name in registry.sender_names():
        available, reason = registry.sender_available(name)
        yield Finding(f"send {name}", "good" if available else "note", reason)
    for text, step in registry.diagnose():
        yield Finding("discovery", "note", text, step)
