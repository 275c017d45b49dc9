"""Which extensions a stream carries, and in which order their hooks run."""

from __future__ import annotations

from sdbridge.engine.image.controlnet import ControlNets
from sdbridge.engine.image.hooks import FinishedPicture, ImageHooks, Upscale
from sdbridge.engine.image.ip_adapter import StyleImages
from sdbridge.engine.image.lora import LoraSlots
from sdbridge.engine.image.mask import InpaintMask
from sdbridge.engine.image.seams import ExtensionContext, StreamExtension
from sdbridge.engine.image.weights import store_of


def build_extensions(context: ExtensionContext) -> tuple[StreamExtension, ...]:
    """Make every extension for one loaded model. They live as long as the model does.

    The mask comes after ControlNets, which want the four latent channels, and after the image
    hooks, so that no hook touches what it keeps; upscaling comes last, for the whole picture.
    """
    finished = FinishedPicture()
    return (
        LoraSlots(context, store_of(context.model)),
        ControlNets(context),
        StyleImages(context),
        ImageHooks(finished),
        InpaintMask(context),
        Upscale(finished),
    )
