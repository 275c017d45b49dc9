"""ControlNets and T2I-Adapters against diffusers' pipelines, rows and their own maps, and bad files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdbridge.engine.image import beside, still_file
from sdbridge.engine.image.control_files import _adapter_factors
from sdbridge.engine.image.control_slot import ControlMap
from sdbridge.engine.image.controlnet import ControlNets
from sdbridge.engine.image.seams import UnetCall
from sdbridge.models import catalog
from sdbridge.models.small import WIDTH
from tests.engine.image.conditioning import Bench, make_bench, predict, relative, small_folder, small_parts

SIZE = 64
EMBEDS = {"sd15": WIDTH, "sd21": WIDTH, "sdxl": 2 * WIDTH}


def random_weights(network: Any, seed: int) -> Any:
    """A fresh ControlNet adds nothing; this one does."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return network.eval().requires_grad_(False)


def save_controlnet(folder: Path, family: str, seed: int, **config: Any) -> Path:
    from diffusers import ControlNetModel

    options = {"conditioning_embedding_out_channels": (4, 8), **config}
    network = ControlNetModel.from_unet(small_parts(family).unet, **options)
    # Two stages of the tiny hint shrink by two; the real one has four stages and shrinks by eight.
    random_weights(network, seed).save_pretrained(folder)
    return folder


def save_real_hint(folder: Path, family: str, seed: int, **config: Any) -> Path:
    return save_controlnet(folder, family, seed, conditioning_embedding_out_channels=(4, 4, 8, 8), **config)


def control(bench: Bench, **values: object) -> ControlNets:
    nets = ControlNets(bench.context)
    change(bench, nets, **values)
    return nets


def change(bench: Bench, nets: ControlNets, **values: object) -> None:
    """``slot1_scale=0.5`` and plain names such as ``control_alignment="newest"``."""
    changes = {
        (f"controlnet.{key[4]}.{key[6:]}" if key.startswith("slot") else key): value
        for key, value in values.items()
    }
    assert nets.apply(changes) == ()
    bench.finish_loading()
    nets.frame_edge()


def picture(seed: int, frames: int = 1) -> torch.Tensor:
    return torch.rand(frames, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def latent(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(seed))


def embeds(family: str, seed: int = 5) -> torch.Tensor:
    return torch.randn(1, 77, EMBEDS[family], generator=torch.Generator().manual_seed(seed))


def oracle_pipeline(family: str, networks: list[Any]) -> Any:
    import diffusers
    from transformers import CLIPTokenizer

    parts, folder = small_parts(family), small_folder(family)
    common: dict[str, Any] = {
        "unet": parts.unet,
        "vae": parts.vae,
        "text_encoder": parts.text_encoders[0],
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        "controlnet": networks[0] if len(networks) == 1 else networks,
    }
    if family == "sdxl":
        pipe = diffusers.StableDiffusionXLControlNetPipeline(
            **common,
            text_encoder_2=parts.text_encoders[1],
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        )
    else:
        pipe = diffusers.StableDiffusionControlNetPipeline(
            **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_with_seams(
    bench: Bench,
    nets: Any,
    luggage: Any,
    family: str,
    steps: int,
    guidance: float,
    added: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Deterministic sampling in which every UNet call goes through the extension."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(small_folder(family) / "scheduler")
    scheduler.set_timesteps(steps)
    x = latent(3)
    negative = embeds(family, 6) if guidance > 1 else None
    for t in scheduler.timesteps:
        found, _ = predict(
            bench, [nets], [luggage], x, [int(t)], embeds(family), negative=negative, added=added
        )
        if negative is not None:
            positive, unwanted = found.chunk(2)
            found = unwanted + guidance * (positive - unwanted)
        x = scheduler.step(found, t, x).prev_sample
    return x


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_as_diffusers_pipeline(tmp_path: Path, family: str, count: int) -> None:
    from diffusers import ControlNetModel

    folders = [save_real_hint(tmp_path / str(n), family, n) for n in range(count)]
    scales, starts, ends = [0.8, 0.4][:count], [0.0, 0.5][:count], [0.5, 1.0][:count]
    if count == 1:
        ends = [1.0]
    guidance = 1.0 if count == 1 else 3.0
    pipe = oracle_pipeline(family, [ControlNetModel.from_pretrained(f) for f in folders])
    extra: dict[str, Any] = {}
    pooled = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(8))
    if family == "sdxl":
        extra = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled * 0.5}
    theirs = pipe(
        prompt_embeds=embeds(family),
        negative_prompt_embeds=embeds(family, 6),
        image=[picture(1)[:, :3], picture(2)[:, :3]][:count] if count > 1 else picture(1)[:, :3],
        latents=latent(3),
        num_inference_steps=4,
        guidance_scale=guidance,
        controlnet_conditioning_scale=scales if count > 1 else scales[0],
        control_guidance_start=starts if count > 1 else starts[0],
        control_guidance_end=ends if count > 1 else ends[0],
        output_type="latent",
        **extra,
    ).images
    bench = make_bench(family)
    values: dict[str, object] = {}
    for n in range(count):
        values |= {f"slot{n + 1}_model": str(folders[n]), f"slot{n + 1}_scale": scales[n]}
        values |= {f"slot{n + 1}_start": starts[n], f"slot{n + 1}_end": ends[n]}
        values |= {f"slot{n + 1}_source": "main" if n == 0 else "control"}
    nets = control(bench, **values)
    assert not bench.reports
    luggage = nets.enter({"main": picture(1), "control": picture(2)}, latent(3))
    added = None
    if family == "sdxl":
        both = torch.cat((pooled, pooled * 0.5)) if guidance > 1 else pooled
        ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32).expand(both.shape[0], -1)
        added = {"text_embeds": both, "time_ids": ids}
    ours = sample_with_seams(bench, nets, luggage, family, 4, guidance, added)
    assert relative(ours, theirs) <= 1e-4
    plain = sample_with_seams(bench, control(bench), [None], family, 4, guidance, added)
    assert relative(plain, theirs) > 1e-3  # and it does steer


