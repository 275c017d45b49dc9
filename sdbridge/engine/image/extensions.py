"""Which extensions a stream carries, and in which order their hooks run."""

from __future__ import annotations

from sdbridge.engine.image.seams import ExtensionContext, StreamExtension


def build_extensions(context: ExtensionContext) -> tuple[StreamExtension, ...]:
    """Make every extension for one loaded model. They live as long as the model does."""
    return ()
