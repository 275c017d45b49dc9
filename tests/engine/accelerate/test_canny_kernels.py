"""Canny's kernels against its plain operations, bit for bit, by Triton's interpreter where no GPU is."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed")

from sdbridge.engine.accelerate import replay
from sdbridge.engine.accelerate.kernels import canny as kernels
from sdbridge.engine.preprocess import canny as plain
from sdbridge.engine.preprocess.base import Settings, blur, gaussian_taps, grey

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def picture(height: int, width: int, frames: int = 1, seed: int = 0) -> torch.Tensor:
    """Blocks, slopes and noise of whole bytes: plateaus and ties are common in it."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, height // 7 + 1, width // 9 + 1, generator=draw)
    shape = (height, width)
    blocks = torch.nn.functional.interpolate(coarse, shape, mode="nearest")
    slopes = torch.nn.functional.interpolate(coarse.flip(1), shape, mode="bilinear")
    noise = torch.rand(frames, 3, height, width, generator=draw) * 0.06
    return ((0.6 * blocks + 0.35 * slopes + noise).clamp(0, 1) * 255).round().div(255).to(DEVICE)


def thresholds(low: float, high: float) -> torch.Tensor:
    return torch.tensor([low, high], device=DEVICE) * plain.FULL_CONTRAST


def bits(flags: torch.Tensor) -> torch.Tensor:
    """``[F, H, W]`` of bools -> words of 64 pixels, the leftmost the lowest bit."""
    padded = torch.nn.functional.pad(flags.long(), (0, -flags.shape[-1] % 64))
    return (padded.unflatten(-1, (-1, 64)) << torch.arange(64, device=flags.device)).sum(-1)


SHAPES = [(33, 130, 2), (1, 1, 1)]


@pytest.mark.parametrize(("height", "width", "frames"), SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_luma_is_the_rounded_grey(height: int, width: int, frames: int, layout: torch.memory_format) -> None:
    image = torch.rand(frames, 4, height, width, device=DEVICE).contiguous(memory_format=layout)[:, :3]
    assert torch.equal(kernels.luma(image), (grey(image) * 255).round()[:, 0])


def test_luma_rounds_ties_to_even() -> None:
    image = (torch.arange(512, device=DEVICE) / 510).expand(1, 3, 1, 512)
    assert torch.equal(kernels.luma(image), (grey(image) * 255).round()[:, 0])


@pytest.mark.parametrize(("height", "width", "frames"), SHAPES)
@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_blur_is_the_plain_blur(height: int, width: int, frames: int, sigma: float) -> None:
    plane = kernels.luma(picture(height, width, frames))
    taps = gaussian_taps(sigma, plane.device, plane.dtype)
    wanted = blur(plane.double().unsqueeze(1), taps.double())[:, 0].float()
    assert torch.allclose(kernels.blur(plane, taps), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "frames", "low", "high", "blurred"),
    [(18, 72, 2, 0.1, 0.3, False), (18, 72, 1, 0.0, 0.0, True), (1, 1, 1, 0.0, 0.0, False)],
)
def test_edges_are_those_of_the_plain_operations(
    height: int, width: int, frames: int, low: float, high: float, blurred: bool
) -> None:
    image, given = picture(height, width, frames), thresholds(low, high)
    plane = kernels.luma(image)
    if blurred:
        plane = kernels.blur(plane, gaussian_taps(0.7, plane.device, plane.dtype))
    across, down = plain.sobel(plane.unsqueeze(1))
    tall = across.abs() + down.abs()
    ridge = plain.thin(tall, across, down)
    strong, weak = kernels.edges(plane, given)
    assert torch.equal(strong, bits((ridge & (tall > given[1]))[:, 0]))
    assert torch.equal(weak, bits((ridge & (tall > given[0]))[:, 0]))


@pytest.mark.parametrize(
    ("rounds", "height", "width", "frames"), [(64, 300, 200, 1), (5, 260, 321, 2), (70, 140, 150, 1)]
)
def test_growing_crosses_words_and_tiles_as_the_plain_form(
    monkeypatch: pytest.MonkeyPatch, rounds: int, height: int, width: int, frames: int
) -> None:
    draw = torch.Generator().manual_seed(rounds)
    weak = (torch.rand(frames, height, width, generator=draw) < 0.42).to(DEVICE)
    weak[:, height // 2] = True  # long ways through every word, and down through every tile
    weak[:, :, width // 2] = True
    strong = weak & (torch.rand(frames, height, width, generator=draw) < 0.001).to(DEVICE)
    strong[:, height // 2, width // 2] = True
    monkeypatch.setattr(plain, "GROWTH", rounds)
    wanted = plain.grow(strong.unsqueeze(1), weak.unsqueeze(1))[:, 0]
    found = kernels.unpacked(kernels.grow(bits(strong), bits(weak), rounds), width)
    assert torch.equal(found.float(), wanted)


@pytest.mark.parametrize(("height", "width", "frames"), [(20, 70, 1), (3, 65, 2)])
def test_the_faster_form_is_the_plain_form(height: int, width: int, frames: int) -> None:
    call = plain.EdgeCall()
    image, given = picture(height, width, frames, seed=3), thresholds(0.05, 0.3)
    found, wanted = call.faster(image, given), call(image, given)
    assert found.shape == wanted.shape and found.dtype == torch.uint8
    assert torch.equal(found.float(), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("detail", [1.0, 0.5])
@torch.inference_mode()
def test_the_graph_gives_what_the_plain_form_gives(monkeypatch: pytest.MonkeyPatch, detail: float) -> None:
    made = plain.Canny()
    call = plain.EdgeCall()
    monkeypatch.setattr(replay, "WARM_CALLS", 0)
    run = replay.Replayed(call.faster, "canny")
    made.accelerate(lambda call, name: run)
    former = None
    for seed, low in ((1, 0.1), (2, 0.1), (3, 0.02)):
        image, settings = picture(512, 512, seed=seed), Settings(low, 0.3, detail)
        found, wanted = made(image, settings), plain.Canny()(image, settings)
        # The library's blur sums in another order, perhaps in TF32: a few edges lie elsewhere.
        off = (found != wanted).float().mean()
        assert off == 0 if detail == 1.0 else off < 0.01
        assert former is None or torch.equal(*former)  # a later frame leaves a former one's edges alone
        former = (found, found.clone())
    assert run._graph is not None
