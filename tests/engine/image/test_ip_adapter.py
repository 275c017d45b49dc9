"""IP-Adapters against diffusers, blending, live sources, layer types, and files that do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.image import still_file
from sdbridge.engine.image.ip_adapter import StyleImages
from sdbridge.engine.image.style_layers import layer_factors
from tests.engine.image.conditioning import Bench, make_bench, predict, relative, small_folder, small_parts
from tests.engine.image.rig import Rig, frame
from tests.engine.image.test_accelerate import StandInGraph, put_in
from tests.engine.image.test_controlnet import embeds, latent, picture

SIDE, PROJECTED, HIDDEN = 32, 20, 32


def make_encoder(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=PROJECTED,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def published(unet: Any, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random adapter weights under the keys of the published files."""
    from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

    torch.manual_seed(seed)
    width = unet.config["cross_attention_dim"]
    state: dict[str, torch.Tensor] = {}
    if kind == "standard":
        for key, tensor in ImageProjection(PROJECTED, width, 4).state_dict().items():
            state["image_proj." + key.replace("image_embeds", "proj")] = tensor
    else:
        module = IPAdapterPlusImageProjection(HIDDEN, width, 16, depth=4, dim_head=64, heads=2, num_queries=6)
        for key, tensor in module.state_dict().items():
            key = re.sub(r"layers\.(\d)\.ln0", r"layers.\1.0.norm1", key)
            key = re.sub(r"layers\.(\d)\.ln1", r"layers.\1.0.norm2", key)
            key = re.sub(r"layers\.(\d)\.attn\.to_out\.0", r"layers.\1.0.to_out", key)
            key = re.sub(r"layers\.(\d)\.attn\.", r"layers.\1.0.", key)
            key = re.sub(r"layers\.(\d)\.ff\.1\.net\.0\.proj", r"layers.\1.1.1", key)
            key = re.sub(r"layers\.(\d)\.ff\.1\.net\.2", r"layers.\1.1.3", key)
            key = re.sub(r"layers\.(\d)\.ff\.0", r"layers.\1.1.0", key)
            if ".to_k." in key:
                other = module.get_parameter(f"layers.{key.split('.')[1]}.attn.to_v.weight")
                state["image_proj." + key.replace("to_k", "to_kv")] = torch.cat((tensor, other))
            elif ".to_v." not in key:
                state["image_proj." + key] = tensor
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            for part in ("to_k_ip", "to_v_ip"):
                state[f"ip_adapter.{number}.{part}.weight"] = torch.randn(shape) * 0.3
            number += 2
    return {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("style") / "image_encoder")


def adapter(encoder: Path, family: str, kind: str, seed: int = 0) -> Path:
    path = encoder.parent / f"{family}-{kind}-{seed}.safetensors"
    save_file(published(small_parts(family).unet, kind, seed), path)
    return path


