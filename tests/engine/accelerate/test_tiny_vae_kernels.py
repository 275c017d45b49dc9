"""The tiny VAE's kernels give what diffusers' module gives (in Triton's interpreter, or on a GPU)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():  # before the first import of triton in this process
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed")

from diffusers import AutoencoderTiny

from sdbridge.engine.accelerate.kernels import conv, tiny_vae
from sdbridge.engine.accelerate.kernels.choice import Config

#: fp16 weights and features against fp32: what a chain of a dozen layers may differ by.
NEAR = 2e-3
SCALE, SHIFT = 0.7, 0.1


@pytest.fixture
def device() -> Iterator[torch.device]:
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(device: torch.device, channels: int = 32, **how: object) -> AutoencoderTiny:
    torch.manual_seed(7)
    given = {
        "encoder_block_out_channels": (channels,) * 3, "decoder_block_out_channels": (channels,) * 3,
        "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1), **how,
    }  # fmt: skip
    vae = AutoencoderTiny(**given).eval().to(device)
    for parameter in vae.parameters():
        parameter.data.mul_(1.5)
    return vae


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


def near(got: Tensor, want: Tensor, bound: float = NEAR) -> None:
    assert got.shape == want.shape, (got.shape, want.shape)
    error = relative(got, want)
    assert error < bound, error


def test_encode(device: torch.device) -> None:
    for channels, shape in ((32, (2, 3, 8, 12)), (64, (1, 3, 7, 9))):
        vae = make(device, channels)
        image = torch.rand(shape, device=device) * 2 - 1
        want = (vae.encode(image).latents - SHIFT) * SCALE
        out = torch.full(want.shape, float("nan"), dtype=torch.half, device=device)
        assert tiny_vae.TinyEncoder(vae, SCALE, SHIFT)(image, out) is out
        near(out, want)
        near(tiny_vae.TinyEncoder(vae, SCALE, SHIFT)(image.half()), want)


def test_decode(device: torch.device) -> None:
    for channels, shape in ((32, (2, 4, 2, 3)), (64, (1, 4, 1, 3))):
        vae = make(device, channels)
        latent = torch.randn(shape, device=device) * 3
        want = vae.decode(latent / SCALE + SHIFT).sample
        out = torch.full(want.shape, float("nan"), device=device)
        assert tiny_vae.TinyDecoder(vae, SCALE, SHIFT)(latent, out) is out
        near(out, want)


def test_rgba(device: torch.device) -> None:
    vae = make(device)
    pixels = torch.randint(0, 256, (2, 8, 12, 4), dtype=torch.uint8, device=device)
    image = pixels[..., :3].permute(0, 3, 1, 2).float() / 255 * 2 - 1
    near(tiny_vae.TinyEncoder(vae)(pixels), vae.encode(image).latents)
    for parameter in (vae.decoder.layers[-1].weight, vae.decoder.layers[-1].bias):
        parameter.data.mul_(8)  # some pixels past both ends
    latent = torch.randn(2, 4, 2, 3, device=device) * 3
    picture = vae.decode(latent).sample * 0.5 + 0.5
    want = (picture * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert want.min() == 0 and want.max() == 255
    got = tiny_vae.TinyDecoder(vae)(latent, rgba=True)
    assert (got[..., 3] == 255).all()
    off = (got[..., :3].int() - want.int()).abs()
    assert off.max() <= 2 and off.float().mean() < 0.25, (off.max(), off.float().mean())


def test_cuts(device: torch.device) -> None:
    """Every way of cutting a layer up computes the same."""
    torch.manual_seed(3)
    weight = torch.randn(32, 32, 3, 3, device=device) * 0.1
    bias = torch.randn(32, device=device)
    source = torch.randn(2, 11, 19, 32, device=device).half()
    skip = torch.randn(2, 11, 19, 32, device=device).half()
    plain = torch.nn.functional.conv2d(source.float().permute(0, 3, 1, 2), weight, bias, padding=1)
    packed = conv.pack_taps(weight).half()
    configs = [Config(4, 16), Config(8, 8, 8, 2), Config(4, 16, swap=True)]
    if device.type == "cuda" and torch.cuda.get_device_capability()[0] == 9:
        configs += [Config(4, 64, 4, 4, by="ring"), Config(16, 128, 8, 5, by="ring")]
    for config in configs:
        out = torch.full_like(source, float("nan"))
        conv.run_taps(source, packed, bias, out, config, relu=True, skip=skip)
        near(out, torch.relu(plain.permute(0, 2, 3, 1) + skip.float()))
        out.fill_(float("nan"))
        conv.run_taps(source, packed, bias, out, config)
        near(out, plain.permute(0, 2, 3, 1))


def test_refresh(device: torch.device) -> None:
    vae = make(device)
    encoder, decoder = tiny_vae.TinyEncoder(vae), tiny_vae.TinyDecoder(vae)
    image = torch.rand(1, 3, 8, 8, device=device) * 2 - 1
    latent = torch.randn(1, 4, 1, 1, device=device)
    places = [layer.weight.data_ptr() for layer in encoder.layers + decoder.layers]
    before = encoder(image)
    for parameter in vae.parameters():
        parameter.data.mul_(1.2)
    assert relative(encoder(image), before) == 0
    encoder.refresh()
    decoder.refresh()
    assert places == [layer.weight.data_ptr() for layer in encoder.layers + decoder.layers]
    near(encoder(image), vae.encode(image).latents)
    near(decoder(latent), vae.decode(latent).sample)


def test_sixteen(device: torch.device) -> None:
    """Latents of 16 channels (SD3, Flux)."""
    vae = make(device, latent_channels=16)
    image = torch.rand(1, 3, 8, 8, device=device) * 2 - 1
    latent = torch.randn(1, 16, 1, 1, device=device)
    near(tiny_vae.TinyEncoder(vae)(image), vae.encode(image).latents)
    near(tiny_vae.TinyDecoder(vae)(latent), vae.decode(latent).sample)


def test_refusals(device: torch.device) -> None:
    assert tiny_vae.supports(make(device)) == (True, "AutoencoderTiny")
    mixed = make(device, decoder_block_out_channels=(64, 32, 32))
    for vae, word in (
        (mixed, "channels"),
        (make(device, act_fn="silu"), "act_fn"),
        (torch.nn.Linear(1, 1), "no"),
    ):
        can, why = tiny_vae.supports(vae)
        assert not can and word in why, why
    tiled = make(device)
    tiled.enable_tiling()
    assert not tiny_vae.supports(tiled)[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_hopper_kernels_prove_themselves() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper")
    for channels in (32, 64):
        assert conv.hopper(channels) == {"same", "up", "halve", "last"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replay(device: torch.device) -> None:
    """A captured graph follows new pixels and refreshed weights."""
    vae = make(device, 64)
    encoder = tiny_vae.TinyEncoder(vae)
    pixels = torch.zeros(1, 64, 64, 4, dtype=torch.uint8, device=device)
    out = torch.empty(1, 4, 16, 16, dtype=torch.half, device=device)
    encoder(pixels, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        encoder(pixels, out)
    for factor in (1.0, 1.2):
        for parameter in vae.parameters():
            parameter.data.mul_(factor)
        encoder.refresh()
        pixels.copy_(torch.randint(0, 256, pixels.shape, dtype=torch.uint8, device=device))
        out.fill_(float("nan"))
        graph.replay()
        near(out, vae.encode(pixels[..., :3].permute(0, 3, 1, 2).float() / 127.5 - 1).latents)
