"""The packed ControlNet is the diffusers module: same residuals for every family; and when it takes over."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.accelerate.control_graphs import PackedControl
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet, obstacle
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.control_networks import ControlCall, ControlNetwork
from tests.engine.accelerate.test_packed_unet import KINDS, build, error, make_call
from tests.engine.image.test_foresight import Graph


def make_network(kind: str, **more: object) -> ControlNetModel:
    torch.manual_seed(11)
    network = ControlNetModel.from_unet(
        build(kind), conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=True
    )
    for conv in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(conv.weight, std=0.2)
        torch.nn.init.normal_(conv.bias)
    torch.nn.init.normal_(network.controlnet_cond_embedding.conv_out.weight, std=0.2)
    network.register_to_config(**more)
    return network.double().eval().requires_grad_(False)


def tensors_of(kind: str, network: ControlNetwork, size: int) -> list[Tensor]:
    call = make_call(kind, None, size=size)
    picture = torch.rand(2, 3, 2 * size, 2 * size, generator=torch.Generator().manual_seed(2))
    tensors = [call.sample, call.timesteps, call.encoder_hidden_states]
    tensors.append(torch.stack([hint for (hint,) in network.hint(picture)]))
    if call.timestep_cond is not None:
        tensors.append(call.timestep_cond)
    return tensors + [call.added_cond[name] for name in ("text_embeds", "time_ids") if call.added_cond]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("size", [16, 18])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "guided"])
def test_the_packed_controlnet_gives_the_modules_residuals(kind: str, size: int, order: str) -> None:
    module = make_network(kind, controlnet_conditioning_channel_order=order)
    network = ControlNetwork(module)
    tensors = tensors_of(kind, network, size)
    with torch.no_grad():
        down, mid = network.run(*tensors)
        assert obstacle(module) == ""
        packed = PackedControlNet(module)
        mine, my_mid = packed.run(ControlCall.unet_call(*tensors), tensors[3])
        again, _ = network.run(*tensors)
    assert len(mine) == len(down)
    for found, wanted, still in zip([*mine, my_mid], [*down, mid], [*again, mid], strict=True):
        assert found.shape == wanted.shape and error(found, wanted) <= 1e-12
        assert error(still, wanted) <= 1e-12, "packing changed the module"


def test_what_is_unusual_is_named() -> None:
    module = make_network("sd15", global_pool_conditions=True)
    assert obstacle(module) == "a control image that is not embedded beforehand"
    ControlNetwork(module)
    assert obstacle(module) == "pooled residuals"
    with pytest.raises(ValueError, match="pooled"):
        PackedControlNet(module)
    module = make_network("sd15")
    ControlNetwork(module)
    module.controlnet_down_blocks[0] = torch.nn.Conv2d(32, 32, 3, padding=1)
    assert obstacle(module) == "an unusual way out"


class Recorded(Graph):
    """A capture's contract: outputs of its own, overwritten by every run."""

    def __init__(self, run, tensors) -> None:
        self.thread = threading.current_thread().name
        super().__init__(run, tensors)


class CountingOps(PlainOps):
    """As the plain ones, counting passes: stands for the faster ones."""

    begun = 0

    def begin(self, batch: int, device: torch.device) -> None:
        type(self).begun += 1


def wrapped(module: ControlNetModel, make_fast, beside: BesideTheStream | None) -> PackedControl:
    """What ``Compiled`` makes of a ControlNet."""
    compiled = Compiled(SimpleNamespace(unet=build("sd15"), device=torch.device("cpu")), capture=Recorded)
    compiled.unet.make_fast, compiled.graphs.beside = make_fast, beside
    made = compiled.wrap(ControlCall(module), "ControlNet canny")
    made.said = compiled.graphs.said  # type: ignore[attr-defined]
    return made


def test_the_faster_form_is_captured_beside_and_takes_over() -> None:
    module = make_network("sd15")
    network = ControlNetwork(module)
    tensors = tensors_of("sd15", network, 16)
    with torch.no_grad():
        wanted = network.run(*tensors)
        CountingOps.begun = 0
        beside = BesideTheStream(torch.device("cpu"))
        run = wrapped(module, CountingOps, beside)
        before = run(*tensors)
        assert beside.wait(60) and CountingOps.begun == 1
        after = run(*tensors)
        assert CountingOps.begun == 2 and run._run._graph.thread == "accelerate"
    for down, mid in (before, after):
        for found, exact in zip([*down, mid], [*wanted[0], wanted[1]], strict=True):
            assert error(found, exact) <= 1e-12
    beside.close()


def test_when_the_faster_form_fails_the_plain_one_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(PlainOps):
        def begin(self, batch: int, device: torch.device) -> None:
            raise RuntimeError("no kernel for this card\nand a long trace")

    module = make_network("sd15")
    network = ControlNetwork(module)
    tensors = tensors_of("sd15", network, 16)
    with torch.no_grad():
        wanted = network.run(*tensors)
        beside = BesideTheStream(torch.device("cpu"))
        run = wrapped(module, Failing, beside)
        run(*tensors)
        assert beside.wait(60)
        assert run._run._graph is not None and run._run._graph.thread == "accelerate"
        down, mid = run(*tensors)
    assert error(mid, wanted[1]) <= 1e-12 and error(down[0], wanted[0][0]) <= 1e-12
    assert "runs without our own kernels: no kernel for this card" in caplog.text
    beside.close()


def test_an_unusual_network_runs_as_it_is() -> None:
    module = make_network("sd15", global_pool_conditions=True)
    network = ControlNetwork(module)
    tensors = tensors_of("sd15", network, 16)
    run = wrapped(module, PlainOps, None)
    with torch.no_grad():
        _, mid = run(*tensors)
        assert mid.shape[-1] == 1 and torch.equal(mid, network.run(*tensors)[1])
    assert "ControlNet canny runs unpacked: it has pooled residuals" in run.said  # type: ignore[attr-defined]


def test_graphs_of_two_shapes_never_share_buffers() -> None:
    """One of them is captured, which runs it, while the frames replay the other."""
    made: list[PlainOps] = []
    used: list[object] = []

    class Ops(PlainOps):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        def begin(self, batch, device) -> None:
            used.append(self)
            super().begin(batch, device)

    module = make_network("sd15")
    network, beside = ControlNetwork(module), BesideTheStream(torch.device("cpu"))
    run = wrapped(module, Ops, beside)
    with torch.no_grad():
        for size in (16, 24, 16, 24):
            sample, times, text, hint = tensors_of("sd15", network, size)
            hoisted = run.hoisting.of(ControlCall.unet_call(sample, times, text, hint))
            run._run._faster(sample, hint, hoisted)
    beside.close()
    assert len(made) == 2 and used == [made[0], made[1], made[0], made[1]]