def png(folder: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder / f"{seed}.png"


def style(bench: Bench, **values: object) -> StyleImages:
    images = StyleImages(bench.context)
    change(bench, images, **values)
    return images


def change(bench: Bench, images: StyleImages, **values: object) -> None:
    """``slot1_file=...`` and plain names such as ``style_scale=0.3``."""
    changes = {
        (f"style.{key[4]}.{key[6:]}" if key.startswith("slot") else key): value
        for key, value in values.items()
    }
    assert images.apply(changes) == ()
    for _ in range(3):  # the picture is read, then looked at
        bench.finish_loading()
        images.frame_edge()


def run(bench: Bench, images: StyleImages | None, roles: Any = None, **options: Any) -> torch.Tensor:
    extensions, luggage = [], []
    if images is not None:
        extensions, luggage = [images], [images.enter(roles or {}, latent(1))]
    family = options.pop("family", "sd15")
    return predict(bench, extensions, luggage, latent(3), [500], embeds(family), **options)[0]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("kind", ["standard", "plus"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_same_as_diffusers_pipeline(
    tmp_path: Path, encoder: Path, family: str, kind: str, guidance: float
) -> None:
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    file, image = adapter(encoder, family, kind), png(tmp_path, 1)
    base = _plain_pipeline(family)
    base.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessor(size=SIDE, crop_size=SIDE),
    )
    state = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in published(base.unet, kind).items():
        part, _, rest = key.partition(".")
        state[part][rest] = tensor
    base.unet._load_ip_adapter_weights([state])
    base.set_ip_adapter_scale(0.7)
    pooled = torch.randn(1, 24, generator=torch.Generator().manual_seed(8))
    extra = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled * 0.5}
    theirs = base(
        prompt_embeds=embeds(family),
        negative_prompt_embeds=embeds(family, 6),
        ip_adapter_image=Image.open(image),
        latents=latent(3),
        num_inference_steps=3,
        guidance_scale=guidance,
        output_type="latent",
        **(extra if family == "sdxl" else {}),
    ).images
    bench = make_bench(family)
    images = style(bench, style_model=str(file), style_scale=0.7, slot1_source="file", slot1_file=str(image))
    assert not bench.reports
    added = None
    if family == "sdxl":
        both = torch.cat((pooled, pooled * 0.5)) if guidance > 1 else pooled
        ids = torch.tensor([[64, 64, 0, 0, 64, 64]], dtype=torch.float32).expand(both.shape[0], -1)
        added = {"text_embeds": both, "time_ids": ids}
    scheduler = diffusers.DDIMScheduler.from_pretrained(small_folder(family) / "scheduler")
    scheduler.set_timesteps(3)
    luggage, x = images.enter({}, latent(1)), latent(3)
    negative = embeds(family, 6) if guidance > 1 else None
    for t in scheduler.timesteps:
        eps, _ = predict(
            bench, [images], [luggage], x, [int(t)], embeds(family), negative=negative, added=added
        )
        if negative is not None:
            positive, unwanted = eps.chunk(2)
            eps = unwanted + guidance * (positive - unwanted)
        x = scheduler.step(eps, t, x).prev_sample
    assert relative(x, theirs) <= 1e-4


def _plain_pipeline(family: str) -> Any:
    from tests.engine.image.test_lora import pipeline

    pipe = pipeline(small_parts(family))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "away", [{"style_scale": 0.0}, {"style_model": ""}, {"slot1_source": "off"}, {"slot1_weight": 0.0}]
)
def test_gone_is_exactly_the_stream_without_it(
    tmp_path: Path, encoder: Path, away: dict[str, object]
) -> None:
    bench = make_bench()
    plain = run(bench, None)
    processors = dict(bench.parts.unet.attn_processors)
    images = style(
        bench,
        style_model=str(adapter(encoder, "sd15", "standard")),
        slot1_source="file",
        slot1_file=str(png(tmp_path, 1)),
    )
    assert relative(run(bench, images), plain) > 1e-3
    change(bench, images, **away)
    assert torch.equal(run(bench, images), plain)
    images.unload()
    assert bench.parts.unet.attn_processors == processors


def test_blends_are_between_their_images_and_weights_are_shares(tmp_path: Path, encoder: Path) -> None:
    bench = make_bench()
    images = style(
        bench,
        style_model=str(adapter(encoder, "sd15", "standard")),
        slot1_source="file",
        slot1_file=str(png(tmp_path, 1)),
        slot2_source="file",
        slot2_file=str(png(tmp_path, 2)),
        slot2_weight=0.0,
    )
    one = run(bench, images)
    change(bench, images, slot1_weight=0.5)
    assert relative(run(bench, images), one) < 1e-6  # a share of one is one
    change(bench, images, slot1_weight=0.0, slot2_weight=0.7)
    two = run(bench, images)
    change(bench, images, slot1_weight=1.0, slot2_weight=1.0)
    both = run(bench, images)
    gap = float((one - two).abs().max())
    assert gap > 0 and float((both - (one + two) / 2).abs().max()) < 0.5 * gap
    loads = images.loads
    for move in range(1000):
        images.apply({"style.1.weight": (move % 50) / 25, "style_scale": (move % 40) / 20})
        images.frame_edge()
        images._mix()
    assert images.loads == loads and not bench.waiting


