"""What doctor counts, against what is there: true sizes on shapes alone, and small models loaded."""

from __future__ import annotations

import json
import struct
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdbridge.config import Config
from sdbridge.doctor import model as doctor
from sdbridge.engine.image import style_files
from sdbridge.engine.image.feature_bank import FeatureBank
from sdbridge.engine.interface import EngineConfig
from sdbridge.models import demand as demand_module
from sdbridge.models.demand import demand, unet_rows
from sdbridge.models.footprint import FULL_VAE_VALUES, TINY_VAE_VALUES, UNET_VALUES, bank_values, footprint
from sdbridge.models.random_weights import SIZES, _parts
from sdbridge.parameters.table import TABLE
from tests.engine.image import ldm_keys
from tests.engine.image.rig import Rig, frame

META = torch.device("meta")
FULL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def made(kind, config):
    """A network of shapes alone, in half precision."""
    with META:
        if hasattr(kind, "from_config"):
            return kind.from_config(dict(config)).half().eval()
        return kind(kind.config_class(**config)).half().eval()


def header_only(file: Path, network) -> None:
    """What a safetensors file of the network says of itself; nobody counting reads further."""
    header = {
        name: {"dtype": "F16", "shape": list(value.shape), "data_offsets": [0, 0]}
        for name, value in network.state_dict().items()
    }
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture(scope="module")
def unets():
    from diffusers import UNet2DConditionModel

    return {size: made(UNet2DConditionModel, wanted.unet) for size, wanted in SIZES.items()}


@pytest.mark.parametrize("size", list(SIZES))
def test_weights_of_the_true_architectures_are_counted_to_the_byte(tmp_path, unets, size: str) -> None:
    wanted = 0
    for name, kind, config in _parts(SIZES[size]):
        network = unets[size] if name == "unet" else made(kind, config)
        header_only(tmp_path / name / "model.safetensors", network)
        wanted += sum(value.numel() * 2 for value in network.parameters())
    counted = footprint(tmp_path, 512, 512)
    assert sum(counted.weights.values()) == wanted
    assert wanted / 1e9 == pytest.approx({"sd-turbo": 2.43, "sd15": 1.97, "sdxl-turbo": 6.77}[size], abs=0.02)


class _Alive(TorchDispatchMode):
    """The most bytes of tensors that were alive at a time, besides the networks' own."""

    def __init__(self, network) -> None:
        super().__init__()
        own = [*network.parameters(), *network.buffers()]
        self._known = {value.untyped_storage()._cdata: 0 for value in own}
        self._now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, which: int) -> None:
        self._now -= self._known.pop(which)


def most_alive(network, run) -> int:
    with torch.no_grad(), _Alive(network) as alive:
        run()
    return alive.most


