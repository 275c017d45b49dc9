"""A layer's cut covers the picture in as few turns of the card as it can."""

from __future__ import annotations

import pytest

from sdbridge.engine.accelerate import kernels
from sdbridge.engine.accelerate.kernels import choice
from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.tiles import Tile
from sdbridge.engine.accelerate.kernels.unet_conv import ConvProblem, parse_way


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("side", [64, 128, 256, 512, 768, 1024])
def test_walks_fill_the_card(frames: int, side: int) -> None:
    config = choice.walked((frames, side, side))
    assert config.by == "ring" and 1 <= config.rows <= 64
    programs = frames * -(-side // config.columns) * -(-side // config.rows)
    turns = -(-programs // 264)
    assert programs / (264 * turns) > 0.85 or config.rows == 1


def test_kinds_have_a_cut_at_any_size() -> None:
    for kind in choice.DEFAULTS:
        for side in (1, 8, 64, 512, 2048):
            assert choice.chosen(kind, 64, (1, side, side)).by == "taps"


def test_what_was_picked_is_remembered_for_its_shape_alone() -> None:
    mine = Config(2, 32)
    choice.remember("planes", 64, (3, 17, 19), mine)
    try:
        assert choice.chosen("planes", 64, (3, 17, 19)) is mine
        assert choice.chosen("planes", 64, (3, 17, 20)) is not mine
        assert choice.chosen("planes", 32, (3, 17, 19)) is not mine
    finally:
        choice._picked.clear()


@pytest.mark.parametrize(
    ("installed", "fits"),
    [
        ("3.5.1", True),
        ("3.6.0", True),
        ("3.7.1+git1", True),
        ("3.8.0", False),
        ("3.10.0", False),
        ("4.0", False),
    ],
)
def test_hopper_kernels_rest_with_a_triton_they_are_not_written_for(monkeypatch, installed, fits) -> None:
    monkeypatch.setattr(kernels.importlib.metadata, "version", lambda name: installed)
    kernels.gluon_fits.cache_clear()
    try:
        assert kernels.gluon_fits() == fits
        way = f"halo:{Tile(128, 64, 64, 4, 4, 8, stream=132)}"
        assert (parse_way(way, ConvProblem(1, 32, 32, 640, 640)) is not None) == fits
    finally:
        kernels.gluon_fits.cache_clear()
