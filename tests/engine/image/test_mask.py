"""Inpainting: exact outside, blended inside, the same as diffusers, nine channels, misfits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdbridge.engine.image import still_file
from sdbridge.engine.image.mask import BLACK, InpaintMask, soften
from sdbridge.engine.image.pictures import to_pixels, to_tensor
from tests.engine.image.conditioning import Bench, make_bench, predict, relative, small_folder, small_parts
from tests.engine.image.test_controlnet import SIZE, _tokenizer, embeds, latent, picture


def mask_of(bench: Bench, **values: object) -> InpaintMask:
    mask = InpaintMask(bench.context)
    mask.resized(SIZE, SIZE, 1)
    change(bench, mask, **values)
    return mask


def change(bench: Bench, mask: InpaintMask, **values: object) -> None:
    assert mask.apply({f"mask.{name}": value for name, value in values.items()}) == ()
    bench.finish_loading()
    mask.frame_edge()


def half_mask(left: float = 0.0, right: float = 1.0) -> torch.Tensor:
    """RGBA mask picture, right half painted."""
    mask = torch.full((1, 4, SIZE, SIZE), left)
    mask[..., SIZE // 2 :] = right
    mask[:, 3] = 1.0
    return mask


def enter(mask: InpaintMask, roles: dict[str, torch.Tensor], frames: int = 1) -> Any:
    mask.before_encode(roles["main"][:, :3], roles)
    return mask.enter(roles, torch.zeros(frames, 4, SIZE // 8, SIZE // 8))


@pytest.mark.parametrize("soft", [0.0, 8.0, 13.0, 128.0])
def test_outside_is_the_input_to_the_last_bit(soft: float) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    mask = mask_of(make_bench(), source="input", soft=soft)
    roles = {"main": to_tensor(pixels, torch.device("cpu"), SIZE, SIZE), "mask": half_mask()}
    luggage = enter(mask, roles)
    out = to_pixels(mask.after_decode(picture(9)[:, :3], luggage))[0]
    reach = min(2 * round(soft / 4), SIZE - 2)
    kept = SIZE // 2 - reach
    if kept > 0:
        assert np.array_equal(out[:, :kept, :3], pixels[:, :kept, :3])
        assert reach <= soft / 2 + 2
    painted = to_pixels(picture(9)[:, :3])[0]
    if soft == 0:
        assert np.array_equal(out[:, SIZE // 2 :, :3], painted[:, SIZE // 2 :, :3])
    assert not np.array_equal(out, painted)


def test_every_byte_survives_the_way_to_floats_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(4).reshape(16, 16, 4)
    assert np.array_equal(
        to_pixels(to_tensor(pixels, torch.device("cpu"), 16, 16)[:, :3])[0, ..., :3], pixels[..., :3]
    )


def test_soft_edges_ramp_over_their_width_and_stay_zero_beyond() -> None:
    soft = soften(half_mask()[:, :1], 16)[0, 0, 20]
    edge = SIZE // 2
    assert torch.equal(soft[: edge - 8], torch.zeros(edge - 8))
    assert float(soft[edge - 1]) < 0.5 < float(soft[edge]) and bool((soft.diff() >= -1e-6).all())
    assert soft[edge + 8 :] == pytest.approx(torch.ones(edge - 8), abs=1e-5)
    assert torch.equal(soften(torch.full((1, 1, 8, 8), BLACK), 4), torch.zeros(1, 1, 8, 8))


def test_sources_and_invert() -> None:
    bench = make_bench()
    main = picture(1)
    main[:, 3] = half_mask()[:, 0]
    by_alpha = enter(mask_of(bench, source="alpha", soft=0.0), {"main": main})[0].masked.soft
    by_input = enter(mask_of(bench, source="input", soft=0.0), {"main": main, "mask": half_mask()})[
        0
    ].masked.soft
    inverted = enter(
        mask_of(bench, source="input", soft=0.0, invert=True), {"main": main, "mask": half_mask(1.0, 0.0)}
    )[0].masked.soft
    assert torch.equal(by_alpha, by_input) and torch.equal(by_alpha, inverted)
    mask = mask_of(bench, source="input")
    assert enter(mask, {"main": main}) == (None,) and mask.unused() == ("mask.source",)


def test_txt2img_has_nothing_to_keep() -> None:
    mask = mask_of(make_bench(), source="alpha")
    assert mask.enter({"main": picture(1)}, torch.zeros(1, 4, 8, 8)) == (None,)


def test_off_changes_nothing_at_all() -> None:
    mask = mask_of(make_bench())
    luggage = enter(mask, {"main": picture(1)})
    image, x0 = picture(2)[:, :3], latent(1)
    _, rows = predict(make_bench(), [], [], latent(3), [500], embeds("sd15"))
    assert mask.after_decode(image, luggage) is image
    assert mask.after_x0(replace(rows, luggage=luggage), x0) is x0


def test_latents_are_kept_outside_at_every_step_and_by_row() -> None:
    bench = make_bench()
    mask = mask_of(bench, source="input", soft=0.0)
    one = enter(mask, {"main": picture(1), "mask": half_mask()})[0]
    source = latent(7, rows=3)
    _, rows = predict(bench, [], [], latent(3, rows=3), [900, 500, 100], embeds("sd15"), source=source)
    x0 = latent(8, rows=3)
    kept = mask.after_x0(replace(rows, luggage=(one, None, one)), x0)
    for row in (0, 2):
        assert torch.equal(kept[row, :, :, :4], source[row, :, :, :4])
        assert torch.equal(kept[row, :, :, 4:], x0[row, :, :, 4:])
    assert torch.equal(kept[1], x0[1])


def ddim(family: str) -> Any:
    """A sampler whose last step ends at the clean estimate, as the stream does."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_pretrained(small_folder(family) / "scheduler", set_alpha_to_one=True)


