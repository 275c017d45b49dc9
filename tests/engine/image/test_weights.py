"""The WeightStore: in place, exact, and every derived copy refreshed."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sdbridge.engine.image.weights import Layer, WeightStore


def small() -> tuple[torch.nn.Sequential, WeightStore]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    )
    return module, WeightStore({"unet": module})


def test_write_is_base_plus_weighted_products_in_place() -> None:
    module, store = small()
    base, address = module[0].weight.clone(), module[0].weight.data_ptr()
    product = store.like("unet.0.weight", torch.randn(4, 4))
    other = store.like("unet.0.weight", torch.randn(4, 4))
    store.write([Layer({"unet.0.weight": product}, 0.5), Layer({"unet.0.weight": other}, -2.0)])
    assert torch.allclose(module[0].weight, base + 0.5 * product - 2 * other)
    assert module[0].weight.data_ptr() == address
    store.write([Layer({"unet.0.weight": product}, 0.0)])
    assert torch.equal(module[0].weight, base)
    assert store.bytes_of_bases == base.nbytes
    store.write([])
    assert torch.equal(module[0].weight, base) and store.bytes_of_bases == 0


def test_room_that_was_made_beside_the_loop_keeps_the_base_and_is_given_back_with_it() -> None:
    module, store = small()
    base = module[0].weight.clone()
    product = store.like("unet.0.weight", torch.randn(4, 4))
    rooms = {name: torch.empty_like(store.tensor(name)) for name in ("unet.0.weight", "unet.0.bias")}
    room = rooms["unet.0.weight"]
    store.write([Layer({"unet.0.weight": product}, 0.5, rooms)])
    assert torch.equal(room, base) and torch.allclose(module[0].weight, base + 0.5 * product)
    assert not rooms and store.keeps("unet.0.weight") and not store.keeps("unet.0.bias")
    store.write([])
    assert torch.equal(module[0].weight, base) and not store.keeps("unet.0.weight")


def test_products_take_the_tensors_memory_layout() -> None:
    module, store = small()
    ready = store.like("unet.1.weight", torch.randn(5, 3, 3, 3))
    assert ready.stride() == module[1].weight.stride()


def test_derived_copies_are_refreshed_after_their_sources_only() -> None:
    module, store = small()
    fused = module[0].weight.clone()
    heard: list[frozenset[str]] = []

    def refresh(names: frozenset[str]) -> None:
        heard.append(names)
        fused.copy_(module[0].weight)

    end = store.derive(refresh, ["unet.0.weight"])
    product = store.like("unet.0.weight", torch.ones(4, 4))
    store.write([Layer({"unet.0.weight": product}, 1.0)])
    assert torch.equal(fused, module[0].weight) and heard == [{"unet.0.weight"}]
    both = [
        Layer({"unet.0.weight": product}, 1.0),
        Layer({"unet.0.bias": store.like("unet.0.bias", torch.ones(4))}, 1.0),
    ]
    assert store.write(both) == {"unet.0.bias"} and len(heard) == 1  # nothing of the copy's moved
    end()
    store.write([])
    assert len(heard) == 1


def test_an_equal_write_touches_nothing() -> None:
    _, store = small()
    layer = Layer({"unet.0.weight": store.like("unet.0.weight", torch.ones(4, 4))}, 0.3)
    assert store.write([layer]) and store.version == 1
    assert not store.write([layer]) and store.version == 1


def test_compiled_code_sees_the_new_weights_without_compiling_again() -> None:
    module, store = small()
    compiles: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        compiles.append(1)
        return graph.forward

    run = torch.compile(module[0], backend=backend)
    x = torch.randn(2, 4)
    with torch.no_grad():
        run(x)
        product = store.like("unet.0.weight", torch.randn(4, 4))
        for weight in (0.1, 0.7, 0.0, 1.0):
            store.write([Layer({"unet.0.weight": product}, weight)])
            assert torch.equal(run(x), torch.nn.functional.linear(x, module[0].weight, module[0].bias))
    assert len(compiles) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_base_is_the_checkpoint_s_whatever_is_mixed_in_and_whoever_writes_meanwhile(device: str) -> None:
    """The loading thread reads while a fader moves: never a half-written or a mixed tensor."""
    torch.manual_seed(0)
    module = torch.nn.Linear(256 if device == "cpu" else 4096, 256 if device == "cpu" else 4096).to(device)
    store = WeightStore({"unet": module})
    base = module.weight.detach().cpu().clone()
    product = store.like("unet.weight", torch.ones(module.weight.shape))
    store.write([Layer({"unet.weight": product}, 1.0)])
    assert torch.equal(store.base("unet.weight").cpu(), base)
    store.write([])
    assert torch.equal(store.base("unet.weight").cpu(), base)
    read: list[bool] = []
    reader = threading.Thread(
        target=lambda: read.extend(torch.equal(store.base("unet.weight").cpu(), base) for _ in range(50))
    )
    reader.start()
    move = 0
    while reader.is_alive():
        move += 1
        store.write([Layer({"unet.weight": product}, 1.0 + move % 5)] if move % 3 else [])
        time.sleep(0)
    reader.join()
    assert read == [True] * 50
