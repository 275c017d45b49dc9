"""The library: ten lines, every picture painted once, errors by code."""

from __future__ import annotations

import numpy as np
import pytest

from sdbridge.engine.image import Stream
from sdbridge.errors import SdbridgeError


def pictures(count: int, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (64, 80, channels), dtype=np.uint8) for _ in range(count)]


def test_ten_lines_paint_every_picture_once_and_in_order(checkpoint) -> None:
    with Stream(checkpoint(), prompt="a fox", width=80, height=64, scheduler="lcm", steps=3) as stream:
        painted = list(stream.paint(pictures(5)))
    assert len(painted) == 5
    assert all(p.shape == (64, 80, 3) and p.dtype == np.uint8 for p in painted)
    with Stream(checkpoint(), prompt="a fox", width=80, height=64, scheduler="lcm", steps=3) as stream:
        for picture in pictures(5)[:3]:
            first = stream(picture)
    assert first is not None and np.array_equal(first, painted[0])


def test_parameters_are_set_by_name_and_texts_hold_from_the_next_picture(checkpoint) -> None:
    picture = pictures(1, 4)[0]
    with Stream(checkpoint(), prompt="a fox", width=80, height=64) as stream:
        before = stream(picture)
        stream.set({"prompt.2.text": "ice", "prompt.2.weight": 1}, strength="0.9", similarity__enabled=False)
        after = stream(picture)
        assert before is not None and after is not None and not np.array_equal(before, after)
        assert after.shape == (64, 80, 4)
        for bad, code in (
            ({"strenth": 1}, "SDB-PARAM-UNKNOWN"),
            ({"strength": float("nan")}, "SDB-PARAM-NAN"),
            ({"step_indices": "9,1"}, "SDB-ENGINE-STEPS"),
        ):
            with pytest.raises(SdbridgeError) as caught:
                stream.set(bad)
            assert caught.value.code == code
        assert np.array_equal(stream(picture), after), "a refused value changes nothing"
        stream.set(mode="txt2img")
        assert stream().shape == (64, 80, 4)
        with pytest.raises(SdbridgeError, match="SDB-FRAME-FORMAT"):
            stream(picture.astype(np.float32))


def test_a_missing_model_is_an_error_with_the_next_step(tmp_path) -> None:
    with pytest.raises(SdbridgeError, match="sdbridge pull"):
        Stream(tmp_path / "nothing")


def test_the_model_in_the_package_and_what_was_pulled_go_by_their_names(
    checkpoint, monkeypatch, tmp_path
) -> None:
    import shutil

    from sdbridge.models import catalog, embedded_model

    if embedded_model.is_present():
        with Stream("embedded", prompt="fire", width=64, height=64) as stream:
            assert stream(pictures(1)[0]).shape == (64, 64, 3)
    monkeypatch.setattr(catalog, "local_path", lambda model: None)
    with pytest.raises(SdbridgeError, match="sdbridge pull sd-turbo"):
        Stream("sd-turbo")
    shutil.copytree(checkpoint(), tmp_path / "pulled")
    monkeypatch.setattr(
        catalog, "local_path", lambda model: tmp_path / "pulled" if model == "sd-turbo" else None
    )
    with Stream("sd-turbo", width=64, height=64) as stream:
        assert stream(pictures(1)[0]).shape == (64, 64, 3)
