"""Noise from seeds is the same everywhere and keeps its variance; the similarity filter is as published."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from sdbridge.engine.image.seed import NoiseSource, SeedSettings, blend_noise, noise_of
from sdbridge.engine.image.similarity import SimilarityFilter, SimilaritySettings, look, skip_probability
from tests.engine.image.rig import Rig, frame

SHAPE = (3, 4, 16, 16)


def test_a_seed_gives_what_diffusers_draws_and_does_not_depend_on_the_number_of_steps() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    theirs = randn_tensor((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(noise_of(7, SHAPE)[:1], theirs)
    assert torch.equal(noise_of(7, SHAPE)[:2], noise_of(7, (2, 4, 16, 16)))


def test_every_way_of_setting_a_seed_gives_the_same_noise(checkpoint) -> None:
    """Defect 18: `seed` and `seed_list` drew from different generators."""
    rig = Rig(checkpoint(), {"scheduler": "lcm", "guidance_mode": "none"})
    pictures = []
    for change in (
        {"seed__1__value": 5},
        {"seed__2__value": 5, "seed__2__weight": 1.0, "seed__1__weight": 0.0},
        {"seed__1__value": 5, "seed__1__weight": 0.3, "seed__2__weight": 0.0},
        {"seed__1__value": 5, "seed__1__weight": 1.0, "seed_mode": "walk", "seed_walk_speed": 0.0},
    ):
        rig.set(**change)
        pictures.append(rig.latent_of(frame(0)))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize("kind", ["linear", "slerp"])
def test_blends_keep_the_variance(kind: str) -> None:
    noises = [noise_of(seed, SHAPE) for seed in (1, 2, 3, 4)]
    for weights in ([1.0, 1.0, 1.0, 1.0], [0.1, 2.0, 0.5, 0.01]):
        assert float(blend_noise(noises, weights, kind).std()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(blend_noise(noises[:1], [0.2], kind), noises[0])


def test_a_walk_moves_smoothly_from_seed_to_seed_and_random_is_repeatable() -> None:
    source = NoiseSource()
    walk = SeedSettings(((5, 1.0),), mode="walk", walk_speed=1.0)
    steps = [source.noise(walk, SHAPE, t / 10)[0].clone() for t in range(0, 21)]
    assert torch.equal(steps[0], noise_of(5, SHAPE))
    assert torch.allclose(steps[10], noise_of(6, SHAPE), atol=1e-4)
    assert all(float(noise.std()) == pytest.approx(1, abs=0.03) for noise in steps)
    jumps = [float((b - a).norm() / a.norm()) for a, b in pairwise(steps)]
    assert max(jumps) < 0.2
    random = SeedSettings(((5, 1.0),), mode="random")
    source.reset()
    first = [source.noise(random, SHAPE, 0.0)[0].clone() for _ in range(3)]
    source.reset()
    again = [source.noise(random, SHAPE, 0.0)[0].clone() for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def picture(value: int, noise: int = 0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = np.full((16, 16, 4), value, np.int16) + rng.integers(-noise, noise + 1, (16, 16, 4))
    return base.clip(0, 255).astype(np.uint8)


def test_the_probability_is_the_published_one() -> None:
    a, b = picture(200, 40, 1), picture(200, 40, 2)
    x, y = (v[..., :3].astype(np.float64).reshape(-1) / 127.5 - 1 for v in (a, b))
    cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    settings = SimilaritySettings(True, "cosine", 0.5, 10)
    found = skip_probability(look(a), look(b), settings)
    assert found == pytest.approx(max(0.0, (cosine - 0.5) / 0.5), abs=1e-5)
    pixel = SimilaritySettings(True, "pixel", 0.9, 10)
    mse = float(((x - y) ** 2).mean())
    found = skip_probability(look(a), look(b), pixel)
    assert found == pytest.approx(min(1, max(0, 1 - mse / 0.1)), abs=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "pixel"])
def test_the_share_of_skipped_frames_is_the_probability(kind: str) -> None:
    settings = SimilaritySettings(True, kind, 0.8 if kind == "cosine" else 0.9, 1)
    reference = picture(200, 40, 1)
    skipped = tried = 0
    decide = SimilarityFilter(seed=3)
    wanted = skip_probability(look(reference), look(picture(200, 40, 2)), settings)
    assert 0.1 < wanted < 0.9
    for _ in range(2000):
        decide.forget()
        assert not decide.skip(reference, settings), "the first frame is always processed"
        skipped += decide.skip(picture(200, 40, 2), settings)
        tried += 1
    assert skipped / tried == pytest.approx(wanted, abs=0.04)


def test_alpha_plays_no_part_and_vectors_are_used_again() -> None:
    settings = SimilaritySettings(True, "cosine", 0.9999, 1000)
    decide = SimilarityFilter()
    first = picture(120, 100, 1)
    assert not decide.skip(first, settings)
    for alpha in range(20):
        again = first.copy()
        again[..., 3] = alpha * 12
        assert decide.skip(again, settings), "the same colours"
    assert not decide.skip(picture(120, 100, 2), settings)
    assert decide.skip(picture(120, 100, 2), settings) and not decide.skip(first, settings)
    held = {id(each.vector) for each in decide._reference} | {id(vector) for vector in decide._spare}
    for number in range(10):
        decide.skip(picture(120, 100, number), settings)
    now = {id(each.vector) for each in decide._reference} | {id(vector) for vector in decide._spare}
    assert now == held and len(now) == 2


def test_threshold_one_and_another_size_never_skip() -> None:
    decide = SimilarityFilter()
    never = SimilaritySettings(True, "cosine", 1.0, 100)
    assert not any(decide.skip(picture(9), never) for _ in range(20))
    always = SimilaritySettings(True, "cosine", 0.0, 100)
    decide.skip(picture(9), always)
    assert not decide.skip(np.full((8, 8, 4), 9, np.uint8), always)


def test_a_moving_second_input_is_not_skipped_over() -> None:
    settings = SimilaritySettings(True, "cosine", 0.9, 100)
    decide = SimilarityFilter()
    main, control = picture(200), [picture(10, 9, seed) for seed in range(3)]
    assert not decide.skip(main, settings, [control[0]])
    assert decide.skip(main, settings, [control[0]])
    assert not decide.skip(main, settings, [255 - control[1]])
    assert not decide.skip(main, settings), "an input that left is a change as well"
