"""A ControlNet that is coming: what it will add is known before it runs, and no frame begins all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdbridge.engine.image.control_networks import ControlNetwork
from sdbridge.engine.image.seams import UnetCall
from sdbridge.models.small import WIDTH
from tests.engine.image.conditioning import small_parts


def a_network() -> ControlNetwork:
    from diffusers import ControlNetModel

    return ControlNetwork(
        ControlNetModel.from_unet(
            small_parts("sd15").unet, conditioning_embedding_out_channels=(4, 4, 8, 8)
        ).eval()
    )


def a_call(rows: int, height: int, width: int) -> UnetCall:
    times = torch.full((rows,), 500)
    return UnetCall(torch.randn(rows, 4, height, width), times, torch.randn(rows, 7, WIDTH))


class Asked:
    """A call that is ready once it was asked twice."""

    def __init__(self) -> None:
        self.times = 0

    def foresee(self, *tensors: Any) -> bool:
        self.times += 1
        return self.times > 2


def test_a_frame_begins_one_thing_at_most() -> None:
    network, call = a_network(), a_call(1, 8, 8)
    network.embed = embed = Asked()
    network.run = run = Asked()
    seen = []
    for _ in range(4):
        ready = network.foresee(call, torch.zeros(1, 3, 64, 64)) is not None
        seen.append((embed.times, run.times, ready))
    assert seen == [(1, 0, False), (2, 1, False), (3, 2, False), (4, 3, True)]


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 8, 8), (2, 9, 7)])
@torch.inference_mode()
def test_the_zeros_are_laid_out_as_what_comes_and_lie_apart(rows: int, height: int, width: int) -> None:
    network, call = a_network(), a_call(rows, height, width)
    image = torch.rand(rows, 3, 8 * height, 8 * width)
    while (foreseen := network.foresee(call, image)) is None:
        pass
    made = network.add(call, list(network.hint(image)), torch.ones(rows, 1, 1, 1))
    assert foreseen.down_residuals is not None and foreseen.mid_residual is not None
    assert made.down_residuals is not None and made.mid_residual is not None
    like = [*foreseen.down_residuals, foreseen.mid_residual]
    real = [*made.down_residuals, made.mid_residual]
    assert [(t.shape, t.dtype) for t in like] == [(t.shape, t.dtype) for t in real]
    for number, zeros in enumerate(like):
        assert zeros.is_contiguous(memory_format=torch.channels_last) and not zeros.any()
        assert zeros.data_ptr() % 64 == like[0].data_ptr() % 64
        zeros.fill_(number + 1)
    assert all(bool((zeros == number + 1).all()) for number, zeros in enumerate(like)), "none overlap"
