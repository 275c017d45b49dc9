"""The scene moves, repeats itself for the same second, and fits any size it allows."""

import numpy as np
import pytest

from sdbridge.textures.demo_scene import DemoScene, Receiver


@pytest.mark.parametrize("size", [(16, 16), (33, 17), (512, 512), (640, 360)])
def test_it_is_drawn_in_any_size(size: tuple[int, int]) -> None:
    picture = DemoScene(*size).draw(1.5)
    assert picture.shape == (size[1], size[0], 4) and picture.dtype == np.uint8
    assert (picture[..., 3] == 255).all()


def test_it_moves_and_is_the_same_at_the_same_second() -> None:
    scene = DemoScene(128, 128)
    assert (scene.draw(3.0) == scene.draw(3.0)).all()
    moved = (scene.draw(3.0) != scene.draw(4.0)).any(axis=2).mean()
    assert moved > 0.03


def test_there_is_sky_sun_land_and_water() -> None:
    picture = DemoScene(256, 256).draw(6.0)
    assert picture[2, 2, 2] > picture[2, 2, 0], "blue above"
    assert (picture[..., :3] == (255, 236, 170)).all(axis=2).sum() > 500, "the sun"
    assert len(np.unique(picture[200:, :, :3].reshape(-1, 3), axis=0)) > 5, "ripples"


def test_the_receiver_gives_it() -> None:
    with Receiver("", {"width": 64, "height": 48, "fps": 240}) as receiver:
        assert receiver.receive(1.0).shape == (48, 64, 4)
        assert receiver.connected and "64x48" in receiver.describe()
    assert receiver.receive(0.0) is None