def save_adapter(folder: Path, in_channels: int = 3, kind: str = "full_adapter") -> Path:
    from diffusers import T2IAdapter

    factor = 16 if kind.endswith("_xl") else 8
    adapter = T2IAdapter(
        in_channels=in_channels,
        channels=[16, 32],
        num_res_blocks=1,
        downscale_factor=factor,
        adapter_type=kind,
    )
    random_weights(adapter, 4).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("channels", "kind"), [(3, "full_adapter"), (1, "full_adapter"), (3, "light_adapter")]
)
def test_t2i_adapters_the_same_as_diffusers_pipeline(tmp_path: Path, channels: int, kind: str) -> None:
    import diffusers

    folder = save_adapter(tmp_path / "adapter", channels, kind)
    parts = small_parts("sd15")
    pipe = diffusers.StableDiffusionAdapterPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoders[0],
        tokenizer=_tokenizer(),
        unet=parts.unet,
        adapter=diffusers.T2IAdapter.from_pretrained(folder),
        scheduler=diffusers.DDIMScheduler.from_pretrained(small_folder("sd15") / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    grey = picture(1)[:, :1].expand(-1, 4, -1, -1)  # grey, so that both ways to grey agree
    theirs = pipe(
        prompt_embeds=embeds("sd15"),
        negative_prompt_embeds=embeds("sd15", 6),
        image=grey[:, :channels],
        latents=latent(3),
        num_inference_steps=3,
        guidance_scale=2.0,
        adapter_conditioning_scale=0.7,
        output_type="latent",
    ).images
    bench = make_bench()
    for path in (folder, folder / "diffusion_pytorch_model.safetensors", _without_config(folder)):
        nets = control(bench, slot1_model=str(path), slot1_scale=0.7)
        assert not bench.reports
        ours = sample_with_seams(bench, nets, nets.enter({"main": grey}, latent(3)), "sd15", 3, 2.0)
        assert relative(ours, theirs) <= 1e-4


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(small_folder("sd15") / "tokenizer")


def _without_config(folder: Path) -> Path:
    alone = folder.parent / "alone" / "net.safetensors"
    alone.parent.mkdir(exist_ok=True)
    alone.write_bytes((folder / "diffusion_pytorch_model.safetensors").read_bytes())
    return alone


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_single_file_without_config_is_the_same_network(tmp_path: Path, family: str) -> None:
    folder = save_real_hint(tmp_path / "net", family, 1)
    bench = make_bench(family)
    nets = control(bench, slot1_model=str(folder), slot2_model=str(_without_config(folder)))
    assert not bench.reports
    one, two = nets._slots[1].network, nets._slots[2].network
    assert one is not None and two is not None and one is not two
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.hint(picture(1)[:, :3]), two.hint(picture(1)[:, :3]), strict=True)
        for a, b in zip(a, b, strict=True)
    )


