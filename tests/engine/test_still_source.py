"""A source that stands still sends nothing; a moved slider or a new text shows all the same."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from sdbridge.engine.client import EngineClient, wait_for_state
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig, EngineState
from sdbridge.engine.pipe import Wake
from sdbridge.frame import Frame
from sdbridge.models.small import build_small_checkpoint
from sdbridge.parameters.table import TABLE


def test_the_last_frame_is_painted_again_when_a_parameter_moves(tmp_path) -> None:
    ready = Wake()
    model = build_small_checkpoint(tmp_path / "m", distilled="turbo")
    values = {**TABLE.defaults(), "width": 64, "height": 64, "steps": 2, "prompt.1.text": "fox"}
    config = EngineConfig(kind="image", model=str(model), device="cpu", threads=1)
    client = EngineClient(config, values, 0, ready, lambda *event: None, in_process=True)
    client.start()
    try:
        assert wait_for_state(client, EngineState.STREAMING, 60)

        def newest_after(patience_s: float, rest_s: float = 0.6) -> np.ndarray | None:
            """What is shown once something came, in ``patience_s`` at most, and then nothing for a while."""
            shown: np.ndarray | None = None
            quiet_since = began = time.monotonic()
            while time.monotonic() - quiet_since < (rest_s if shown is not None else patience_s):
                assert time.monotonic() - began < 100, "it never rests"
                ready.wait(0.05)
                frame = client.take()
                if frame is not None:
                    shown, quiet_since = frame.pixels.copy(), time.monotonic()
            return shown

        def other_than(picture: np.ndarray | None) -> np.ndarray:
            """The first picture at rest that is another; texts and files are made ready beside the frames."""
            end = time.monotonic() + 60
            while time.monotonic() < end:
                found = newest_after(patience_s=1.0)
                if found is not None and (picture is None or not np.array_equal(found, picture)):
                    return found
            raise AssertionError("no other picture came")

        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
        client.offer("main", Frame(pixels, 1, time.monotonic_ns()))
        before = other_than(None)
        client.change({"strength": 0.9}, 1)
        moved = other_than(before)
        client.change({"prompt.1.text": "a very different ocean"}, 2)
        other = other_than(moved)
        assert any(newest_after(patience_s=0.5) is None for _ in range(20)), "then it rests"
        client.change({"mask.source": "file", "mask.file": str(tmp_path / "mask.png")}, 3)
        newest_after(patience_s=0.6)
        mask = Image.fromarray(np.zeros((64, 64), np.uint8))
        mask.save(tmp_path / "mask.part", format="png")
        (tmp_path / "mask.part").replace(tmp_path / "mask.png")
        other_than(other)  # what arrives beside the stream is taken up without a frame to bring it
    finally:
        client.stop()
        ready.close()


def test_a_still_engine_wants_no_frame(tmp_path) -> None:
    engine = ImageEngine(
        EngineConfig(model=str(build_small_checkpoint(tmp_path / "m")), device="cpu", threads=1)
    )
    assert not engine.wants_frame
    engine.load({})
    engine.warm_up(64, 64)
    from tests.engine.image.rig import frame

    engine.tick(frame(0))
    assert not engine.wants_frame
    engine.apply({"seed_mode": "walk"}, 1)
    assert engine.wants_frame
    engine.tick(frame(0))
    assert engine.wants_frame
    engine.unload()
