"""The image engine: StreamDiffusion's mathematics on stock diffusers, live in every parameter.

``from sdbridge.engine.image import Stream`` is the whole public library; see ``library.Stream``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdbridge.engine.image.library import Stream

__all__ = ["Stream"]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and diffusers take seconds, and most importers want one file only."""
    if name == "Stream":
        from sdbridge.engine.image.library import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