def test_two_adapters_and_two_controlnets_add_up(tmp_path: Path) -> None:
    """The same model twice at half the scale is the model once."""
    net, adapter = str(save_real_hint(tmp_path / "n", "sd15", 1)), str(save_adapter(tmp_path / "a"))
    bench = make_bench()
    found = []
    for values in (
        {"slot1_model": net, "slot1_scale": 1.0, "slot2_model": adapter, "slot2_scale": 1.0},
        {
            **{f"slot{n}_model": net for n in (1, 5)},
            **{f"slot{n}_model": adapter for n in (3, 8)},
            **{f"slot{n}_scale": 0.5 for n in (1, 5, 3, 8)},
        },
    ):
        nets = control(bench, **values)
        luggage = nets.enter({"main": picture(1)}, latent(1))
        found.append(predict(bench, [nets], [luggage], latent(3), [500], embeds("sd15"))[0])
    assert relative(found[0], found[1]) < 1e-5
    assert nets._slots[1].network is nets._slots[5].network  # one copy of the weights


def test_adapters_of_two_kinds_with_more_and_fewer_levels_add_up(tmp_path: Path) -> None:
    """A light one has a level more than its channels: every frame raised with both."""
    bench = make_bench()
    full = save_adapter(tmp_path / "full")
    light = save_adapter(tmp_path / "light", kind="light_adapter")
    nets = control(bench, slot1_model=str(full), slot2_model=str(light))
    assert not bench.reports

    def painted() -> torch.Tensor:
        luggage = nets.enter({"main": picture(1)}, latent(1))
        return predict(bench, [nets], [luggage], latent(3), [500], embeds("sd15"))[0]

    together = painted()
    change(bench, nets, slot1_scale=0.0)
    assert relative(together, painted()) > 1e-3
    change(bench, nets, slot1_scale=1.0, slot2_scale=0.0)
    assert relative(together, painted()) > 1e-3


def test_each_row_has_the_map_of_its_own_frame(tmp_path: Path) -> None:
    """A batch of three rows equals each row alone with its frame's map; newest gives all the last map."""
    bench = make_bench()
    nets = control(bench, slot1_model=str(save_real_hint(tmp_path / "n", "sd15", 1)))
    frames = [nets.enter({"main": picture(seed)}, latent(1))[0] for seed in (1, 2, 3)]
    luggage = list(reversed(frames))  # row 0 holds the newest frame
    times = [900, 500, 100]
    x = latent(4, rows=3)
    together, _ = predict(bench, [nets], [luggage], x, times, embeds("sd15"))
    for row in range(3):
        alone, _ = predict(bench, [nets], [[luggage[row]]], x[row : row + 1], [times[row]], embeds("sd15"))
        assert relative(together[row : row + 1], alone) < 1e-5
    change(bench, nets, control_alignment="newest")
    newest, _ = predict(bench, [nets], [luggage], x, times, embeds("sd15"))
    change(bench, nets, control_alignment="aligned")
    all_last, _ = predict(bench, [nets], [[frames[-1]] * 3], x, times, embeds("sd15"))
    assert torch.equal(newest, all_last) and not torch.equal(newest, together)


def test_start_and_end_hold_for_each_row_by_its_timestep(tmp_path: Path) -> None:
    bench = make_bench()
    path = str(save_real_hint(tmp_path / "n", "sd15", 1))
    nets = control(bench, slot1_model=path, slot1_start=0.4, slot1_end=0.8)
    luggage = list(nets.enter({"main": picture(1)}, latent(1))) * 3
    x, times = latent(4, rows=3), [899, 499, 99]
    steered, _ = predict(bench, [nets], [luggage], x, times, embeds("sd15"))
    plain, _ = predict(bench, [], [], x, times, embeds("sd15"))
    assert torch.equal(steered[0], plain[0]) and torch.equal(steered[2], plain[2])
    assert relative(steered[1], plain[1]) > 1e-3