def inpaint_pipeline(family: str) -> Any:
    import diffusers

    parts = small_parts(family)
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=_tokenizer(),
        unet=parts.unet,
        scheduler=ddim(family),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("family", ["sd15", "sd15-inpaint"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_as_diffusers_inpainting(
    family: Any, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four channels: blended at every step. Nine channels: the UNet is told. Three steps of four."""
    pipe = inpaint_pipeline(family)
    # The pipeline samples its encoder; the stream takes the mean.
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    image = picture(1)[:, :3]
    theirs = pipe(
        prompt_embeds=embeds("sd15"),
        negative_prompt_embeds=embeds("sd15", 6),
        image=image,
        mask_image=half_mask()[:, :1],
        generator=torch.Generator().manual_seed(3),
        height=SIZE,
        width=SIZE,
        num_inference_steps=4,
        strength=0.75,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    bench = make_bench(family)
    mask = mask_of(bench, source="input", soft=0.0)
    roles = {"main": torch.cat((image, torch.ones_like(image[:, :1])), dim=1), "mask": half_mask()}
    luggage = enter(mask, roles)
    scheduler = ddim(family)
    scheduler.set_timesteps(4)
    times = scheduler.timesteps[1:]
    source = bench.context.encode(image)
    x = scheduler.add_noise(source, latent(3), times[:1])
    negative = embeds("sd15", 6) if guidance > 1 else None
    for t in times:
        eps, rows = predict(
            bench, [mask], [luggage], x, [int(t)], embeds("sd15"), negative=negative, source=source
        )
        if negative is not None:
            positive, unwanted = eps.chunk(2)
            eps = unwanted + guidance * (positive - unwanted)
        alpha = scheduler.alphas_cumprod[t].sqrt()
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()
        x0 = mask.after_x0(replace(rows, luggage=tuple(luggage)), (x - sigma * eps) / alpha)
        x = scheduler.step((x - alpha * x0) / sigma, t, x).prev_sample
    assert relative(x, theirs) <= 1e-4


def test_nine_channels_without_a_mask_paint_everything() -> None:
    bench = make_bench("sd15-inpaint")
    mask = mask_of(bench)
    luggage = enter(mask, {"main": picture(1)})
    found, _ = predict(bench, [mask], [luggage], latent(3), [500], embeds("sd15"))
    empty, _ = predict(bench, [mask], [(None,)], latent(3), [500], embeds("sd15"))
    assert found.isfinite().all() and torch.equal(found, empty)
    assert bool((luggage[0].nine.cells == 1).all())


def test_mask_files_fit_or_are_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(still_file, "LOOK_S", 0.0)
    bench = make_bench()
    good = tmp_path / "good.png"
    Image.fromarray((half_mask()[0, 0].numpy() * 255).astype(np.uint8)).save(good)
    mask = mask_of(bench, source="file", file=str(good), soft=0.0)
    assert not bench.reports
    kept = enter(mask, {"main": picture(1)})[0].masked.soft
    assert torch.equal(kept, half_mask()[0, :1])
    Image.new("L", (100, 30)).save(tmp_path / "other.png")
    (tmp_path / "words.png").write_text("hello")
    for name, code, held in (
        ("other.png", "SDB-MASK-SIZE", "100x30"),
        ("words.png", "SDB-IMAGE-FORMAT", "5 bytes"),
        ("none.png", "SDB-FILE-MISSING", "none.png"),
    ):
        bench.reports.clear()
        change(bench, mask, file=str(tmp_path / name))
        ((told, message),) = bench.reports
        assert told == code and name in message and held in message
        assert torch.equal(enter(mask, {"main": picture(1)})[0].masked.soft, kept)
        assert mask.unused() == ("mask.file",)
    bench.reports.clear()
    Image.fromarray((255 - half_mask()[0, 0].numpy() * 255).astype(np.uint8)).save(tmp_path / "none.png")
    change(bench, mask, file=str(tmp_path / "none.png"))  # the same name again, now that it is there
    assert not bench.reports and mask.unused() == ()
    assert torch.equal(enter(mask, {"main": picture(1)})[0].masked.soft, 1 - kept)
    good.replace(tmp_path / "none.png")  # another picture under the same name
    for _ in range(8):
        mask.frame_edge()
        bench.finish_loading()
    assert torch.equal(enter(mask, {"main": picture(1)})[0].masked.soft, kept)
    mask.resized(32, 48, 1)  # an accepted mask follows the stream's size
    mask.before_encode(picture(1)[:, :3], {})
    assert mask.enter({"main": picture(1)[..., :48, :32]}, torch.zeros(1, 4, 6, 4))[0].masked.soft.shape == (
        1,
        48,
        32,
    )
    for side in (8, 24, SIZE):
        mask.resized(side, side, 1)
    assert torch.equal(enter(mask, {"main": picture(1)})[0].masked.soft, kept), "as it was drawn, to the bit"


def test_a_mask_drawn_for_the_stream_is_taken_up_by_the_engine_in_its_place(tmp_path: Path) -> None:
    """Which begins at the size that the stream has by then, and knows only what was told."""
    file = tmp_path / "mask.png"
    Image.fromarray((half_mask()[0, 0].numpy() * 255).astype(np.uint8)).save(file)
    mask = mask_of(make_bench(), source="file", file=str(file), soft=0.0)
    mask.resized(32, 48, 1)
    half = mask._still

    def successor(keepsakes: dict[str, bytes]) -> tuple[InpaintMask, Bench]:
        bench = make_bench()
        made = InpaintMask(bench.context)
        made.remember(keepsakes)
        made.resized(32, 48, 1)
        change(bench, made, source="file", file=str(file))
        return made, bench

    made, bench = successor(dict(mask.keepsakes()))
    assert half is not None and made._still is not None and torch.equal(made._still, half)
    assert not bench.reports and made.keepsakes() == mask.keepsakes()
    _, bench = successor({})
    assert [code for code, _ in bench.reports] == ["SDB-MASK-SIZE"]
    Image.new("L", (100, 30)).save(file)  # drawn for something else since
    _, bench = successor(dict(mask.keepsakes()))
    assert [code for code, _ in bench.reports] == ["SDB-MASK-SIZE"]
    cleared = mask_of(make_bench(), source="file", file="")
    assert cleared.keepsakes() == {"mask.fitted": b"null"}