def test_live_and_grabbed_styles(encoder: Path) -> None:
    bench = make_bench()
    images = style(bench, style_model=str(adapter(encoder, "sd15", "plus")), slot1_source="input")
    shown = (picture(1) * 255).round() / 255  # as inputs are: eight bits
    first = run(bench, images, {"style": shown})
    assert not torch.equal(run(bench, images, {"style": picture(2)}), first)
    assert torch.equal(run(bench, images, {"style": shown}), first)
    plain = run(make_bench(), None)
    assert torch.equal(run(bench, images, {}), plain) and images.unused() == ("style.1.source",)
    images.apply({"style.1.source": "grab", "style.1.grab": True})
    assert images.keepsakes() == {}
    run(bench, images, {"main": shown})  # takes this frame
    change(bench, images)
    grabbed = run(bench, images, {"main": picture(2)})
    assert torch.equal(grabbed, first)  # and keeps it
    kept = images.keepsakes()
    assert images.keepsakes()["style.1.grabbed"] is kept["style.1.grabbed"], "asked for each second"
    images.apply({"style.1.source": "file", "style.1.grab": True})  # grabbed for later
    run(bench, images, {"main": picture(2)})
    change(bench, images)
    assert images.keepsakes() != kept
    bench = make_bench()  # another engine in its place
    successor = StyleImages(bench.context)
    successor.remember(kept)
    successor.apply({"style_model": images._model, "style.1.source": "grab"})
    change(bench, successor)
    assert torch.equal(run(bench, successor, {"main": picture(2)}), first)
    assert successor.keepsakes() == kept


def test_the_rows_of_a_batch_all_have_the_style_and_guidance_rows_have_none(
    tmp_path: Path, encoder: Path
) -> None:
    bench = make_bench()
    images = style(
        bench,
        style_model=str(adapter(encoder, "sd15", "plus")),
        slot1_source="file",
        slot1_file=str(png(tmp_path, 1)),
    )
    luggage = list(images.enter({}, latent(1))) * 3
    x, negative = latent(4, rows=3), embeds("sd15", 6)
    together, _ = predict(bench, [images], [luggage], x, [900, 500, 100], embeds("sd15"), negative=negative)
    for row, t in enumerate((900, 500, 100)):
        alone, _ = predict(
            bench, [images], [luggage[:1]], x[row : row + 1], [t], embeds("sd15"), negative=negative
        )
        assert relative(together[[row, row + 3]], alone) < 1e-5


SD15 = [
    *(f"down_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2" for b in range(3) for a in range(2)),
    *(f"up_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2" for b in range(1, 4) for a in range(3)),
    "mid_block.attentions.0.transformer_blocks.0.attn2",
]
SDXL = [
    *(f"down_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2" for b in (1, 2) for a in range(2)),
    *(f"up_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2" for b in (0, 1) for a in range(3)),
    "mid_block.attentions.0.transformer_blocks.0.attn2",
]


def test_layer_types_reach_the_layers_they_are_named_for() -> None:
    assert layer_factors(SD15, "sd15", "linear") == [1.0] * 16
    rising = layer_factors(SD15, "sd15", "ease_out")
    assert rising[0] == 0.05 and rising[14] == 1.0 and 0.3 < rising[15] < 0.5  # mid is in the middle
    assert layer_factors(SD15, "sd15", "weak_input")[:7] == [0.2] * 6 + [1.0]
    style = dict(zip(SDXL, layer_factors(SDXL, "sdxl", "style"), strict=True))
    assert [name for name, share in style.items() if share] == [
        SDXL[5]
    ] and "up_blocks.0.attentions.1" in SDXL[5]
    composition = dict(zip(SDXL, layer_factors(SDXL, "sdxl", "composition"), strict=True))
    assert [name for name, share in composition.items() if share] == [SDXL[3]]
    both = layer_factors(SDXL, "sdxl", "style_and_composition")
    assert sum(both) == 2
    assert layer_factors(SD15, "sd15", "composition")[4:6] == [0.25, 1.0]
    assert layer_factors(SD15, "sd15", "style")[4:9] == [0, 0, 0, 0, 0]