@pytest.mark.parametrize(
    "away",
    [
        {"slot1_scale": 0.0},
        {"slot1_enabled": False},
        {"slot1_model": ""},
        {"slot1_start": 0.9, "slot1_end": 0.95},
    ],
)
def test_gone_is_the_very_call_without_it(tmp_path: Path, away: dict[str, object]) -> None:
    bench = make_bench()
    path = str(save_real_hint(tmp_path / "n", "sd15", 1))
    nets = control(bench, slot1_model=path)
    luggage = nets.enter({"main": picture(1)}, latent(1))
    _, rows = predict(bench, [nets], [luggage], latent(3), [500], embeds("sd15"))
    change(bench, nets, **away)
    call = UnetCall(latent(3), torch.tensor([500]), embeds("sd15"))
    from dataclasses import replace

    assert nets.unet_inputs(replace(rows, luggage=tuple(luggage)), call) is call


def test_swapping_two_slots_loads_nothing(tmp_path: Path) -> None:
    bench = make_bench()
    one, two = str(save_real_hint(tmp_path / "1", "sd15", 1)), str(save_adapter(tmp_path / "2"))
    nets = control(bench, slot1_model=one, slot2_model=two)
    before = nets._slots[1].network, nets._slots[2].network
    loads = nets.loads
    change(bench, nets, slot1_model=two, slot2_model=one)
    assert nets.loads == loads and (nets._slots[2].network, nets._slots[1].network) == before


def test_no_fader_loads_anything(tmp_path: Path) -> None:
    bench = make_bench()
    nets = control(bench, slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)))
    loads = nets.loads
    for move in range(1000):
        value = (move % 20) / 20
        field = ("scale", "start", "end", "low", "high", "detail")[move % 6]
        nets.apply({f"controlnet.{1 + move % 8}.{field}": value, "controlnet.1.enabled": bool(move % 3)})
        assert not nets.frame_edge()
    assert nets.loads == loads and not bench.waiting and len(nets._scales) <= 64


def test_a_still_image_is_prepared_once_and_the_control_output_shows_it(tmp_path: Path) -> None:
    bench = make_bench()
    Image.new("RGB", (96, 64), (255, 0, 0)).save(tmp_path / "red.png")
    nets = control(
        bench,
        slot2_model=str(save_real_hint(tmp_path / "1", "sd15", 1)),
        slot2_source="file",
        slot2_file=str(tmp_path / "red.png"),
        slot2_preprocessor="invert",
        control_output=2,
    )
    one = nets.enter({}, latent(1))
    two = nets.enter({}, latent(1))
    assert one[0][2] is two[0][2]
    out = nets.outputs(one)["control"]
    assert out.shape == (1, 3, SIZE, SIZE)
    assert torch.allclose(out[0, :, 5, 5], torch.tensor([0.0, 1.0, 1.0]))
    assert nets.unused() == ()
    change(bench, nets, control_output=0)
    assert nets.outputs(one) == {} and nets.unused() == ()
    change(bench, nets, control_output=5)  # which holds nothing
    nets.enter({}, latent(1))
    assert nets.unused() == ("control_output",)


def test_a_still_that_failed_is_read_once_it_is_there_or_asked_for_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(still_file, "LOOK_S", 0.0)
    bench = make_bench()
    file = tmp_path / "late.png"
    nets = control(
        bench,
        slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)),
        slot1_source="file",
        slot1_file=str(file),
    )
    assert bench.reports[-1][0] == "SDB-FILE-MISSING" and nets.enter({}, latent(1))[0] == {}

    def edges() -> None:
        for _ in range(8):
            nets.frame_edge()
            bench.finish_loading()

    edges()
    Image.new("RGB", (96, 64), (255, 0, 0)).save(file)
    edges()
    assert torch.allclose(nets.enter({}, latent(1))[0][1].image[:, 5, 5], torch.tensor([1.0, 0.0, 0.0]))
    Image.new("RGB", (96, 64), (0, 255, 0)).save(file)
    os.utime(file, ns=(0, 1))
    edges()
    assert torch.allclose(nets.enter({}, latent(1))[0][1].image[:, 5, 5], torch.tensor([0.0, 1.0, 0.0]))
    assert len(bench.reports) == 1
    change(bench, nets, slot1_file=str(tmp_path / "none.png"))
    assert nets.unused() == ("controlnet.1.file",), "the former picture steers on"
    loads = nets.loads
    change(bench, nets, slot1_file=str(tmp_path / "none.png"))
    assert nets.loads == loads + 1 and [code for code, _ in bench.reports] == ["SDB-FILE-MISSING"] * 3


