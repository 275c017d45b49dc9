"""LoRA: every file layout against diffusers' fuse, the fader's exactness, and the answers to bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdbridge.engine.image import beside
from sdbridge.engine.image.lora import LoraSlots
from sdbridge.engine.image.lora_files import load_lora
from sdbridge.engine.image.lora_names import TensorNames
from sdbridge.engine.image.lora_products import make_products
from sdbridge.engine.image.weights import store_of
from sdbridge.errors import SdbridgeError
from tests.engine.image.conditioning import Bench, Parts, make_bench, small_folder, small_parts

RANK = 4
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONV = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
OUTER = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


def targets(unet: Any, kinds: tuple[str, ...] = LINEAR + CONV) -> list[str]:
    named = dict(unet.named_modules())
    return [name for name in named if name.endswith(kinds) and hasattr(named[name], "weight")]


def pairs(
    module: Any, names: list[str], seed: int, rank: int = RANK
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random (down, up) for each named layer of ``module``."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        shape = module.get_submodule(name).weight.shape
        down = torch.randn(rank, *shape[1:], generator=draw) * 0.2
        up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=draw) * 0.2
        found[name] = (down, up)
    return found


def kohya(layers: dict, prefix: str = "lora_unet_", alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in layers.items():
        stem = prefix + name.replace(".", "_")
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        if alpha is not None:
            state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state


def peft(layers: dict, prefix: str = "unet.") -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in layers.items():
        state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return state


def pipeline(parts: Parts) -> Any:
    """diffusers' own pipeline over the same modules, the oracle."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    folder = small_folder(parts.family)
    common = {
        "unet": parts.unet,
        "vae": parts.vae,
        "text_encoder": parts.text_encoders[0],
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
    }
    if parts.family == "sdxl":
        return StableDiffusionXLPipeline(
            **common,
            text_encoder_2=parts.text_encoders[1],
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        )
    return StableDiffusionPipeline(
        **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def fused_by_diffusers(family: str, files: list[tuple[Path, float]]) -> Parts:
    parts = small_parts(family)
    pipe = pipeline(parts)
    for index, (file, _) in enumerate(files):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{index}")
    pipe.set_adapters([f"a{i}" for i in range(len(files))], [weight for _, weight in files])
    pipe.fuse_lora(adapter_names=[f"a{i}" for i in range(len(files))])
    pipe.unload_lora_weights()
    return parts


def same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Every weight of the two modules within ``tolerance`` relative to its largest value."""
    other = {name.replace(".base_layer", ""): p for name, p in theirs.named_parameters()}
    for name, tensor in ours.named_parameters():
        worst = (tensor - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-6)
        assert worst <= tolerance, (name, float(worst))


def slots(bench: Bench) -> LoraSlots:
    return LoraSlots(bench.context, store_of(bench.parts))


def put(bench: Bench, lora: LoraSlots, **values: object) -> None:
    """``slot1_file="..."`` and so on, then load and take over at a frame edge."""
    changes = {f"lora.{key[4]}.{key[6:]}": value for key, value in values.items()}
    assert lora.apply(changes) == ()
    bench.finish_loading()
    lora.frame_edge()


def saved(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str = "a.safetensors", **metadata: str
) -> Path:
    tmp_path.mkdir(exist_ok=True, parents=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / name, metadata or None)
    return tmp_path / name


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("weight", [0.3, 1.0, -0.7])
def test_kohya_locon_equals_diffusers_fuse(tmp_path: Path, family: str, weight: float) -> None:
    bench = make_bench(family)
    file = saved(tmp_path, kohya(pairs(bench.parts.unet, targets(bench.parts.unet), 1)))
    lora = slots(bench)
    put(bench, lora, slot1_file=str(file), slot1_weight=weight)
    assert not bench.reports
    same(bench.parts.unet, fused_by_diffusers(family, [(file, weight)]).unet)


@pytest.mark.parametrize("weights", [(0.3, 0.9), (1.0, -0.5), (2.0, 0.1)])
def test_two_loras_equal_diffusers_fuse(tmp_path: Path, weights: tuple[float, float]) -> None:
    bench = make_bench()
    unet = bench.parts.unet
    one = saved(tmp_path, kohya(pairs(unet, targets(unet), 1)), "one.safetensors")
    two = saved(tmp_path, peft(pairs(unet, targets(unet, LINEAR), 2, rank=2)), "two.safetensors")
    put(bench, lora := slots(bench), slot1_file=str(one), slot2_file=str(two))
    put(bench, lora, slot1_weight=weights[0], slot2_weight=weights[1])
    theirs = fused_by_diffusers("sd15", [(one, weights[0]), (two, weights[1])])
    same(unet, theirs.unet)


def layouts(layers: dict) -> dict[str, dict[str, torch.Tensor]]:
    """The same layers (alpha = rank) as each layout writes them."""
    old, linear = {}, {}
    for name, (down, up) in layers.items():
        if ".attn" in name:
            attention, _, piece = name.rpartition(".to_")
            stem = f"unet.{attention}.processor.to_{piece.removesuffix('.0')}_lora"
            old |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
        else:
            old |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
        linear |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
    return {
        "kohya": kohya(layers, alpha=None),
        "kohya alpha": kohya(layers, alpha=float(RANK)),
        "diffusers processor": old,
        "diffusers lora": linear,
        "diffusers peft": peft(layers),
        "peft": peft(layers, "base_model.model."),
        "peft without prefix": peft(layers, ""),
    }


@pytest.mark.parametrize("layout", list(layouts({})))
def test_every_layout_means_the_same(tmp_path: Path, layout: str) -> None:
    parts = small_parts()
    layers = pairs(parts.unet, targets(parts.unet), 3)
    base = {name: p.clone() for name, p in parts.unet.named_parameters()}
    file = saved(tmp_path, layouts(layers)[layout])
    bench = make_bench()
    put(bench, slots(bench), slot1_file=str(file))
    assert not bench.reports
    for name, parameter in bench.parts.unet.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in layers and name.endswith(".weight"):
            down, up = layers[layer]
            wanted = base[name] + (up.flatten(1) @ down.flatten(1)).reshape(base[name].shape)
            assert torch.allclose(parameter, wanted, atol=1e-6), name
        else:
            assert torch.equal(parameter, base[name]), name


def test_sdxl_files_in_the_original_names_equal_diffusers_fuse(tmp_path: Path) -> None:
    """kohya trains SDXL on the original UNet: input_blocks, middle_block, output_blocks, label_emb."""
    bench = make_bench("sdxl")
    unet = bench.parts.unet
    names = TensorNames(store_of(bench.parts), unet.config)
    ldm = {
        m.removeprefix("unet."): s.removeprefix("unet:")
        for s, m in names._flat.items()
        if "blocks_" in s or "_block_" in s
    }
    ldm = {m: s.replace("_1_conv", "_2_conv") for m, s in ldm.items()}  # this upsampler follows an attention
    layers = pairs(unet, [name for name in targets(unet) if name in ldm], 5)
    assert len(layers) == len(targets(unet))  # every layer has a name there
    state = {}
    for name, (down, up) in layers.items():
        state |= {
            f"lora_unet_{ldm[name]}.lora_down.weight": down,
            f"lora_unet_{ldm[name]}.lora_up.weight": up,
        }
        state[f"lora_unet_{ldm[name]}.alpha"] = torch.tensor(2.0)
    file = saved(tmp_path, state)
    put(bench, slots(bench), slot1_file=str(file), slot1_weight=0.8)
    assert not bench.reports
    same(unet, fused_by_diffusers("sdxl", [(file, 0.8)]).unet)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_text_encoder_parts_equal_diffusers_fuse_and_renew_the_prompts(tmp_path: Path, family: str) -> None:
    bench = make_bench(family)
    state = kohya(pairs(bench.parts.unet, targets(bench.parts.unet, ("to_q",)), 1))
    prefixes = ["lora_te_"] if family == "sd15" else ["lora_te1_", "lora_te2_"]
    for prefix, encoder in zip(prefixes, bench.parts.text_encoders, strict=True):
        named = [n for n, m in encoder.named_modules() if n.endswith(("q_proj", "out_proj", "fc1", "fc2"))]
        for name, pair in pairs(encoder, named, 2).items():
            state |= kohya({f"text_model.{name.removeprefix('text_model.')}": pair}, prefix)
    file = saved(tmp_path, state)
    lora = slots(bench)
    put(bench, lora, slot1_file=str(file), slot1_weight=0.6)
    assert not bench.reports and len(bench.prompts_changed) == 1
    theirs = fused_by_diffusers(family, [(file, 0.6)])
    for ours, other in zip(bench.parts.text_encoders, theirs.text_encoders, strict=True):
        same(ours, other)
    put(bench, lora, slot1_file="")
    assert len(bench.prompts_changed) == 2
    for ours, base in zip(bench.parts.text_encoders, small_parts(family).text_encoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), base.parameters(), strict=True))


def test_a_lora_without_text_parts_leaves_the_prompts_alone(tmp_path: Path) -> None:
    bench = make_bench()
    encoder = bench.parts.text_encoders[0]
    named = [name for name, _ in encoder.named_modules() if name.endswith("q_proj")]
    text = saved(
        tmp_path,
        kohya({f"text_model.{n}": p for n, p in pairs(encoder, named, 2).items()}, "lora_te_"),
        "t.safetensors",
    )
    picture = saved(tmp_path, kohya(pairs(bench.parts.unet, targets(bench.parts.unet), 1)), "p.safetensors")
    lora = slots(bench)
    put(bench, lora, slot1_file=str(text), slot2_file=str(picture))
    assert len(bench.prompts_changed) == 1
    put(bench, lora, slot2_weight=0.2)  # the other fader
    assert len(bench.prompts_changed) == 1 and len(bench.weights_changed) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_thousand_moves_read_no_file_and_zero_restores_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    bench = make_bench()
    bench.parts.unet.to(dtype)
    base = {name: p.clone() for name, p in bench.parts.unet.named_parameters()}
    addresses = {name: p.data_ptr() for name, p in bench.parts.unet.named_parameters()}
    lora = slots(bench)
    names = targets(bench.parts.unet)
    for slot in (1, 2):
        file = saved(tmp_path, kohya(pairs(bench.parts.unet, names, slot)), f"{slot}.safetensors")
        put(bench, lora, **{f"slot{slot}_file": str(file)})
    assert lora.loads == 2
    for move in range(1000):
        lora.apply({f"lora.{1 + move % 2}.weight": (move % 37) / 18 - 1})
        assert lora.frame_edge() in (True, False)
    assert lora.loads == 2 and not bench.waiting
    lora.apply({"lora.1.weight": 0.0, "lora.2.weight": 0.0})
    lora.frame_edge()
    for name, parameter in bench.parts.unet.named_parameters():
        assert torch.equal(parameter, base[name]), name
        assert parameter.data_ptr() == addresses[name], name
    lora.apply({"lora.1.weight": 1.0})
    lora.frame_edge()
    assert not torch.equal(bench.parts.unet.conv_in.weight, base["conv_in.weight"]) or "conv_in" not in names
    put(bench, lora, slot1_file="", slot2_file="")
    assert all(torch.equal(p, base[name]) for name, p in bench.parts.unet.named_parameters())
    assert lora._store.bytes_of_bases == 0


def test_alpha_differs_from_rank_and_every_key_is_applied_or_named(tmp_path: Path) -> None:
    bench = make_bench()
    unet = bench.parts.unet
    state = kohya(pairs(unet, targets(unet) + list(OUTER), 4), alpha=1.5)
    count = len(targets(unet)) + len(OUTER)
    strange = {
        "lora_unet_nowhere_to_be_found.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_nowhere_to_be_found.lora_up.weight": torch.zeros(8, 4),
        "lora_unet_conv_in.oft_blocks": torch.zeros(16, 1),
        "something.else": torch.zeros(3),
    }
    file = saved(tmp_path, state | strange)
    found = load_lora(file, (store := store_of(bench.parts)), TensorNames(store, unet.config))
    assert found.applied == count
    assert set(found.unapplied) == set(strange)
    put(bench, slots(bench), slot1_file=str(file))
    ((code, message),) = bench.reports
    assert code == "SDB-LORA-KEYS" and all(key in message for key in strange) and file.name in message


def test_peft_alpha_from_its_config_and_from_diffusers_metadata(tmp_path: Path) -> None:
    parts = small_parts()
    layers = pairs(parts.unet, targets(parts.unet, ("to_q",)), 6)
    (tmp_path / "folder").mkdir()
    saved(tmp_path / "folder", peft(layers, "base_model.model."), "adapter_model.safetensors")
    (tmp_path / "folder" / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 4}')
    metadata = saved(tmp_path, peft(layers), lora_adapter_metadata='{"unet.lora_alpha": 1, "unet.r": 4}')
    name = next(iter(layers))
    down, up = layers[name]
    for path in (tmp_path / "folder", metadata):
        store = store_of(parts)
        found = load_lora(path, store, TensorNames(store, parts.unet.config))
        assert torch.allclose(found.products[f"unet.{name}.weight"], up @ down / 4, atol=1e-7)


def test_loha_lokr_diff_and_cp_products() -> None:
    torch.manual_seed(0)
    a, b, c, d = torch.randn(6, 2), torch.randn(2, 5), torch.randn(6, 2), torch.randn(2, 5)
    loha = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    made = make_products(loha | {"alpha": torch.tensor(1.0)}, None)
    assert torch.allclose(made["weight"], (a @ b) * (c @ d) / 2)
    w1, low, high = torch.randn(2, 3), torch.randn(4, 2), torch.randn(2, 5)
    made = make_products(
        {"lokr_w1": w1, "lokr_w2_a": low, "lokr_w2_b": high, "alpha": torch.tensor(1.0)}, None
    )
    assert torch.allclose(made["weight"], torch.kron(w1, low @ high) / 2)
    assert torch.equal(make_products({"diff": a, "diff_b": torch.ones(6)}, None)["bias"], torch.ones(6))
    down, mid, up = torch.randn(2, 5, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(6, 2, 1, 1)
    made = make_products({"down": down, "up": up, "mid": mid}, None)["weight"]
    x = torch.randn(1, 5, 7, 7)
    conv = torch.nn.functional.conv2d
    assert torch.allclose(conv(x, made), conv(conv(conv(x, down), mid), up), atol=1e-4)


MAGNITUDE_ENDINGS = ("lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default")


def dora(unet: Any, layers: dict, ending: str = MAGNITUDE_ENDINGS[0]) -> dict[str, torch.Tensor]:
    """PEFT's DoRA: magnitudes near the norms of the rows, as training starts from them."""
    state = peft(layers)
    draw = torch.Generator().manual_seed(11)
    for name in layers:
        weight = unet.get_submodule(name).weight
        norm = weight.flatten(1).norm(dim=1) * (0.7 + 0.6 * torch.rand(weight.shape[0], generator=draw))
        state[f"unet.{name}.{ending}"] = norm if weight.dim() == 2 else norm.view(1, -1, 1, 1)
    return state


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_dora_equals_diffusers_fuse_and_its_fader_goes_straight_there(tmp_path: Path, family: str) -> None:
    bench = make_bench(family)
    unet = bench.parts.unet
    base = {name: p.clone() for name, p in unet.named_parameters()}
    file = saved(tmp_path, dora(unet, pairs(unet, targets(unet), 1)))
    lora = slots(bench)
    put(bench, lora, slot1_file=str(file))
    assert not bench.reports
    whole = fused_by_diffusers(family, [(file, 1.0)]).unet
    same(unet, whole)
    put(bench, lora, slot1_weight=0.4)
    fused = {name.replace(".base_layer", ""): p for name, p in whole.named_parameters()}
    for name, parameter in unet.named_parameters():
        wanted = base[name] + 0.4 * (fused[name] - base[name])
        assert torch.allclose(parameter, wanted, rtol=0, atol=1e-5 * float(base[name].abs().max())), name
    put(bench, lora, slot1_weight=0.0)
    assert all(torch.equal(p, base[name]) for name, p in unet.named_parameters())


@pytest.mark.parametrize("ending", MAGNITUDE_ENDINGS)
def test_every_spelling_of_peft_s_magnitudes_is_read(tmp_path: Path, ending: str) -> None:
    parts = small_parts()
    state = dora(parts.unet, pairs(parts.unet, targets(parts.unet, ("to_q",)), 3), ending)
    store = store_of(parts)
    found = load_lora(saved(tmp_path, state), store, TensorNames(store, parts.unet.config))
    assert found.unapplied == () and found.applied == len(state) // 3


def naive_dora(base: torch.Tensor, product: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Row by row or column by column in float64, as the paper has it: the merged weight."""
    merged = (base + product.reshape(base.shape)).double()
    by_rows = scale.shape[0] == base.shape[0]
    for index in range(base.shape[0] if by_rows else base.shape[1]):
        line = merged[index] if by_rows else merged[:, index]
        line *= float(scale.flatten()[index]) / float((line**2).sum() ** 0.5)
    return merged


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dora_scale_of_lycoris_on_rows_and_on_columns(tmp_path: Path, kind: str, on_output: bool) -> None:
    """Linear and convolution, LoRA, LoHa and LoKr, alpha not the rank: exact to 1e-5, and back to 0."""
    bench = make_bench()
    unet = bench.parts.unet
    names = ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"]
    base = {name: unet.get_submodule(name).weight.clone() for name in names}
    draw = torch.Generator().manual_seed(5)
    state, wanted = {}, {}
    for name in names:
        out, rest = base[name].shape[0], base[name][0].numel()
        pieces, product = lycoris_layer(kind, out, base[name].shape[1], rest, draw)
        shape = [1] * base[name].dim()
        shape[0 if on_output else 1] = -1
        scale = (0.5 + torch.rand(base[name].shape[0 if on_output else 1], generator=draw)).view(shape)
        pieces["dora_scale"] = scale
        wanted[name] = naive_dora(base[name], product, scale)
        state |= {f"lora_unet_{name.replace('.', '_')}.{key}": value for key, value in pieces.items()}
    lora = slots(bench)
    put(bench, lora, slot1_file=str(saved(tmp_path, state)))
    assert not bench.reports
    for weight in (1.0, 0.35):
        put(bench, lora, slot1_weight=weight)
        for name in names:
            mixed = base[name] + weight * (wanted[name] - base[name])
            now = unet.get_submodule(name).weight.double()
            assert (now - mixed).norm() / mixed.norm() <= 1e-5, name
    put(bench, lora, slot1_weight=0.0)
    assert all(torch.equal(unet.get_submodule(name).weight, base[name]) for name in names)


def lycoris_layer(
    kind: str, out: int, channels: int, rest: int, draw: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer's pieces with alpha 1 and rank 2, and the product that they mean, element by element."""

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    side = int((rest // channels) ** 0.5)
    alpha = {"alpha": torch.tensor(1.0)}
    if kind == "lora":
        down, up = rand(2, rest), rand(out, 2)
        kernel = down.view(2, channels, side, side) if side > 1 else down
        product = torch.stack([sum(up[o, r] * down[r] for r in range(2)) / 2 for o in range(out)])
        return alpha | {"lora_down.weight": kernel, "lora_up.weight": up}, product
    if kind == "loha":
        a, b, c, d = rand(out, 2), rand(2, rest), rand(out, 2), rand(2, rest)
        product = torch.stack(
            [(a[o] @ b) * (c[o] @ d) / 2 for o in range(out)],
        )
        return alpha | {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, product
    small, low, high = rand(4, 2), rand(out // 4, 2), rand(2, rest // 2)
    big = low @ high / 2
    product = torch.cat([torch.cat([small[i, j] * big for j in range(2)], 1) for i in range(4)])
    return alpha | {"lokr_w1": small, "lokr_w2_a": low, "lokr_w2_b": high}, product


def test_tucker_kernels_of_loha_and_lokr(tmp_path: Path) -> None:
    torch.manual_seed(2)
    t, a, b = torch.randn(2, 2, 3, 3), torch.randn(2, 6), torch.randn(2, 5)
    kernel = torch.zeros(6, 5, 3, 3)
    for r in range(2):
        for s in range(2):
            kernel += a[r][:, None, None, None] * b[s][None, :, None, None] * t[r, s]
    made = make_products(
        {"hada_t1": t, "hada_w1_a": a, "hada_w1_b": b}
        | {"hada_t2": t, "hada_w2_a": a, "hada_w2_b": b, "alpha": torch.tensor(1.0)},
        None,
    )
    assert torch.allclose(made["weight"], kernel * kernel / 2, atol=1e-5)
    w1 = torch.randn(2, 3)
    made = make_products({"lokr_w1": w1, "lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}, None)
    for row in range(2):
        for column in range(3):
            block = made["weight"][row * 6 : row * 6 + 6, column * 5 : column * 5 + 5]
            assert torch.allclose(block, w1[row, column] * kernel, atol=1e-5)


def test_norms_that_lycoris_trained_are_applied(tmp_path: Path) -> None:
    bench = make_bench()
    norm = bench.parts.unet.get_submodule("down_blocks.0.resnets.0.norm1")
    before = norm.weight.clone(), norm.bias.clone()
    stem = "lora_unet_down_blocks_0_resnets_0_norm1"
    state = {
        f"{stem}.w_norm": torch.full_like(norm.weight, 0.5),
        f"{stem}.b_norm": torch.ones_like(norm.bias),
    }
    put(bench, slots(bench), slot1_file=str(saved(tmp_path, state)))
    assert not bench.reports
    assert torch.equal(norm.weight, before[0] + 0.5) and torch.equal(norm.bias, before[1] + 1)


def test_magnitudes_of_another_size_are_another_family_s_and_lonely_ones_are_named(tmp_path: Path) -> None:
    bench = make_bench()
    state = dora(bench.parts.unet, pairs(bench.parts.unet, targets(bench.parts.unet, ("to_q",)), 3))
    first = next(key for key in state if key.endswith("vector"))
    lora = slots(bench)
    put(bench, lora, slot1_file=str(saved(tmp_path, state | {first: torch.ones(7)}, "seven.safetensors")))
    ((code, message),) = bench.reports
    assert code == "SDB-LORA-FAMILY" and "seven.safetensors" in message
    bench.reports.clear()
    lonely = "lora_unet_conv_in.dora_scale"
    put(bench, lora, slot1_file=str(saved(tmp_path, state | {lonely: torch.ones(1, 4)}, "b.safetensors")))
    ((code, message),) = bench.reports
    assert code == "SDB-LORA-KEYS" and lonely in message


def test_dora_of_a_second_slot_is_made_from_the_checkpoint_and_not_from_the_first_slot(
    tmp_path: Path,
) -> None:
    """Whatever the order of loading, the same faders mean the same model."""
    made = []
    for order in ((1, 2), (2, 1)):
        bench = make_bench()
        unet = bench.parts.unet
        files = {
            1: saved(tmp_path, kohya(pairs(unet, targets(unet), 1)), "plain.safetensors"),
            2: saved(tmp_path, dora(unet, pairs(unet, targets(unet), 2)), "dora.safetensors"),
        }
        lora = slots(bench)
        for slot in order:
            put(bench, lora, **{f"slot{slot}_file": str(files[slot])})
        made.append(unet)
    same(*made, tolerance=1e-6)


def test_distilled_loras_name_their_sampler(tmp_path: Path) -> None:
    bench = make_bench()
    unet = bench.parts.unet
    whole = kohya(pairs(unet, targets(unet), 1))
    lora = slots(bench)
    for name, hint in (
        ("lcm-lora-sdv1-5", "lcm"),
        ("Hyper-SD15-1step-lora", "tcd"),
        ("sdxl_lightning_4step_lora", "turbo"),
        ("my style", ""),
        ("models--latent-consistency--lcm-lora-sdv1-5/snapshots/4d1a/pytorch_lora_weights", "lcm"),
    ):
        file = tmp_path / "loras" / f"{name}.safetensors"
        put(bench, lora, slot1_file=str(saved(file.parent, whole, file.name)), slot1_weight=1.0)
        assert lora.scheduler_hint == hint, name
    put(bench, lora, slot1_file=str(saved(tmp_path, whole, "lcm.safetensors")), slot1_weight=0.0)
    assert lora.scheduler_hint == ""
    style = kohya(pairs(unet, targets(unet, ("to_q",)), 1))
    put(bench, lora, slot1_file=str(saved(tmp_path, style, "welcome-to-lcm.safetensors")), slot1_weight=1.0)
    assert lora.scheduler_hint == ""  # a name alone makes no distilled LoRA


def broken_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    bench = make_bench("sd15")
    whole = saved(tmp_path, kohya(pairs(bench.parts.unet, targets(bench.parts.unet), 1)), "whole.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    head = tmp_path / "head.safetensors"
    head.write_bytes(whole.read_bytes()[:40])
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    html = tmp_path / "page.safetensors"
    html.write_text("<!DOCTYPE html><html>not found</html>")
    pickle = tmp_path / "lora.ckpt"
    torch.save({"a": torch.zeros(1)}, pickle)
    disguised = tmp_path / "disguised.safetensors"
    disguised.write_bytes(pickle.read_bytes())
    other = small_parts("sdxl")
    sdxl = saved(tmp_path, kohya(pairs(other.unet, targets(other.unet), 1)), "sdxl.safetensors")
    flux = saved(
        tmp_path,
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 8),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(8, 4),
        },
        "flux.safetensors",
    )
    plain = saved(tmp_path, {"image_proj.proj.weight": torch.zeros(2)}, "ip.safetensors")
    good = kohya(pairs(bench.parts.unet, targets(bench.parts.unet), 1))
    one = next(key for key in good if key.endswith("lora_up.weight"))
    ranks = {**good, one: torch.zeros(good[one].shape[0], good[one].shape[1] + 1)}
    alphas = {**good, one.replace("lora_up.weight", "alpha"): torch.ones(3)}
    down = one.replace("lora_up", "lora_down")
    hollow = {**good, one: good[one][:, :0].contiguous(), down: good[down][:0].contiguous()}
    whole_numbers = {**good, one: (good[one] * 10).to(torch.int8), down: (good[down] * 10).to(torch.int8)}
    good[one] = good[one].half().index_fill(0, torch.tensor([1]), float("nan"))
    spoilt = saved(tmp_path, good, "spoilt.safetensors")
    return {
        "spoilt": (spoilt, "SDB-FILE-BROKEN"),
        "half": (half, "SDB-FILE-BROKEN"),
        "head": (head, "SDB-FILE-BROKEN"),
        "empty": (empty, "SDB-FILE-BROKEN"),
        "html": (html, "SDB-FILE-BROKEN"),
        "pickle": (pickle, "SDB-FILE-PICKLE"),
        "disguised": (disguised, "SDB-FILE-PICKLE"),
        "sdxl": (sdxl, "SDB-LORA-FAMILY"),
        "flux": (flux, "SDB-LORA-FAMILY"),
        "ip": (plain, "SDB-LORA-KEYS"),
        "missing": (tmp_path / "none.safetensors", "SDB-FILE-MISSING"),
        "ranks": (saved(tmp_path, ranks, "ranks.safetensors"), "SDB-FILE-BROKEN"),
        "alphas": (saved(tmp_path, alphas, "alphas.safetensors"), "SDB-FILE-BROKEN"),
        "hollow": (saved(tmp_path, hollow, "hollow.safetensors"), "SDB-LORA-KEYS"),
        "whole numbers": (saved(tmp_path, whole_numbers, "numbers.safetensors"), "SDB-LORA-KEYS"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "spoilt",
        "half",
        "head",
        "empty",
        "html",
        "pickle",
        "disguised",
        "sdxl",
        "flux",
        "ip",
        "missing",
        "ranks",
        "alphas",
        "hollow",
        "whole numbers",
    ],
)
def test_a_bad_file_is_named_and_leaves_the_slot_as_it_was(tmp_path: Path, kind: str) -> None:
    bench = make_bench()
    unet = bench.parts.unet
    lora = slots(bench)
    good = saved(tmp_path, kohya(pairs(unet, targets(unet), 9)), "good.safetensors")
    put(bench, lora, slot1_file=str(good))
    before = [p.clone() for p in unet.parameters()]
    file, code = broken_files(tmp_path)[kind]
    put(bench, lora, slot1_file=str(file))
    ((told, message),) = bench.reports
    assert told == code and file.name in message
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))
    assert lora.unused() == ("lora.1.file",), "the slot shows a file that is not in the picture"
    put(bench, lora, slot1_file=str(good))
    assert lora.unused() == ()
    put(bench, lora, slot1_file=str(file))
    put(bench, lora, slot1_file="")
    assert lora.unused() == ()
    assert not torch.equal(next(iter(unet.mid_block.attentions.parameters())), before[0])
    base = small_parts().unet
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), base.parameters(), strict=True))


def test_a_pickle_is_read_weights_only_when_allowed(tmp_path: Path) -> None:
    bench = make_bench(allow_pickle=True)
    unet = bench.parts.unet
    good = tmp_path / "lora.pt"
    torch.save(kohya(pairs(unet, targets(unet), 1)), good)
    lora = slots(bench)
    put(bench, lora, slot1_file=str(good))
    assert not bench.reports

    import os
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    evil = tmp_path / "evil.ckpt"
    evil.write_bytes(pickle.dumps(Bomb()))
    put(bench, lora, slot1_file=str(evil))
    assert bench.reports[0][0] == "SDB-FILE-BROKEN" and not (tmp_path / "ran").exists()


def test_a_half_written_file_comes_in_by_itself_once_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    """Asked for again under its name, the store tells nobody: nothing has changed for it."""
    monkeypatch.setattr(beside, "LOOK_S", 0.0)
    bench = make_bench()
    unet = bench.parts.unet
    whole = saved(tmp_path, kohya(pairs(unet, targets(unet), 9)), "whole.safetensors").read_bytes()
    file = tmp_path / "lora.safetensors"
    file.write_bytes(whole[: len(whole) // 2])
    lora = slots(bench)
    before = [p.clone() for p in unet.parameters()]
    put(bench, lora, slot1_file=str(file))
    file.write_bytes(whole)
    for _ in range(8):
        lora.frame_edge()
        bench.finish_loading()
    assert [code for code, _ in bench.reports] == ["SDB-FILE-BROKEN"] and lora.unused() == ()
    assert any(not torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))
    put(bench, lora, slot1_file="")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before, strict=True))


def test_a_wish_that_was_replaced_is_never_swapped_in(tmp_path: Path) -> None:
    bench = make_bench()
    unet = bench.parts.unet
    one = saved(tmp_path, kohya(pairs(unet, targets(unet), 1)), "one.safetensors")
    two = saved(tmp_path, kohya(pairs(unet, targets(unet), 2)), "two.safetensors")
    lora = slots(bench)
    lora.apply({"lora.1.file": str(one)})
    lora.apply({"lora.1.file": str(two)})
    assert not lora.frame_edge()  # nothing ready: the picture stays
    bench.finish_loading()
    assert lora.frame_edge()
    assert lora._slots[1].lora is not None and lora._slots[1].lora.path == two


def test_missing_file_error_is_an_error_of_the_table(tmp_path: Path) -> None:
    store = store_of(small_parts())
    with pytest.raises(SdbridgeError, match="SDB-FILE-MISSING"):
        load_lora(tmp_path / "no.safetensors", store, TensorNames(store, small_parts().unet.config))
