"""Image hooks: each does what its name says, live, and at 0 nothing at all."""

from __future__ import annotations

import torch

from sdbridge.engine.image.hooks import FinishedPicture, ImageHooks, Upscale, colours
from tests.engine.image.test_controlnet import SIZE, latent, picture


def chain(**values: object) -> tuple[ImageHooks, Upscale]:
    finished = FinishedPicture()
    hooks, upscale = ImageHooks(finished), Upscale(finished)
    changes = {name.replace("_", ".", 1): value for name, value in values.items()}
    hooks.apply(changes)
    upscale.apply({name: value for name, value in changes.items() if name == "post.upscale"})
    return hooks, upscale


def test_everything_at_zero_is_the_very_picture() -> None:
    hooks, upscale = chain(pre_blur=0.0, post_upscale="off", pre_feedback=0.0)
    image = picture(1)[:, :3]
    assert hooks.before_encode(image, {"main": picture(1)}) is image
    luggage = hooks.enter({"main": picture(1)}, latent(1))
    assert upscale.after_decode(hooks.after_decode(image, luggage), [None]) is image


def detail(image: torch.Tensor) -> float:
    return float(image.diff(dim=-1).abs().mean())


def test_blur_takes_detail_and_sharpen_gives_it() -> None:
    image = picture(1)[:, :3] * 0.5 + 0.25
    for place in ("pre", "post"):
        for name, less in (("blur", True), ("sharpen", False)):
            hooks, _ = chain(**{f"{place}_{name}": 1.5})
            if place == "pre":
                out = hooks.before_encode(image, {})
            else:
                out = hooks.after_decode(image, [None])
            assert (detail(out) < detail(image)) is less
            assert out.min() >= 0 and out.max() <= 1


def test_colour_match_moves_towards_the_frames_own_input() -> None:
    hooks, _ = chain(post_color_match=1.0)
    warm = picture(1, 2)
    warm[0, 0] = warm[0, 0] * 0.2 + 0.7
    warm[1, 2] = warm[1, 2] * 0.2 + 0.7
    luggage = hooks.enter({"main": warm}, latent(1, rows=2))
    image = picture(3, 2)[:, :3] * 0.3
    out = hooks.after_decode(image, luggage)
    for frame in (0, 1):
        wanted, got = colours(warm[frame, :3]), colours(out[frame])
        assert torch.allclose(got.mean, wanted.mean, atol=0.03)
    hooks.apply({"post.color_match": 0.5})
    half = hooks.after_decode(image, luggage)
    assert torch.allclose(half, (image + out) / 2, atol=1e-5)


def test_feedback_mixes_the_last_output_in_and_follows_a_new_size() -> None:
    hooks, upscale = chain(pre_feedback=0.25, post_upscale="2x")
    image, made = picture(1)[:, :3], picture(2)[:, :3]
    assert hooks.before_encode(image, {}) is image  # nothing went out yet
    assert upscale.after_decode(made, [None]).shape[-1] == 2 * SIZE
    assert torch.allclose(hooks.before_encode(image, {}), 0.75 * image + 0.25 * made)
    smaller = image[..., : SIZE // 2]
    assert hooks.before_encode(smaller, {}) is smaller
    hooks.reset("soft")
    assert hooks.before_encode(image, {}) is image


def test_feedback_stays_in_range_over_many_frames() -> None:
    hooks, upscale = chain(pre_feedback=1.0, post_sharpen=3.0)
    image = picture(1)[:, :3]
    for _ in range(50):
        image = upscale.after_decode(hooks.after_decode(hooks.before_encode(image, {}), [None]) * 1.3, [None])
    fed = hooks.before_encode(picture(2)[:, :3], {})
    assert fed.isfinite().all() and fed.min() >= 0 and fed.max() <= 1