def test_a_missing_source_steers_nothing_and_is_told_as_unused(tmp_path: Path) -> None:
    bench = make_bench()
    nets = control(bench, slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)), slot1_source="control")
    luggage = nets.enter({"main": picture(1)}, latent(1))
    found, _ = predict(bench, [nets], [luggage], latent(3), [500], embeds("sd15"))
    plain, _ = predict(bench, [], [], latent(3), [500], embeds("sd15"))
    assert torch.equal(found, plain) and nets.unused() == ("controlnet.1.source",)


def test_frames_that_came_before_the_network_stay_without_it(tmp_path: Path) -> None:
    bench = make_bench()
    nets = control(bench)
    early = nets.enter({"main": picture(1)}, latent(1))[0]
    change(bench, nets, slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)))
    late = nets.enter({"main": picture(2)}, latent(1))[0]
    x = latent(4, rows=3)
    found, _ = predict(bench, [nets], [[late, early, None]], x, [900, 500, 100], embeds("sd15"))
    plain, _ = predict(bench, [], [], x, [900, 500, 100], embeds("sd15"))
    assert relative(found[:1], plain[:1]) > 1e-3 and torch.equal(found[1:], plain[1:])


def test_bad_files_are_named_and_leave_the_slot_as_it_was(tmp_path: Path) -> None:
    good = save_real_hint(tmp_path / "good", "sd15", 1)
    half = tmp_path / "half"
    half.mkdir()
    whole = (good / "diffusion_pytorch_model.safetensors").read_bytes()
    (half / "diffusion_pytorch_model.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"a.b": torch.zeros(3)}, tmp_path / "else.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    (tmp_path / "emptyfolder").mkdir()
    odd = save_real_hint(tmp_path / "odd", "sd15", 1)
    (odd / "config.json").write_text('{"_class_name": "ControlNetModel", "block_out_channels": "wide"}')
    spoilt = save_real_hint(tmp_path / "spoilt", "sd15", 1) / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor.fill_(torch.nan) for key, tensor in load_file(spoilt).items()}, spoilt)
    wide = tmp_path / "wide"
    from diffusers import T2IAdapter

    T2IAdapter(channels=[320, 640], num_res_blocks=1).save_pretrained(wide)
    bench = make_bench()
    nets = control(bench, slot1_model=str(good))
    kept = nets._slots[1].network
    cases = {
        half: "SDB-FILE-BROKEN",
        tmp_path / "else.safetensors": "SDB-CONTROLNET-KIND",
        tmp_path / "net.pth": "SDB-FILE-PICKLE",
        tmp_path / "emptyfolder": "SDB-FILE-MISSING",
        odd: "SDB-FILE-BROKEN",
        spoilt: "SDB-FILE-BROKEN",
        tmp_path / "nowhere": "SDB-FILE-MISSING",
        save_real_hint(tmp_path / "xl", "sdxl", 1): "SDB-CONTROLNET-FAMILY",
        wide: "SDB-CONTROLNET-FAMILY",
    }
    for path, code in cases.items():
        bench.reports.clear()
        change(bench, nets, slot1_model=str(path))
        ((told, message),) = bench.reports
        assert told == code and path.name in message, message
        assert nets._slots[1].network is kept and nets.unused() == ("controlnet.1.model",)
    change(bench, nets, slot1_model=str(good))
    assert nets.unused() == () and nets._slots[1].network is kept
    Path(tmp_path / "text.png").write_text("I am no picture")
    change(bench, nets, slot1_file=str(tmp_path / "text.png"))
    assert bench.reports[-1][0] == "SDB-IMAGE-FORMAT" and "text.png" in bench.reports[-1][1]


@pytest.mark.parametrize(("family", "kind"), [("sdxl", "full_adapter"), ("sd15", "full_adapter_xl")])
def test_an_adapter_of_another_family_is_refused_although_its_channels_fit(
    tmp_path: Path, family: str, kind: str
) -> None:
    """Published ones of SD 1.5 and SDXL have the same channels: every frame raised in the UNet."""
    bench = make_bench(family)
    path = save_adapter(tmp_path / "other", kind=kind)
    nets = control(bench, slot1_model=str(path))
    ((told, message),) = bench.reports
    assert told == "SDB-CONTROLNET-FAMILY" and str(path) in message and "times smaller" in message
    assert nets._slots[1].network is None
    own = "full_adapter_xl" if family == "sdxl" else "full_adapter"
    change(bench, nets, slot1_model=str(save_adapter(tmp_path / "own", kind=own)))
    assert len(bench.reports) == 1 and nets._slots[1].network is not None