def test_types_change_the_picture_live(tmp_path: Path, encoder: Path) -> None:
    bench = make_bench()
    images = style(
        bench,
        style_model=str(adapter(encoder, "sd15", "standard")),
        slot1_source="file",
        slot1_file=str(png(tmp_path, 1)),
    )
    found = []
    for kind in ("linear", "ease_in", "ease_out", "weak_input", "weak_output"):
        change(bench, images, style_type=kind)
        found.append(run(bench, images))
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_bad_files_are_named_and_leave_the_style_as_it_was(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(still_file, "LOOK_S", 0.0)
    bench = make_bench()
    good = adapter(encoder, "sd15", "standard")
    images = style(bench, style_model=str(good), slot1_source="file", slot1_file=str(png(tmp_path, 1)))
    before = run(bench, images)
    half = tmp_path / "half.safetensors"
    half.write_bytes(good.read_bytes()[:5000])
    save_file({"a": torch.zeros(2)}, tmp_path / "else.safetensors")
    torch.save({"image_proj": {"a": torch.zeros(1)}}, tmp_path / "ip.bin")
    save_file(
        {"image_proj.norm.weight": torch.zeros(2), "ip_adapter.1.to_k_ip.weight": torch.zeros(2, 2)},
        tmp_path / "face.safetensors",
    )
    (tmp_path / "alone.safetensors").write_bytes(good.read_bytes())  # without its encoder
    spoilt = {key: tensor.fill_(torch.nan) for key, tensor in load_file(good).items()}
    save_file(spoilt, encoder.parent / "spoilt.safetensors")
    cases = {
        half: "SDB-FILE-BROKEN",
        encoder.parent / "spoilt.safetensors": "SDB-FILE-BROKEN",
        tmp_path / "else.safetensors": "SDB-STYLE-KIND",
        tmp_path / "face.safetensors": "SDB-STYLE-KIND",
        tmp_path / "ip.bin": "SDB-FILE-PICKLE",
        adapter(encoder, "sdxl", "standard"): "SDB-STYLE-FAMILY",
        tmp_path / "alone.safetensors": "SDB-STYLE-ENCODER",
        tmp_path / "none": "SDB-FILE-MISSING",
    }
    for path, code in cases.items():
        bench.reports.clear()
        change(bench, images, style_model=str(path))
        ((told, message),) = bench.reports
        assert told == code and path.name in message, message
        assert torch.equal(run(bench, images), before) and images.unused() == ("style_model",)
    bench.reports.clear()
    (tmp_path / "song.png").write_bytes(b"ID3 not a picture")
    change(bench, images, slot1_file=str(tmp_path / "song.png"))
    assert bench.reports[0][0] == "SDB-IMAGE-FORMAT" and "song.png" in bench.reports[0][1]
    assert torch.equal(run(bench, images), before) and set(images.unused()) == {"style.1.file", "style_model"}
    (tmp_path / "song.png").write_bytes(png(tmp_path, 2).read_bytes())
    change(bench, images, slot1_file=str(tmp_path / "song.png"))
    assert not torch.equal(run(bench, images), before), "the same name again, once it is mended"
    (tmp_path / "song.png").write_bytes(png(tmp_path, 1).read_bytes())
    for _ in range(8):
        images.frame_edge()
        bench.finish_loading()
    assert torch.equal(run(bench, images), before), "another picture under the same name"
    change(bench, images, style_model=str(good))
    assert images.unused() == ()


def test_the_encoder_can_be_named(tmp_path: Path, encoder: Path) -> None:
    bench = make_bench()
    (tmp_path / "alone.safetensors").write_bytes(adapter(encoder, "sd15", "standard").read_bytes())
    images = style(bench, style_model=str(tmp_path / "alone.safetensors"), style_encoder=str(encoder))
    assert not bench.reports and images._network is not None


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_style_is_in_the_pictures_that_graphs_paint(
    checkpoint, encoder: Path, tmp_path: Path, family: str
) -> None:
    """The packed UNet has no place for it, so calls with a style are the modules' own, captured."""
    values = {"style_model": str(adapter(encoder, family, "standard")), "style.1.source": "file"}
    found: dict[str, list[torch.Tensor]] = {}
    for name in ("eager", "compile"):
        rig = Rig(checkpoint(family), {"scheduler": "lcm", "steps": 2}, dtype="float64")
        if name == "compile":
            put_in(rig, Compiled(rig.model, capture=StandInGraph))
        found[name] = [rig.latent_of(frame(0)).clone()]
        images = next(each for each in rig.engine._extensions if isinstance(each, StyleImages))
        for more in ({**values, "style.1.file": str(png(tmp_path, 1))}, {"style_scale": 0.2}):
            rig.engine.apply(more, 1)
            for _ in range(3):  # the network is read, the picture is read, then looked at
                for place in (images._networks, images._slots[1].stills._reading, images._slots[1].looks):
                    if place._running is not None:
                        place._running.result(60)
                rig.engine.frame_edge()
            rig.engine.reset("hard")
            found[name].append(rig.latent_of(frame(0)).clone())
        if name == "compile":
            graphs = rig.engine.painter.acceleration.graphs
            assert isinstance(
                graphs.by_key[rig.engine.painter.acceleration.unet.key_of(rig.calls[-1])], StandInGraph
            )
    for ours, theirs in zip(found["compile"], found["eager"], strict=True):
        assert relative(ours, theirs) <= 1e-9
    assert relative(found["eager"][1], found["eager"][0]) > 1e-3 < relative(*found["eager"][1:])
