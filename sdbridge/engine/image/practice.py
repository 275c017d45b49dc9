"""What a parameter may switch on at any frame, run once before the first: a GPU loads code at its first use.

Loading the code of one operation takes a millisecond or several, and a blend of prompts, a blur or another
mode of guidance has a dozen: single frames were late by 10 to 37 ms the first time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.bank_memory import fuse, merge
from sdbridge.engine.image.blend import Blend, Blender
from sdbridge.engine.image.feedback import feed_back
from sdbridge.engine.image.guidance import Guidance, Mode
from sdbridge.engine.image.pictures import from_rgba, to_float, to_rgba
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.schedule import SAMPLERS, plan_steps
from sdbridge.engine.image.seams import StreamExtension, UnetCall
from sdbridge.engine.image.stream import StreamBatch
from sdbridge.engine.image.text import TextEmbedding
from sdbridge.engine.image.travellers import Entering, FrameTag
from sdbridge.errors import first_line

log = logging.getLogger(__name__)

_MODES: tuple[Mode, ...] = ("none", "self", "initialize", "full")
_BLENDS: tuple[Blend, ...] = ("linear", "slerp")
_SIDE = 8  # of the latents: which code an operation takes does not hang on it


@torch.inference_mode()
def practise(
    model: Any, extensions: Sequence[StreamExtension], width: int, height: int, rows: int = 1
) -> None:
    """On pictures of this size and ``rows`` of the stream batch, where what is loaded may hang on them.

    The running stream is not touched.
    """
    try:
        _texts(model)
        _steps(model)
        _bank(model)
        _pictures(model.device, extensions, width, height, rows)
    except RuntimeError as error:  # the stream does without; whoever asks for it will hear of it
        log.info("not everything could be tried beforehand: %s", first_line(error))


def _texts(model: Any) -> None:
    width = int(model.unet.config.cross_attention_dim)
    draw = torch.Generator().manual_seed(1)
    tokens = [torch.randn(1, 77, width, generator=draw).to(model.device, model.dtype) for _ in range(3)]
    texts = [TextEmbedding(each, each[:, 0]) for each in tokens]
    for blend in _BLENDS:
        for count in (2, 3):
            for normalize in (True, False):
                shares = [0.5, 0.3, 0.4][:count]
                Blender().mix(texts[:count], shares, blend, normalize=normalize, blank=texts[0])


def _steps(model: Any) -> None:
    """Every sampler and mode of guidance, more steps and fewer, feedback."""
    stream = StreamBatch(model)
    source = torch.randn(1, model.latent_channels, _SIDE, _SIDE).to(model.device, stream.precision)
    text = TextEmbedding(torch.zeros(1, 77, 8, device=model.device, dtype=model.dtype))
    conditioning = Conditioning(text, text)
    number = 0
    for sampler in SAMPLERS:
        for indices in ((10,), (10, 20), (5, 15, 25), (10,)):
            plan = plan_steps(model.schedule, sampler, 50, indices)
            stream.prepare(plan, 1, tuple(source.shape[1:]))  # type: ignore[arg-type]
            stream.set_noise(torch.randn(len(indices), *source.shape[1:]))
            for mode in _MODES:
                number += 1
                entering = Entering(source, source, (FrameTag(number, 0),))
                stream.run(entering, Guidance(mode, 1.5, 0.9), conditioning, _noise)
    feed_back(source, source + 1, 0.5)


def _bank(model: Any) -> None:
    """The feature bank's fusion and merging: loading their code beside the stream held a frame up too."""
    kv = torch.randn(2, 64, 32).to(model.device, model.dtype)
    strength = torch.zeros(2, dtype=model.dtype, device=model.device)
    strength[0].fill_(0.5)
    fuse(kv[:, :32], kv[:, 32:], strength[0], strength[1])
    order = torch.arange(64).to(model.device)
    torch._foreach_copy_([kv[:, 32:]], merge([kv], order, kv[..., :16]))
    kv.unflatten(1, (-1, 32)).copy_(kv[:, :32].unsqueeze(1))


def _noise(call: UnetCall) -> Tensor:
    return call.sample


def _pictures(
    device: torch.device, extensions: Sequence[StreamExtension], width: int, height: int, rows: int
) -> None:
    """Pictures of another size than the stream's, and what the extensions may do to one."""
    rgba = torch.zeros(height + 8, width + 8, 4, dtype=torch.uint8, device=device)
    picture = to_float(rgba, height, width)
    from_rgba(rgba[None])
    to_rgba(picture[:, :3])
    for extension in extensions:
        extension.practise(picture, rows)