@pytest.mark.parametrize(
    ("channels", "more", "factors"),
    [
        ([320, 640, 1280, 1280], {}, [8, 16, 32, 64]),
        ([320, 640, 1280], {"adapter_type": "light_adapter"}, [8, 16, 32, 64]),
        (
            [320, 640, 1280, 1280],
            {"adapter_type": "full_adapter_xl", "downscale_factor": 16},
            [16, 16, 32, 32],
        ),
    ],
)
def test_the_published_adapters_sizes(channels: list[int], more: dict[str, Any], factors: list[int]) -> None:
    from diffusers import T2IAdapter

    with torch.device("meta"):
        network = T2IAdapter(channels=channels, **more)
    assert _adapter_factors(network) == factors


def test_a_missing_depth_network_is_told_and_the_slot_rests(tmp_path: Path) -> None:
    bench = make_bench()
    nets = control(bench, slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)), depth_model="")
    change(bench, nets, slot1_preprocessor="depth")
    assert bench.reports[-1][0] == "SDB-PREPROCESS-NETWORK" and "slot rests" in bench.reports[-1][1]
    assert nets.enter({"main": picture(1)}, latent(1))[0] == {}
    assert nets.unused() == ("controlnet.1.preprocessor",)
    change(bench, nets, slot1_preprocessor="canny")
    assert 1 in nets.enter({"main": picture(1)}, latent(1))[0]


def test_another_preprocessor_comes_with_its_network_and_not_before(tmp_path: Path) -> None:
    """A preset with both: for as long as the network was read, the former one painted from the new map."""
    one, two, three = (save_real_hint(tmp_path / str(seed), "sd15", seed) for seed in (1, 2, 3))
    bench = make_bench()
    nets = control(bench, slot1_model=str(one), slot1_preprocessor="grey")

    def now() -> ControlMap:
        return nets.enter({"main": picture(1)}, latent(1))[0][1]

    before = now()
    for model, order in ((two, 1), (three, -1)):
        bundle = {"controlnet.1.model": str(model), "controlnet.1.preprocessor": "invert"}
        assert nets.apply(dict(list(bundle.items())[::order])) == ()
        for _ in range(2):
            nets.frame_edge()
            meanwhile = now()
            assert meanwhile.network is before.network and torch.equal(meanwhile.image, before.image)
        bench.finish_loading()
        nets.frame_edge()
        after = now()
        assert after.network is not before.network
        assert torch.equal(after.image, 1 - picture(1)[0, :3]) and nets.unused() == ()
        change(bench, nets, slot1_model=str(one), slot1_preprocessor="grey")
        before = now()
    (tmp_path / "bad.safetensors").write_text("no weights")
    change(bench, nets, slot1_model=str(tmp_path / "bad.safetensors"), slot1_preprocessor="invert")
    assert torch.equal(now().image, before.image) and now().network is before.network
    assert nets.unused() == ("controlnet.1.model", "controlnet.1.preprocessor")
    change(bench, nets, slot1_preprocessor="passthrough")  # said after the refusal: for the one that is there
    assert torch.equal(now().image, picture(1)[0, :3]) and nets.unused() == ("controlnet.1.model",)
    change(bench, nets, slot1_model=str(two), slot1_preprocessor="invert")
    assert torch.equal(now().image, 1 - picture(1)[0, :3]) and nets.unused() == ()
    change(bench, nets, slot1_model="")
    assert nets.enter({"main": picture(1)}, latent(1))[0] == {} and nets.unused() == ()


def test_a_network_that_is_pulled_after_it_was_asked_for_comes_in_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "LOOK_S", 0.0)
    known = next(entry.id for entry in catalog.entries() if entry.kind == "controlnet")
    bench = make_bench()
    nets = control(bench, slot1_model=known)
    assert "sdbridge pull" in bench.reports[0][1] and nets.unused() == ("controlnet.1.model",)
    pulled = save_real_hint(tmp_path / "pulled", "sd15", 1)
    monkeypatch.setattr(catalog, "local_path", lambda model: pulled)
    for _ in range(8):
        nets.frame_edge()
        bench.finish_loading()
    assert nets._slots[1].network is not None and nets.unused() == () and len(bench.reports) == 1
    change(bench, nets, slot2_model=known)  # shared by its name
    assert nets._slots[2].network is nets._slots[1].network


