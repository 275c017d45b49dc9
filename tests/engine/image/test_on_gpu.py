"""What only a CUDA device can show: no hidden waits, few allocations, memory given back."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sdbridge.bench import conditioning
from tests.engine.image.rig import Rig, frame
from tests.engine.image.test_half import apart

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VALUES = {"prompt.1.text": "a fox", "scheduler": "lcm", "guidance_mode": "none"}


def save_controlnet(model: Path, folder: Path, std: float) -> None:
    """One that fits the model's UNet, in float32; its residuals are not zero."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(str(model / "unet"))
    network = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=std)
    network.save_pretrained(folder)


def test_a_tick_waits_for_the_device_only_to_hand_the_frame_out(checkpoint) -> None:
    rig = Rig(checkpoint(), {**VALUES, "steps": 2}, dtype="float16", device="cuda", acceleration="eager")
    rig.tick(frame(0))
    rig.set(seed_mode="random", strength=0.4, feature_bank__enabled=True)
    rig.tick(frame(1))
    torch.cuda.set_sync_debug_mode("error")  # any implicit wait raises; ours is explicit
    try:
        for k in range(2, 12):
            rig.tick(frame(k))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_network_loaded_beside_the_frames_takes_few_allocations_and_arrives_whole(
    checkpoint, tmp_path
) -> None:
    from safetensors.torch import load_file

    from sdbridge.engine.image.control_files import load_network

    save_controlnet(checkpoint(), tmp_path, 0.1)
    wanted = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    rig = Rig(checkpoint(), VALUES, dtype="float16", device="cuda")
    rig.tick(frame(0))
    engine = rig.engine
    context = engine._context(engine.painter)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    running = context.beside(lambda: load_network(tmp_path, context.model))
    for k in range(1, 40):  # frames go on meanwhile
        rig.tick(frame(k))
    found = running.result().run.network
    assert torch.cuda.memory_stats()["num_device_alloc"] - before < 12
    for name, parameter in found.named_parameters():
        assert parameter.is_cuda and parameter.dtype == torch.float16
        assert torch.equal(parameter.cpu(), wanted[name].half()), name
    storages = {parameter.untyped_storage().data_ptr() for parameter in found.parameters()}
    assert len(storages) == 1
    rig.engine.unload()


def test_what_is_made_beside_the_frames_changes_no_bit_of_them(checkpoint, tmp_path) -> None:
    """What their graphs hold is written by nobody else, from the wish for a ControlNet until it steers."""
    save_controlnet(checkpoint(), tmp_path, 0.5)
    rig = Rig(checkpoint(), VALUES, dtype="float16", device="cuda", acceleration="compile")
    rig.stop_watching()

    def picture() -> np.ndarray:
        made = rig.tick(frame(3))
        assert made is not None
        return made.frames[0]["generated"].pixels.copy()

    def until_it(steers: bool) -> Iterator[np.ndarray]:
        until = time.monotonic() + 120.0
        while True:
            made = picture()
            if conditioning.steers(rig.engine) == steers:
                return
            yield made
            assert time.monotonic() < until

    for _ in range(8):
        picture()
    assert rig.engine.painter.acceleration.settled(240.0)
    first = picture()
    assert all((picture() == first).all() for _ in range(20))
    rig.set(controlnet__1__model=str(tmp_path), controlnet__1__preprocessor="canny")
    compared = 0
    for made in until_it(steers=True):
        assert (made == first).all(), compared
        compared += 1
    assert compared > 10
    for _ in range(8):
        picture()
    assert (picture() != first).any()
    rig.set(controlnet__1__model="")
    for _ in until_it(steers=False):
        pass
    for _ in range(8):
        picture()
    assert rig.engine.painter.acceleration.settled(240.0)
    assert (picture() == first).all()
    rig.engine.unload()


def test_a_lora_made_on_the_device_is_the_one_made_on_the_cpu(checkpoint, tmp_path) -> None:
    from sdbridge.bench.networks import random_lora
    from sdbridge.engine.image.lora_files import load_lora
    from sdbridge.engine.image.lora_names import TensorNames
    from sdbridge.engine.image.weights import store_of

    folder = tmp_path / "model"
    shutil.copytree(checkpoint(), folder)
    file = random_lora(folder)
    made = {}
    for device in ("cpu", "cuda"):
        rig = Rig(folder, VALUES, dtype="float32", device=device, acceleration="eager")
        store = store_of(rig.model)
        made[device] = load_lora(file, store, TensorNames(store, rig.model.unet.config)).products
    assert made["cpu"].keys() == made["cuda"].keys() and made["cpu"]
    for name, product in made["cpu"].items():
        assert apart(made["cuda"][name].cpu(), product) < 1e-5, name


def test_a_dora_made_on_the_device_is_the_one_made_on_the_cpu(checkpoint, tmp_path) -> None:
    """Its change depends on the checkpoint's weights, which it reads on the device, faders moved or not."""
    from sdbridge.engine.image.lora_files import load_lora
    from sdbridge.engine.image.lora_names import TensorNames
    from sdbridge.engine.image.weights import Layer, store_of
    from tests.engine.image.test_lora import dora, pairs, saved, targets

    made = {}
    for device in ("cpu", "cuda"):
        rig = Rig(checkpoint(), VALUES, dtype="float32", device=device, acceleration="eager")
        unet = rig.model.unet
        if device == "cpu":
            file = saved(tmp_path, dora(unet, pairs(unet, targets(unet), 1)))
        store = store_of(rig.model)
        names = TensorNames(store, unet.config)
        first = load_lora(file, store, names).products
        store.write([Layer(first, 0.7)])
        made[device] = load_lora(file, store, names).products
        for name, product in first.items():
            assert torch.equal(product, made[device][name]), name
    for name, product in made["cpu"].items():
        assert apart(made["cuda"][name].cpu(), product) < 1e-5, name


def test_unload_gives_the_memory_back(checkpoint) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        rig = Rig(checkpoint(), VALUES, dtype="float16", device="cuda")
        rig.tick(frame(0))
        rig.engine.unload()
        del rig
    gc.collect()  # the rig that watches an engine and the engine refer to each other
    assert torch.cuda.memory_allocated() - before < 2**20
