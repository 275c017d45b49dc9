"""What the image engine gives a sender beside it: each generated picture, as the bridge gets it too."""

import numpy as np
import pytest

from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.frame import Chunk, Frame
from sdbridge.parameters.table import TABLE


@pytest.mark.parametrize("frames", [1, 2])
def test_every_generated_picture_is_shown_where_it_was_made(checkpoint, frames: int) -> None:
    engine = ImageEngine(EngineConfig(model=str(checkpoint("sd15", "turbo")), device="cpu", threads=1))
    values = {**TABLE.defaults(), "width": 64, "height": 64, "prompt.1.text": "fox", "frame_batch": frames}
    engine.load(values)
    engine.warm_up(64, 64)
    shown = []
    assert engine.gpu_output is None
    engine.gpu_output = lambda tensor: shown.append(tensor.clone())
    made = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 4), dtype=np.uint8)
        entries = tuple({"main": Frame(pixels, number * frames + n, 0)} for n in range(frames))
        chunk = engine.tick(Chunk(entries))
        made += [entry["generated"].pixels.copy() for entry in chunk.frames] if chunk is not None else []
    engine.unload()
    assert len(made) >= 2 and len(shown) == len(made)
    for tensor, pixels in zip(shown, made, strict=True):
        assert tuple(tensor.shape) == (64, 64, 4) and (tensor.numpy() == pixels).all()