def test_a_slot_that_no_row_of_the_stream_comes_to_says_so(tmp_path: Path) -> None:
    bench = make_bench()
    nets = control(bench, slot1_model=str(save_real_hint(tmp_path / "1", "sd15", 1)))
    luggage = [nets.enter({"main": picture(1)}, latent(1))[0]] * 2

    def unused(**values: object) -> tuple[str, ...]:
        change(bench, nets, **values)
        predict(bench, [nets], [luggage], latent(3, rows=2), [600, 400], embeds("sd15"))
        return nets.unused()

    assert unused() == ()
    assert unused(slot1_end=0.3) == ("controlnet.1.end",)
    assert unused(slot1_end=0.5) == ()
    assert unused(slot1_end=1.0, slot1_start=0.8) == ("controlnet.1.start",)
    assert unused(slot1_scale=0.0) == ()
    assert unused(slot1_scale=1.0, slot1_start=0.0) == ()


def test_one_network_in_two_slots_survives_outputs_that_are_overwritten(tmp_path: Path) -> None:
    """A replayed graph writes the same output tensors every time: two slots must not see each other's."""
    from dataclasses import replace

    path = str(save_real_hint(tmp_path / "n", "sd15", 1))
    found = []
    for overwriting in (False, True):
        bench = make_bench()

        def wrap(run: Any, name: str) -> Any:
            kept: list[torch.Tensor] = []

            def again(*tensors: torch.Tensor, **about: Any) -> Any:
                made = run(*tensors, **about)  # the residuals, or what became of the control image
                flat = [*made[0], made[1]] if isinstance(made, tuple) else [made]
                if not kept:
                    kept.extend(t.clone() for t in flat)
                for mine, new in zip(kept, flat, strict=True):
                    mine.copy_(new)
                return (kept[:-1], kept[-1]) if isinstance(made, tuple) else kept[0]

            return again

        if overwriting:
            bench.context = replace(bench.context, accelerate=wrap)
        nets = control(bench, slot1_model=path, slot2_model=path, slot2_source="control")
        luggage = nets.enter({"main": picture(1), "control": picture(2)}, latent(1))
        found.append(predict(bench, [nets], [luggage], latent(3), [500], embeds("sd15"))[0])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_file_in_the_original_layout_is_the_same_network(tmp_path: Path, family: str) -> None:
    """``control_model.input_blocks...`` as the ControlNet authors' own files have it."""
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    from sdbridge.models import small_ldm

    folder = save_real_hint(tmp_path / "net", family, 1)
    network = ControlNetModel.from_pretrained(folder)
    top = DIFFUSERS_TO_LDM_MAPPING["controlnet"]["layers"]
    state: dict[str, torch.Tensor] = {}
    for key, tensor in network.state_dict().items():
        head, _, rest = key.partition(".")
        if key in top:
            name = top[key]
        elif head == "controlnet_cond_embedding":
            _, number, leaf = rest.split(".")
            name = f"input_hint_block.{2 * (int(number) + 1)}.{leaf}"
        elif head == "controlnet_down_blocks":
            number, leaf = rest.split(".")
            name = f"zero_convs.{number}.0.{leaf}"
        elif head == "controlnet_mid_block":
            name = f"middle_block_out.0.{rest}"
        else:
            side, number, kind, layer, leaf = small_ldm._split_block(key)
            place = small_ldm._unet_place(network, side, number, kind, layer, 2)
            name = f"{place}.{small_ldm._unet_leaf(kind, leaf)}"
        state[f"control_model.{name}"] = tensor.clone()
    save_file(state, tmp_path / "control.safetensors")
    bench = make_bench(family)
    found = []
    for path in (folder, tmp_path / "control.safetensors"):
        nets = control(bench, slot1_model=str(path))
        assert not bench.reports, bench.reports
        luggage = nets.enter({"main": picture(1)}, latent(1))
        found.append(predict(bench, [nets], [luggage], latent(3), [500], embeds(family))[0])
    assert torch.equal(found[0], found[1])
