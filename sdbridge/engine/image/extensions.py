"""Which extensions a stream carries, and in which order their hooks run."""

from __future__ import annotations

from sdbridge.engine.image.controlnet import ControlNets
from sdbridge.engine.image.lora import LoraSlots
from sdbridge.engine.image.seams import ExtensionContext, StreamExtension
from sdbridge.engine.image.weights import store_of


def build_extensions(context: ExtensionContext) -> tuple[StreamExtension, ...]:
    """Make every extension for one loaded model. They live as long as the model does."""
    store = store_of(context.model)
    return (LoraSlots(context, store), ControlNets(context))
