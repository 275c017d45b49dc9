"""Frames: what the contract accepts and what it refuses with words."""

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame, check_pixels


def test_sizes_are_width_and_height():
    frame = Frame(np.zeros((3, 5, 4), np.uint8), 1, 0)
    assert (frame.width, frame.height) == (5, 3)


def test_a_chunk_gives_its_newest_main_frame():
    first, second = (Frame(np.zeros((2, 2, 4), np.uint8), i, 0) for i in (1, 2))
    assert Chunk(({"main": first}, {"main": second})).main is second
    assert Chunk.of(first, control=second).frames[0]["control"] is second


def test_pixels_that_keep_the_contract_are_not_copied():
    pixels = np.zeros((2, 2, 4), np.uint8)
    assert check_pixels(pixels) is pixels
    assert check_pixels(pixels[::-1]).flags.c_contiguous


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((2, 2, 4), np.float32),
        np.zeros((0, 2, 4), np.uint8),
        np.zeros((2, 2)),
    ],
    ids=["three channels", "float", "empty", "flat"],
)
def test_other_pixels_are_refused_with_their_shape(pixels):
    with pytest.raises(SdbridgeError, match="SDB-FRAME-FORMAT") as caught:
        check_pixels(pixels)
    assert str(pixels.shape) in str(caught.value)
