"""The engine runs end to end: frames in, frames out with their ids, in every mode and family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.frame import Chunk, Frame
from sdbridge.models.small import build_small_checkpoint

SIZE = 64


def frame(number: int, size: int = SIZE) -> Chunk:
    pixels = np.random.default_rng(number).integers(0, 255, (size, size, 4), dtype=np.uint8)
    return Chunk.of(Frame(pixels, number, number * 1000))


def ids(chunk: Chunk | None) -> list[int] | None:
    return None if chunk is None else [entry["generated"].frame_id for entry in chunk.frames]


@pytest.fixture(params=["sd15", "sd21", "sdxl"])
def engine(request, tmp_path: Path):
    made = ImageEngine(
        EngineConfig(model=str(build_small_checkpoint(tmp_path / "m", request.param)), threads=1)
    )
    made.load({"prompt.1.text": "a fox", "steps": 3})
    made.warm_up(SIZE, SIZE)
    yield made
    made.unload()


def test_frames_come_out_in_order_n_minus_one_later_and_never_as_junk(engine: ImageEngine) -> None:
    assert engine.spec.pipeline_ticks == 2
    assert [ids(engine.tick(frame(k))) for k in range(6)] == [[0], [0], [0], [1], [2], [3]]
    assert [ids(chunk) for chunk in engine.flush()] == [[4], [5]]
    assert engine.flush() == ()
    assert engine.tick(None) is None


def test_bypass_gives_the_input_untouched_and_txt2img_needs_none(engine: ImageEngine) -> None:
    engine.apply({"mode": "bypass"}, 1)
    given = frame(1)
    made = engine.tick(given)
    assert made is not None and np.array_equal(made.frames[0]["generated"].pixels, given.main.pixels)
    engine.apply({"mode": "txt2img"}, 2)
    found = [ids(engine.tick(None)) for _ in range(4)]
    assert found[:2] == [None, None] and found[2] is not None and found[3] == [found[2][0] + 1]
