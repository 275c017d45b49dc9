"""Files with the names and depths of the published ones (small widths): which tensor ends up where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdbridge.engine.image.control_files import load_network
from sdbridge.engine.image.device import choose_placement
from sdbridge.engine.image.load import LoadedModel, load_model
from sdbridge.engine.image.lora_names import TensorNames
from sdbridge.engine.image.weights import store_of
from sdbridge.errors import SdbridgeError
from sdbridge.models.small import write_small_tokenizer
from tests.engine.image import ldm_keys

CPU = choose_placement("cpu", "float32")
FAMILIES = ("sd15", "sd21", "sdxl")
LAYERS = {"sd15": (12,), "sd21": (23,), "sdxl": (12, 32)}
WORDS = 540


def parts_folder(folder: Path, family: str) -> Path:
    """What ``sdbridge pull <family>-parts`` brings: configs as published but for widths, and a tokenizer."""
    cross = family != "sdxl"
    unet: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 8,
        "block_out_channels": (32, 64, 128, 128) if cross else (32, 64, 128),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        if cross
        else ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
        if cross
        else ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32 if cross else 64,
        "attention_head_dim": 8,
        "use_linear_projection": family != "sd15",
    }
    if not cross:
        unet |= {
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
    vae = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "force_upcast": family == "sdxl",
    }
    configs = {"unet": unet, "vae": vae}
    for index, layers in enumerate(LAYERS[family]):
        configs["text_encoder_2" if index else "text_encoder"] = {
            "hidden_size": 32,
            "intermediate_size": 128,
            "projection_dim": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "vocab_size": WORDS,
            "bos_token_id": WORDS - 2,
            "eos_token_id": WORDS - 1,
            "hidden_act": "quick_gelu" if family != "sd21" and not index else "gelu",
        }
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",):
        write_small_tokenizer(folder / name)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("pulled")
    return {family: parts_folder(root / f"{family}-parts", family) for family in FAMILIES}


@pytest.fixture(scope="module")
def files() -> Mapping[str, dict[str, torch.Tensor]]:
    """The tensors of the three published files, each of values of its own."""
    draw = torch.Generator().manual_seed(0)
    made: dict[str, dict[str, torch.Tensor]] = {}
    for family in FAMILIES:
        made[family] = {
            name: torch.randn(shape, generator=draw) * 0.02
            for name, shape in ldm_keys.checkpoint(family, WORDS).items()
        }
        for name in made[family]:
            if name.endswith("position_ids"):
                made[family][name] = torch.arange(77)[None]
    return made


def load(
    tmp_path: Path, tensors: Mapping[str, torch.Tensor], parts: Path, *, vae: str = "full", **metadata: str
) -> LoadedModel:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata or None)
    return load_model(path, CPU, vae=vae, options={"parts": str(parts)})


def test_the_lists_have_as_many_names_as_the_published_files() -> None:
    """v1-5-pruned-emaonly: 1131 tensors; sd_xl_base_1.0: 2515 (UNet 1680); each VAE 248, each SD UNet 686."""
    lists = {family: ldm_keys.checkpoint(family, WORDS) for family in FAMILIES}
    assert [len(lists[family]) for family in FAMILIES] == [1131, 1228, 2515]
    unets = [sum(name.startswith("model.diffusion_model.") for name in lists[family]) for family in FAMILIES]
    assert unets == [686, 686, 1680]


#: Published name -> part and name in diffusers or transformers.
PLACES = {
    "sd15": {
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": "down_blocks.0.resnets.0.conv1.weight",
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "model.diffusion_model.input_blocks.9.0.op.weight": "down_blocks.2.downsamplers.0.conv.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.weight": "mid_block.resnets.1.conv2.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "model.diffusion_model.output_blocks.11.1.norm.weight": "up_blocks.3.attentions.2.norm.weight",
        "model.diffusion_model.out.2.bias": "conv_out.bias",
    },
    "sd21": {
        "model.diffusion_model.output_blocks.3.0.skip_connection.weight": (
            "up_blocks.1.resnets.0.conv_shortcut.weight"
        ),
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": "down_blocks.1.attentions.0.proj_in.weight",
    },
    "sdxl": {
        "model.diffusion_model.label_emb.0.2.weight": "add_embedding.linear_2.weight",
        "model.diffusion_model.input_blocks.7.1.transformer_blocks.9.ff.net.0.proj.weight": (
            "down_blocks.2.attentions.0.transformer_blocks.9.ff.net.0.proj.weight"
        ),
        "model.diffusion_model.output_blocks.2.2.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "model.diffusion_model.output_blocks.8.0.emb_layers.1.weight": (
            "up_blocks.2.resnets.2.time_emb_proj.weight"
        ),
    },
}
VAE_PLACES = {
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_2.conv1.weight": "encoder.mid_block.resnets.1.conv1.weight",
    "decoder.up.0.block.2.conv2.weight": "decoder.up_blocks.3.resnets.2.conv2.weight",
    "decoder.up.3.upsample.conv.bias": "decoder.up_blocks.0.upsamplers.0.conv.bias",
    "decoder.mid.attn_1.proj_out.weight": "decoder.mid_block.attentions.0.to_out.0.weight",
    "decoder.mid.attn_1.q.weight": "decoder.mid_block.attentions.0.to_q.weight",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


def weight(module: Any, name: str) -> torch.Tensor:
    return dict(module.named_parameters())[name]


def text_weight(encoder: Any, name: str) -> torch.Tensor:
    """transformers 5 left out ``text_model.`` in plain encoders."""
    named = dict(encoder.named_parameters())
    return named.get(name, named.get(name.removeprefix("text_model."), torch.empty(0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_published_file_finds_its_place(tmp_path, files, parts, family: str) -> None:
    given = files[family]
    model = load(tmp_path, given, parts[family])
    assert model.family == family and not model.vae_is_tiny
    for theirs, ours in PLACES[family].items():
        assert torch.equal(weight(model.unet, ours), given[theirs]), theirs
    for theirs, ours in VAE_PLACES.items():
        wanted = given[f"first_stage_model.{theirs}"]
        assert torch.equal(weight(model.vae, ours), wanted.reshape(weight(model.vae, ours).shape)), theirs
    used = {"unet": model.unet, "vae": model.vae}
    sums = {name: sum(float(p.double().sum()) for p in part.parameters()) for name, part in used.items()}
    for name, prefix in (("unet", "model.diffusion_model."), ("vae", "first_stage_model.")):
        wanted = sum(float(t.double().sum()) for key, t in given.items() if key.startswith(prefix))
        assert sums[name] == pytest.approx(wanted, abs=1e-6), name  # all of them, none twice
    check_text(model, given, family)


def check_text(model: LoadedModel, given: Mapping[str, torch.Tensor], family: str) -> None:
    first = model.text_encoders[0]
    if family != "sd21":
        stem = "cond_stage_model.transformer." if family == "sd15" else "conditioner.embedders.0.transformer."
        for name in ("encoder.layers.11.mlp.fc2.weight", "embeddings.position_embedding.weight"):
            assert torch.equal(text_weight(first, f"text_model.{name}"), given[f"{stem}text_model.{name}"])
    if family == "sd15":
        return
    encoder, stem = (
        (first, "cond_stage_model.model.")
        if family == "sd21"
        else (model.text_encoders[1], "conditioner.embedders.1.model.")
    )
    joined = given[f"{stem}transformer.resblocks.7.attn.in_proj_weight"]
    for index, part in enumerate("qkv"):
        ours = text_weight(encoder, f"text_model.encoder.layers.7.self_attn.{part}_proj.weight")
        assert torch.equal(ours, joined[32 * index : 32 * index + 32]), part
    assert torch.equal(
        text_weight(encoder, "text_model.encoder.layers.22.mlp.fc1.bias"),
        given[f"{stem}transformer.resblocks.22.mlp.c_fc.bias"],
    )
    if family == "sdxl":
        assert torch.equal(encoder.text_projection.weight, given[f"{stem}text_projection"].T)


def renamed(tensors: Mapping[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new) if name.startswith(old) else name: t for name, t in tensors.items()}


def variants(files: Mapping[str, dict[str, torch.Tensor]]) -> dict[str, tuple[str, dict[str, torch.Tensor]]]:
    """What trainers, mergers and pruners make of the same weights."""
    sd15, sd21, sdxl = files["sd15"], files["sd21"], files["sdxl"]
    unet = "model.diffusion_model."
    extra = {
        "alphas_cumprod": torch.ones(1000),
        "betas": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.logit_scale": torch.zeros(()),
    }
    averaged = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": t + 1
        for name, t in sd15.items()
        if name.startswith(unet)
    }
    flat = {name: t[:, :, 0, 0] if ".attn_1." in name and t.dim() == 4 else t for name, t in sd15.items()}
    return {
        "half precision": ("sd15", {n: t.half() if t.is_floating_point() else t for n, t in sd15.items()}),
        "averaged weights and the schedule's constants": ("sd15", sd15 | extra | averaged),
        "text without text_model": (
            "sd15",
            renamed(sd15, "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        ),
        "VAE attention as matrices": ("sd15", flat),
        "without position_ids": ("sd15", {n: t for n, t in sd15.items() if "position_ids" not in n}),
        "SD 2.x as Stability's later code names its text": (
            "sd21",
            renamed(sd21, "cond_stage_model.model.", "conditioner.embedders.0.model."),
        ),
        "SDXL in half precision": (
            "sdxl",
            {n: t.half() if t.is_floating_point() else t for n, t in sdxl.items()},
        ),
    }


@pytest.mark.parametrize("kind", list(variants({family: {} for family in FAMILIES})))
def test_variants_of_the_same_weights_give_the_same_model(tmp_path, files, parts, kind: str) -> None:
    family, tensors = variants(files)[kind]
    model = load(tmp_path, tensors, parts[family])
    assert model.family == family
    for theirs, ours in PLACES[family].items():
        assert torch.allclose(weight(model.unet, ours), files[family][theirs], atol=2e-4), theirs
    wanted = files[family]["first_stage_model.decoder.mid.attn_1.k.weight"].flatten(1)
    assert torch.allclose(weight(model.vae, "decoder.mid_block.attentions.0.to_k.weight"), wanted, atol=2e-4)
    if "half" not in kind:
        check_text(model, files[family], family)


def without(tensors: Mapping[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_without_text_encoders_takes_those_of_the_parts_folder(
    tmp_path, files, parts, family: str
) -> None:
    """Pruned community files leave them out; where the parts have weights, these are the model's."""
    pruned = without(files[family], "cond_stage_model.", "conditioner.")
    with pytest.raises(SdbridgeError) as caught:
        load(tmp_path, pruned, parts[family])
    assert caught.value.code == "SDB-MODEL-PARTS" and "text_encoder" in str(caught.value)
    own = parts_folder(tmp_path / "own-parts", family)
    whole = load(tmp_path, files[family], own)
    for index, encoder in enumerate(whole.text_encoders):
        folder = own / ("text_encoder_2" if index else "text_encoder")
        save_file(
            {name: t.contiguous() for name, t in encoder.state_dict().items()}, folder / "model.safetensors"
        )
    again = load(tmp_path, pruned, own)
    assert again.family == family
    for ours, theirs in zip(again.text_encoders, whole.text_encoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_file_without_vae_says_what_to_do(tmp_path, files, parts) -> None:
    with pytest.raises(SdbridgeError) as caught:
        load(tmp_path, without(files["sd15"], "first_stage_model."), parts["sd15"])
    assert caught.value.code == "SDB-MODEL-PARTS"
    assert "without its VAE" in str(caught.value) and "sdbridge pull taesd" in str(caught.value)


def test_relatives_that_cannot_run_are_named(tmp_path, files, parts) -> None:
    refiner = ldm_keys.Layout(32, (1, 2, 4, 4), (0, 4, 4, 0), 64, linear=True, sizes=80, middle=4)
    unclip = ldm_keys.Layout(32, (1, 2, 4, 4), (1, 1, 1, 0), 32, linear=True, sizes=64)
    edits = ldm_keys.Layout(32, (1, 2, 4, 4), (1, 1, 1, 0), 32, linear=False, channels=8)
    depth = ldm_keys.Layout(32, (1, 2, 4, 4), (1, 1, 1, 0), 32, linear=True, channels=5)
    text = without(files["sd21"], "model.", "first_stage_model.")
    kinds = {
        "refiner": (
            "sdxl",
            refiner,
            renamed(text, "cond_stage_model.model.", "conditioner.embedders.0.model."),
        ),
        "unCLIP": ("sd21", unclip, text),
        "8 channels": ("sd15", edits, without(files["sd15"], "model.")),
        "5 channels": ("sd21", depth, text),
    }
    for word, (family, layout, rest) in kinds.items():
        keys = ldm_keys.under("model.diffusion_model.", ldm_keys.unet(layout))
        tensors = {name: torch.zeros(shape) for name, shape in keys.items()} | rest
        with pytest.raises(SdbridgeError) as caught:
            load(tmp_path, tensors, parts[family])
        assert caught.value.code == "SDB-MODEL-FAMILY" and word in str(caught.value), str(caught.value)


@pytest.fixture(scope="module")
def models(
    files: Mapping[str, dict[str, torch.Tensor]], parts: Mapping[str, Path], tmp_path_factory: Any
) -> Mapping[str, LoadedModel]:
    """The three models, for tests that write nothing into them."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for family in FAMILIES:
        (root / family).mkdir()
        made[family] = load(root / family, files[family], parts[family])
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_its_name_in_the_original_spelling_of_lora_files(models, files, family: str) -> None:
    """kohya's SDXL files name LDM's layers; each must be the very tensor of the checkpoint."""
    model = models[family]
    store = store_of(model)
    names = TensorNames(store, model.unet.config)
    spelled = 0
    for key, tensor in files[family].items():
        if not key.startswith("model.diffusion_model.") or not key.endswith(".weight"):
            continue
        stem = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        found = names.find(f"lora_unet_{stem.replace('.', '_')}")
        assert found is not None and torch.equal(store.tensor(f"{found}.weight"), tensor), stem
        assert names.find(f"diffusion_model.{stem}") == found
        spelled += 1
    assert spelled == sum(1 for name, _ in model.unet.named_parameters() if name.endswith(".weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_text_layers_have_their_names_in_lora_files(models, files, family: str) -> None:
    model = models[family]
    store = store_of(model)
    names = TensorNames(store, model.unet.config)
    for index, _encoder in enumerate(model.text_encoders):
        prefixes = ("lora_te_", "lora_te1_")[: 1 if family == "sdxl" else 2]
        kohya = (("lora_te1_",) if not index else ("lora_te2_",)) if family == "sdxl" else prefixes
        dotted = "text_encoder_2." if index else "text_encoder."
        for layer in range(LAYERS[family][index]):
            for part in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
                stem = f"text_model.encoder.layers.{layer}.{part}"
                wanted = names.find(f"{dotted}{stem}")
                assert wanted is not None and wanted.startswith(f"text_encoder_{index + 1}."), stem
                assert wanted.endswith(f"encoder.layers.{layer}.{part}")
                assert {names.find(f"{p}{stem.replace('.', '_')}") for p in kohya} == {wanted}


@pytest.mark.parametrize("kind", ["as published", "without prefix", "with its whole checkpoint"])
def test_a_controlnet_of_the_original_code(tmp_path, models, files, kind: str) -> None:
    draw = torch.Generator().manual_seed(4)
    keys = dict(ldm_keys.controlnet(ldm_keys.SD15))
    assert len(keys) == 340  # as control_v11p_sd15_canny has
    tensors = {name: torch.randn(shape, generator=draw) * 0.02 for name, shape in keys.items()}
    prefix = "" if kind == "without prefix" else "control_model."
    saved = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    if kind == "with its whole checkpoint":
        saved |= files["sd15"]
    path = tmp_path / "control.safetensors"
    save_file(saved, path)
    network = load_network(path, models["sd15"])
    found = dict(network.run.network.named_parameters()) | {
        f"hint.{name}": p for name, p in network._embed.named_parameters()
    }
    for theirs, ours in {
        "input_blocks.11.0.out_layers.3.weight": "down_blocks.3.resnets.1.conv2.weight",
        "input_blocks.8.1.proj_in.weight": "down_blocks.2.attentions.1.proj_in.weight",
        "zero_convs.7.0.weight": "controlnet_down_blocks.7.weight",
        "middle_block_out.0.bias": "controlnet_mid_block.bias",
        "input_hint_block.0.weight": "hint.conv_in.weight",
        "input_hint_block.6.weight": "hint.blocks.2.weight",
        "input_hint_block.14.weight": "hint.conv_out.weight",
    }.items():
        assert torch.equal(found[ours], tensors[theirs]), theirs
    total = sum(float(p.double().sum()) for p in found.values())
    assert total == pytest.approx(sum(float(t.double().sum()) for t in tensors.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight", "LLLite"),
        ("lora_controlnet", "Control-LoRA"),
        ("task_embedding", "Union"),
        ("difference", "difference"),
        ("body.0.block1.weight", "first layout"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "/sdbridge/lora"),
        ("ip_adapter.1.to_k_ip.weight", "/sdbridge/style_model"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "SparseCtrl"),
    ],
)
def test_what_is_near_to_a_controlnet_is_named(tmp_path, models, key: str, word: str) -> None:
    path = tmp_path / "near.safetensors"
    save_file({key: torch.zeros(2), "input_hint_block.0.weight": torch.zeros(2)}, path)
    with pytest.raises(SdbridgeError) as caught:
        load_network(path, models["sd15"])
    assert caught.value.code == "SDB-CONTROLNET-KIND" and word in str(caught.value)
    assert "near.safetensors" in str(caught.value)