@pytest.fixture
def flash(monkeypatch) -> None:
    """Attention that keeps no matrix of all pairs, as the kernels on a card."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, *a, **n: torch.empty_like(q)
    )


@pytest.mark.parametrize(
    ("size", "rows", "pixels"),
    [("sd15", 1, 512), ("sd15", 4, 512), ("sd15", 1, 1024), ("sd-turbo", 1, 512), ("sdxl-turbo", 1, 512)],
)
def test_a_pass_of_the_unet_keeps_what_is_counted(unets, flash, size: str, rows: int, pixels: int) -> None:
    unet, side = unets[size], pixels // 8
    half = {"device": META, "dtype": torch.float16}
    extra = {}
    if unet.config.addition_embed_type:
        sizes = {"text_embeds": torch.empty(rows, 1280, **half), "time_ids": torch.empty(rows, 6, **half)}
        extra = {"added_cond_kwargs": sizes}
    text = torch.empty(rows, 77, unet.config.cross_attention_dim, **half)
    times = torch.empty(rows, device=META, dtype=torch.int64)
    most = most_alive(
        unet,
        lambda: unet(torch.empty(rows, 4, side, side, **half), times, encoder_hidden_states=text, **extra),
    )
    counted = rows * 320 * side * side * UNET_VALUES * 2
    assert most <= counted * 1.001
    assert most >= counted * (0.55 if size == "sdxl-turbo" else 0.95)  # SDXL's first level has no attention


@pytest.mark.parametrize("kind", ["tiny", "full"])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_pass_of_the_vae_keeps_what_is_counted(flash, kind: str, frames: int) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny

    vae = made(AutoencoderTiny, {}) if kind == "tiny" else made(AutoencoderKL, FULL_VAE)
    half = {"device": META, "dtype": torch.float16}
    image, latent = torch.empty(frames, 3, 512, 512, **half), torch.empty(frames, 4, 64, 64, **half)
    most = max(most_alive(vae, lambda: vae.encode(image)), most_alive(vae, lambda: vae.decode(latent)))
    counted = frames * 512 * 512 * (TINY_VAE_VALUES if kind == "tiny" else FULL_VAE_VALUES) * 2
    assert 0.95 * counted <= most <= counted


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize(("height", "width", "rows", "frames"), [(64, 64, 1, 1), (72, 104, 4, 3)])
def test_the_bank_takes_what_is_counted(unets, size: str, height, width, rows, frames) -> None:
    unet = unets[size]
    memory = (
        FeatureBank(unet)
        .forms_for(torch.empty(rows, 4, height, width, device=META, dtype=torch.float16), frames)[0]
        .memory
    )
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for pair in memory._buffers.values()
        for tensor in pair
    }
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    counted = bank_values(shapes, width, height, frames) * rows * 2
    assert counted == pytest.approx(sum(storages.values()), rel=1e-3)


@pytest.mark.parametrize("layout", ["SD15", "SD21", "SDXL"])
def test_a_single_file_names_the_same_layers(layout: str) -> None:
    """Published names, halved and doubled at the same places: the same levels as in diffusers' names."""
    keys = dict(ldm_keys.unet(getattr(ldm_keys, layout)))
    levels = {"SD15": 4, "SD21": 4, "SDXL": 3}[layout]
    depths = getattr(ldm_keys, layout).depths
    widths = [32 * m for m in getattr(ldm_keys, layout).multipliers]
    middle = getattr(ldm_keys, layout).middle
    wanted = 0
    for level, depth in enumerate(depths):  # two on the way down and three on the way up
        tokens = (64 >> level) ** 2 * 2 * widths[level]
        wanted += tokens * depth * (2 * 2 + 3 * (3 if level >= levels - 2 else 2))
    wanted += (64 >> (levels - 1)) ** 2 * 2 * widths[-1] * middle * 3
    assert bank_values(keys, 64, 64, 1) == wanted


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 4},
        {"step_indices": "16, 32,45", "steps": 1},
        {"steps": 4, "schedule_steps": 2},
        {"steps": 2, "frame_batch": 2},
        {"steps": 2, "guidance_mode": "full", "guidance_scale": 2.0},
        {"steps": 2, "guidance_mode": "full", "guidance_scale": 1.0},
        {"steps": 2, "guidance_mode": "self", "guidance_scale": 2.0},
        {"steps": 3, "frame_batch": 2, "guidance_mode": "initialize", "guidance_scale": 2.0},
    ],
    ids=str,
)
def test_rows_are_those_that_the_unet_is_called_with(checkpoint, values) -> None:
    rig = Rig(checkpoint(), values, dtype="float32")
    frames = int(values.get("frame_batch", 1))
    for number in range(4 * frames):
        rig.tick(frame(number))
    assert {call.sample.shape[0] for call in rig.calls} == {unet_rows({**TABLE.defaults(), **values})}
    rig.engine.unload()


