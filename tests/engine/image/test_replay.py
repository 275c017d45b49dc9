"""The same pictures, prompt and seed give the same bytes from an engine started anew; others do not."""

from __future__ import annotations

import numpy as np
import pytest

from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.frame import Chunk, Frame
from sdbridge.models import embedded_model
from sdbridge.textures.demo_scene import DemoScene

pytestmark = pytest.mark.skipif(
    not embedded_model.is_present(), reason="the embedded model's weights are not in this checkout"
)


def paint(pictures: list[np.ndarray], seed: int = 2) -> list[bytes]:
    """What a new engine makes of ``pictures``, in two steps each; prompt and strength change midway."""
    engine = ImageEngine(EngineConfig(model=str(embedded_model.EMBEDDED_DIR), device="cpu", threads=1))
    engine.load({"prompt.1.text": "fire", "steps": 2, "strength": 0.7, "seed.1.value": seed})
    engine.warm_up(128, 128)
    made = []
    for number, pixels in enumerate(pictures):
        if number == 3:
            engine.apply({"prompt.1.text": "ice in emerald", "strength": 0.9}, 1)
        painted = engine.tick(Chunk.of(Frame(pixels, number, 0)))
        if painted is not None:
            made.append(painted.frames[0]["generated"].pixels.tobytes())
    engine.unload()
    return made


def test_a_replay_is_equal_to_the_bit_and_another_input_or_seed_is_not() -> None:
    scene = DemoScene(128, 128)
    film = [scene.draw(second / 3) for second in range(6)]
    first = paint(film)
    assert len(set(first)) == len(first) >= 5, "every picture is another one"
    assert paint(film) == first
    assert not set(paint([scene.draw(30 + second / 3) for second in range(6)])) & set(first)
    assert not set(paint(film, seed=3)) & set(first)
