"""Loading: both layouts give one model, the family comes from structure, every fault has its code."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdbridge.engine.image.device import choose_placement
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.image.load import load_model, probe_prediction
from sdbridge.engine.image.schedule import noise_schedule
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError

CPU = choose_placement("cpu", "float32")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd15-inpaint"])
def test_a_folder_and_a_single_file_give_the_same_model(checkpoint, single_file, family: str) -> None:
    folder = load_model(checkpoint(family), CPU)
    file = load_model(single_file(family), CPU)
    assert folder.family == file.family == family.removesuffix("-inpaint")
    assert folder.prediction == file.prediction == ("v_prediction" if family == "sd21" else "epsilon")
    for ours, theirs in (
        (folder.unet, file.unet),
        *zip(folder.text_encoders, file.text_encoders, strict=True),
    ):
        a, b = ours.state_dict(), theirs.state_dict()
        assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)
    assert folder.unet.config.in_channels == (9 if "inpaint" in family else 4)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_full_vae_of_a_single_file_is_read_too(checkpoint, single_file, family: str) -> None:
    a = load_model(checkpoint(family), CPU, vae="full").vae.state_dict()
    b = load_model(single_file(family), CPU, vae="full").vae.state_dict()
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("distilled", "sampler"), [("", "ddim"), ("lcm", "lcm"), ("turbo", "turbo")])
def test_the_sampler_comes_from_the_config_and_not_the_name(checkpoint, tmp_path, distilled, sampler) -> None:
    misleading = tmp_path / "sd-turbo-lcm-xl"
    shutil.copytree(checkpoint("sd15", distilled), misleading)
    model = load_model(misleading, CPU)
    assert (model.family, model.sampler) == ("sd15", sampler)


def test_the_vae_is_tiny_if_there_is_one_and_full_on_demand(checkpoint, tmp_path) -> None:
    assert load_model(checkpoint(), CPU).vae_is_tiny
    assert not load_model(checkpoint(), CPU, vae="full").vae_is_tiny
    assert load_model(checkpoint(), CPU, vae=str(checkpoint() / "vae_tiny")).vae_is_tiny
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint(), bare)
    shutil.rmtree(bare / "vae_tiny")
    assert not load_model(bare, CPU).vae_is_tiny
    with pytest.raises(SdbridgeError, match="SDB-MODEL-PARTS"):
        load_model(bare, CPU, vae="tiny")


def test_a_pulled_taesd_is_taken_by_family_and_never_for_other_latents(
    checkpoint, tmp_path, monkeypatch
) -> None:
    from sdbridge.models import catalog

    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    for name in ("taesd", "taesdxl"):
        folder = catalog.folder_of(catalog.find(name))
        shutil.copytree(checkpoint() / "vae_tiny", folder)
        (folder / catalog.MARK).write_text("{}")
    for family, name in (("sd15", "taesd"), ("sdxl", "taesdxl")):
        bare = tmp_path / family
        shutil.copytree(checkpoint(family), bare)
        shutil.rmtree(bare / "vae_tiny")
        model = load_model(bare, CPU)
        assert model.vae_is_tiny and f"tiny VAE of {name}/" in model.why
    config = json.loads((bare / "vae" / "config.json").read_text())
    (bare / "vae" / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(SdbridgeError):  # its own VAE, which has other latents, and not TAESD
        load_model(bare, CPU)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_half_precision_variants_which_the_catalog_pulls_are_read(checkpoint, tmp_path, family: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(checkpoint(family), folder)
    for path in list(folder.rglob("*.safetensors")):
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(
            half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"}
        )
        path.unlink()
    model = load_model(folder, CPU)
    wanted = load_model(checkpoint(family), CPU)
    for ours, theirs in ((model.unet, wanted.unet), (model.text_encoders[0], wanted.text_encoders[0])):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert a.dtype == torch.float32 and torch.allclose(a, b, atol=1e-3)
    assert model.vae_is_tiny and not load_model(folder, CPU, vae="full").vae_is_tiny


def spoil(checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "spoilt"
    shutil.copytree(checkpoint(), folder)
    return folder


def code_of(path: Path | str, **keywords) -> tuple[str, str]:
    with pytest.raises(SdbridgeError) as caught:
        load_model(path, CPU, **keywords)
    return caught.value.code, str(caught.value)


def test_missing_corrupt_and_incomplete_folders(checkpoint, tmp_path) -> None:
    assert code_of(tmp_path / "nowhere")[0] == "SDB-MODEL-MISSING"
    assert code_of("")[0] == "SDB-MODEL-MISSING"
    folder = spoil(checkpoint, tmp_path)
    whole = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(whole[: len(whole) // 2])
    code, text = code_of(folder)
    assert code == "SDB-MODEL-CORRUPT" and "unet" in text
    (folder / UNET).write_bytes(b"")
    assert code_of(folder)[0] == "SDB-MODEL-CORRUPT"
    (folder / UNET).write_bytes(whole)
    tensors = load_file(folder / UNET)
    save_file({k: v for k, v in tensors.items() if not k.startswith("mid_block")}, folder / UNET)
    code, text = code_of(folder)
    assert code == "SDB-MODEL-KEYS" and "mid_block" in text
    (folder / UNET).unlink()
    assert code_of(folder)[0] == "SDB-MODEL-PARTS"
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert code_of(folder)[0] == "SDB-MODEL-PICKLE"
    (folder / "unet" / "config.json").write_text("{not json")
    assert code_of(folder)[0] == "SDB-MODEL-CORRUPT"


def test_other_families_are_named(checkpoint, tmp_path) -> None:
    flux = tmp_path / "flux"
    flux.mkdir()
    (flux / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    code, text = code_of(flux)
    assert code == "SDB-MODEL-FAMILY" and "FluxPipeline" in text
    folder = spoil(checkpoint, tmp_path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet3DConditionModel"}))
    assert code_of(folder)[0] == "SDB-MODEL-FAMILY"
    shutil.rmtree(folder / "tokenizer")
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    assert code_of(folder)[0] == "SDB-MODEL-PARTS"


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "LoRA"),
        ("control_model.input_hint_block.0.weight", "ControlNet"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("joint_blocks.0.x.weight", "Stable Diffusion 3"),
        ("something.else", "unknown"),
    ],
)
def test_a_single_file_of_another_kind_says_what_it_is(tmp_path, key: str, word: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(2, 2)}, path)
    code, text = code_of(path)
    assert code == "SDB-MODEL-FAMILY" and word in text


def test_single_files_that_are_cut_lack_keys_or_lack_parts(single_file, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    shutil.copytree(single_file("sd15").with_suffix(".parts"), path.with_suffix(".parts"))
    whole = single_file("sd15").read_bytes()
    path.write_bytes(whole[:5000])
    assert code_of(path)[0] == "SDB-MODEL-CORRUPT"
    tensors = load_file(single_file("sd15"))
    save_file({k: v for k, v in tensors.items() if "middle_block" not in k}, path)
    assert code_of(path)[0] == "SDB-MODEL-KEYS"
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes(whole)
    code, text = code_of(lonely)
    assert code == "SDB-MODEL-PARTS" and "sdbridge pull sd15-parts" in text


def test_pickles_are_refused_and_read_weights_only_even_when_allowed(single_file, tmp_path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(single_file("sd15"))}, path)
    shutil.copytree(single_file("sd15").with_suffix(".parts"), path.with_suffix(".parts"))
    assert code_of(path)[0] == "SDB-MODEL-PICKLE"
    assert load_model(path, CPU, allow_pickle=True).family == "sd15"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": Evil()}}, path)
    assert code_of(path, allow_pickle=True)[0] == "SDB-MODEL-CORRUPT"
    assert not (tmp_path / "was-run").exists()


def test_what_a_model_predicts_is_told_from_one_call_when_no_config_says(checkpoint) -> None:
    model = load_model(checkpoint(), CPU)

    class Answers(torch.nn.Module):
        config = model.unet.config

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, sample, timestep, **keywords):
            other = torch.randn(sample[:, :4].shape, generator=torch.Generator().manual_seed(1))
            return (self.share * sample[:, :4] + (1 - self.share) * other,)

    schedule = noise_schedule({})
    assert probe_prediction(Answers(0.95), schedule, CPU) == "epsilon"
    assert probe_prediction(Answers(0.05), schedule, CPU) == "v_prediction"


def test_a_kind_of_device_and_a_dtype_that_do_not_exist_are_refused() -> None:
    for arguments, code in ((("tpu",), "SDB-ENGINE-DEVICE"), (("cpu", "int8"), "SDB-ENGINE-DTYPE")):
        with pytest.raises(SdbridgeError) as caught:
            choose_placement(*arguments)
        assert caught.value.code == code


OLD_DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."


@pytest.mark.parametrize("asked", ["auto", "cuda", "mps", "cpu"])
@pytest.mark.parametrize("driver", ["none", "old"])
def test_without_a_gpu_that_can_be_used_the_cpu_runs_and_one_line_says_why(
    checkpoint, monkeypatch, caplog, asked: str, driver: str
) -> None:
    from sdbridge.engine.image import device

    told = []

    def is_available() -> bool:
        if driver == "old" and not told:  # torch says it once in a process
            told.append(1)
            warnings.warn(OLD_DRIVER, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "_CUDA_SAYS", [])
    choose_placement(asked)  # as while libraries are imported
    engine = ImageEngine(EngineConfig(model=str(checkpoint()), device=asked))
    engine.load({"width": 64, "height": 64})
    assert engine.model.device.type == "cpu" and engine.model.dtype == torch.float32
    engine.unload()
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if asked == "cpu" or (asked, driver) == ("auto", "none"):
        assert not lines
        return
    (line,) = lines
    assert line.endswith("; the model runs on cpu instead")
    assert ("driver on your system is too old" in line) == (driver == "old")
    assert asked == "auto" or f"device {asked} cannot be used" in line


def test_matrix_units_run_the_tiny_vae_in_bfloat16_and_nothing_else(checkpoint, monkeypatch) -> None:
    from sdbridge.engine.image import device

    for there, asked, wanted in (
        (True, "auto", torch.bfloat16),
        (True, "float32", torch.float32),
        (False, "auto", torch.float32),
    ):
        monkeypatch.setattr(device, "_has_matrix_units", lambda there=there: there)
        model = load_model(checkpoint(), choose_placement("cpu", asked))
        assert (model.dtype, model.vae_dtype) == (torch.float32, wanted)
        assert load_model(checkpoint(), choose_placement("cpu", asked), vae="full").vae_dtype == torch.float32