def test_the_vae_that_runs_is_counted_in_the_precision_it_runs_in(tmp_path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny

    for name, kind, config in (("vae", AutoencoderKL, FULL_VAE), ("vae_tiny", AutoencoderTiny, {})):
        vae = made(kind, config)
        header_only(tmp_path / name / "diffusion_pytorch_model.safetensors", vae)
        vae.save_config(tmp_path / name)
    network = sum(value.numel() for value in made(AutoencoderKL, FULL_VAE).parameters())
    row = 64 * 64 * 320 * UNET_VALUES * 2

    def counted(vae: str):
        return demand(EngineConfig(model=str(tmp_path), vae=vae), {}, 512, 512)

    assert counted("auto") == counted("tiny")
    assert counted("auto").activations == pytest.approx(512 * 512 * TINY_VAE_VALUES * 2 + row, rel=1e-6)
    full = counted("full")  # its config says force_upcast, as diffusers' default is
    assert full.weights["vae"] == network * 4
    assert full.activations == pytest.approx(512 * 512 * FULL_VAE_VALUES * 4 + row, rel=1e-6)
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    assert counted("full").weights["vae"] == network * 2
    assert counted(str(tmp_path / "vae_tiny")).weights["vae"] == counted("auto").weights["vae"]


def test_what_else_is_loaded_is_counted(tmp_path, checkpoint) -> None:
    folder, style = checkpoint(), tmp_path / "style"
    for name, width in (("ip.safetensors", 30), ("image_encoder/model.safetensors", 50)):
        header_only(style / name, torch.nn.Linear(10, width, bias=False))
    header_only(tmp_path / "depth" / "model.safetensors", torch.nn.Linear(10, 70, bias=False))
    header_only(tmp_path / "net" / "model.safetensors", torch.nn.Linear(10, 90, bias=False))
    values = {
        "style_model": str(style / "ip.safetensors"),
        "controlnet.2.model": str(tmp_path / "net"),
        "controlnet.2.preprocessor": "depth",
        "controlnet.3.model": str(tmp_path / "net"),
        "depth_model": str(tmp_path / "depth"),
        "feature_bank.enabled": True,
    }
    plain = demand(EngineConfig(model=str(folder)), {}, 512, 512)
    counted = demand(EngineConfig(model=str(folder)), values, 512, 512)
    more = {name: size for name, size in counted.weights.items() if name not in plain.weights}
    assert more == {"style": 600, "image encoder": 1000, "depth network": 1400, "controlnet 2": 1800}
    assert counted.bank > 0 and "feature bank" in counted.describe()
    wide = demand(EngineConfig(model=str(folder), dtype="float32"), {}, 512, 512)
    assert wide.weights["unet"] == 2 * plain.weights["unet"]
    assert demand_module._ENCODER_PLACES == style_files._ENCODER_PLACES


def test_the_count_is_what_the_engine_holds(checkpoint) -> None:
    """Parameters of everything that a small model loads, in its precision."""
    folder = checkpoint()
    rig = Rig(folder, {}, dtype="float32")
    model = rig.model
    held = sum(
        value.numel() * 4
        for part in (model.unet, model.vae, *model.text_encoders)
        for value in part.parameters()
    )
    rig.engine.unload()
    counted = demand(EngineConfig(model=str(folder), dtype="float32"), {}, 64, 64)
    assert sum(counted.weights.values()) == held


@pytest.mark.parametrize(("device", "words"), [("auto", "no NVIDIA card"), ("cpu", "on cpu")])
def test_doctor_compares_only_where_the_card_is_used(
    monkeypatch, checkpoint, device: str, words: str
) -> None:
    monkeypatch.setattr(doctor, "free_vram", lambda: None if device == "auto" else 2**40)
    config = Config.model_validate({"engine": {"model": str(checkpoint()), "device": device}})
    (finding,) = doctor.check_memory(config)
    assert finding.grade == "note" and words in finding.text


def test_doctor_counts_the_model_that_the_parameters_name(monkeypatch, checkpoint, tmp_path) -> None:
    monkeypatch.setattr(doctor, "free_vram", lambda: 2**40)
    config = Config.model_validate(
        {"engine": {"model": str(tmp_path / "none")}, "parameters": {"model": str(checkpoint())}}
    )
    assert [finding.grade for finding in doctor.check_memory(config)] == ["good"]


def test_doctor_says_when_there_is_nothing_to_count_yet(tmp_path) -> None:
    config = Config.model_validate({"engine": {"model": str(tmp_path / "none")}})
    (finding,) = doctor.check_memory(config)
    assert finding.grade == "note" and "once they are on the disk" in finding.text
