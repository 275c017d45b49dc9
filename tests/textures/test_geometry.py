"""Every turn, mirror, fit and alpha against pictures small enough to reason about."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbridge.config import TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.textures.geometry import fit_frame
from sdbridge.textures.test_card import TestCard

A, B, C, D, E, F = ([n, n + 1, n + 2, 190 + n] for n in (10, 20, 30, 40, 50, 60))
BLACK = [0, 0, 0, 255]
SMALL = np.array([[A, B, C], [D, E, F]], np.uint8)


def shaped(pixels: np.ndarray, width: int = 0, height: int = 0, **how: object) -> list:
    return fit_frame(pixels, width, height, TextureConfig(**{"fit": "native", **how})).tolist()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [[A, B, C], [D, E, F]]),
        ({"flip_vertical": True}, [[D, E, F], [A, B, C]]),
        ({"flip_horizontal": True}, [[C, B, A], [F, E, D]]),
        ({"flip_horizontal": True, "flip_vertical": True}, [[F, E, D], [C, B, A]]),
        ({"rotate": 90}, [[D, A], [E, B], [F, C]]),  # clockwise: the left column comes on top, bottom first
        ({"rotate": 180}, [[F, E, D], [C, B, A]]),
        ({"rotate": 270}, [[C, F], [B, E], [A, D]]),
        ({"rotate": 90, "flip_vertical": True}, [[A, D], [B, E], [C, F]]),  # mirrored first, then turned
        ({"rotate": 90, "flip_horizontal": True}, [[F, C], [E, B], [D, A]]),
    ],
)
def test_turns_and_mirrors_move_every_pixel_where_it_belongs(how: dict, expected: list) -> None:
    assert shaped(SMALL, **how) == expected


def test_native_centres_crops_and_adds_opaque_black() -> None:
    assert shaped(SMALL, 1, 2) == [[B], [E]]
    assert shaped(SMALL, 5, 2) == [[BLACK, A, B, C, BLACK], [BLACK, D, E, F, BLACK]]
    assert shaped(SMALL, 1, 4) == [[BLACK], [B], [E], [BLACK]]


def test_fill_covers_and_cuts_the_overhang_from_both_sides() -> None:
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)
    filled = fit_frame(wide, 40, 40, TextureConfig(fit="fill"))
    assert filled.shape == (40, 40, 4)
    assert (filled == (0, 255, 0, 255)).all(), "only the middle third is seen"


def test_fit_shows_everything_between_black_bars() -> None:
    wide = np.full((10, 30, 4), (255, 0, 0, 255), np.uint8)
    fitted = fit_frame(wide, 60, 60, TextureConfig(fit="fit"))
    assert (fitted[:20] == BLACK).all() and (fitted[40:] == BLACK).all()
    assert (fitted[20:40] == (255, 0, 0, 255)).all()


def test_stretch_reaches_all_edges() -> None:
    halves = np.zeros((10, 30, 4), np.uint8)
    halves[:, :15] = 255
    stretched = fit_frame(halves, 40, 40, TextureConfig(fit="stretch"))
    assert (stretched[:, :17] == 255).all() and (stretched[:, 23:] == 0).all()


def test_a_frame_that_fits_comes_back_uncopied() -> None:
    for fit in ("fill", "fit", "stretch", "native"):
        assert fit_frame(SMALL, 3, 2, TextureConfig(fit=fit)) is SMALL


def test_alpha_is_kept_set_or_taken_and_the_source_is_left_alone() -> None:
    before = SMALL.copy()
    assert (fit_frame(SMALL, 3, 2, TextureConfig(alpha="keep"))[..., 3] == SMALL[..., 3]).all()
    opaque = fit_frame(SMALL, 3, 2, TextureConfig(alpha="opaque"))
    assert (opaque[..., 3] == 255).all() and (opaque[..., :3] == SMALL[..., :3]).all()
    other = np.full((2, 3, 4), 77, np.uint8)
    taken = fit_frame(SMALL, 3, 2, TextureConfig(alpha="input"), alpha_from=other)
    assert (taken[..., 3] == 77).all() and (taken[..., :3] == SMALL[..., :3]).all()
    assert fit_frame(SMALL, 3, 2, TextureConfig(alpha="input")) is SMALL, "nothing to take it from: kept"
    assert (before == SMALL).all()


def test_red_and_blue_change_places_and_nothing_else() -> None:
    assert shaped(SMALL, swap_red_blue=True) == [
        [[p[2], p[1], p[0], p[3]] for p in row] for row in SMALL.tolist()
    ]
    before = SMALL.copy()
    turned = fit_frame(
        SMALL, 2, 3, TextureConfig(swap_red_blue=True, rotate=90, fit="native", alpha="opaque")
    )
    assert turned[0, 1].tolist() == [A[2], A[1], A[0], 255] and turned.flags.c_contiguous
    cut = fit_frame(np.tile(SMALL, (8, 8, 1)), 5, 7, TextureConfig(swap_red_blue=True, fit="native"))
    assert cut.shape == (7, 5, 4) and (before == SMALL).all(), "the source is left alone"


def test_alpha_of_another_size_is_scaled() -> None:
    other = np.zeros((40, 40, 4), np.uint8)
    other[:, 20:, 3] = 255
    taken = fit_frame(np.zeros((8, 8, 4), np.uint8), 8, 8, TextureConfig(alpha="input"), alpha_from=other)
    assert (taken[:, :4, 3] == 0).all() and (taken[:, 4:, 3] == 255).all()


def test_flat_colours_survive_scaling() -> None:
    for colour in (
        (255, 0, 0, 255),
        (0, 255, 0, 128),
        (0, 0, 255, 0),
        (128, 128, 128, 9),
        (17, 200, 99, 255),
    ):
        flat = np.full((48, 64, 4), colour, np.uint8)
        for size in ((31, 17), (128, 200)):
            scaled = fit_frame(flat, *size, TextureConfig(fit="stretch")).astype(int)
            assert abs(scaled - colour).max() <= 1


def test_a_large_source_keeps_its_picture() -> None:
    card = TestCard(1920, 1080).draw(0)
    large = np.repeat(np.repeat(card, 4, axis=0), 4, axis=1)
    expected = fit_frame(card, 480, 270, TextureConfig(fit="stretch")).astype(int)
    shrunk = fit_frame(large, 480, 270, TextureConfig(fit="stretch")).astype(int)
    assert abs(shrunk - expected).mean() < 1.0


def test_rotation_of_a_scaled_picture_is_the_scaled_picture_rotated() -> None:
    card = TestCard(320, 180).draw(7)
    turned_first = fit_frame(np.ascontiguousarray(np.rot90(card, -1)), 90, 160, TextureConfig(fit="stretch"))
    scaled_first = fit_frame(card, 90, 160, TextureConfig(fit="stretch", rotate=90))
    assert abs(turned_first.astype(int) - scaled_first).mean() < 1.0


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    fit=st.sampled_from(["fill", "fit", "stretch", "native"]),
    rotate=st.sampled_from([0, 90, 180, 270]),
    flips=st.tuples(st.booleans(), st.booleans()),
    alpha=st.sampled_from(["keep", "opaque", "input"]),
)
def test_any_size_and_any_setting_gives_the_wanted_array(source, wanted, fit, rotate, flips, alpha) -> None:
    pixels = np.full((source[1], source[0], 4), 200, np.uint8)
    config = TextureConfig(
        fit=fit, rotate=rotate, flip_horizontal=flips[0], flip_vertical=flips[1], alpha=alpha
    )
    fitted = fit_frame(pixels, *wanted, config, alpha_from=pixels)
    own = (source[1], source[0]) if rotate in (90, 270) else source
    width, height = wanted if all(wanted) else own
    assert fitted.shape == (height, width, 4)
    assert fitted.dtype == np.uint8 and fitted.flags.c_contiguous


def test_views_with_odd_strides_are_understood() -> None:
    card = TestCard(64, 48).draw(3)
    for view in (card[::-1], card[:, ::-1], card[::2, ::3], card[5:, 7:], np.asfortranarray(card)):
        expected = fit_frame(np.ascontiguousarray(view), 32, 32, TextureConfig())
        assert (fit_frame(view, 32, 32, TextureConfig()) == expected).all()
        assert (fit_frame(view, 0, 0, TextureConfig(fit="native")) == view).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.float32),
        np.zeros((0, 4, 4), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused_with_its_shape(pixels: np.ndarray) -> None:
    with pytest.raises(SdbridgeError, match="SDB-FRAME-FORMAT"):
        fit_frame(pixels, 8, 8, TextureConfig())
