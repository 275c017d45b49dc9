"""All conditioning together in the real stream: it works, it can be taken away, it never stops or leaks."""

from __future__ import annotations

import gc
import pickle
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdbridge.engine.accelerate import cuda_graph
from sdbridge.engine.image.controlnet import ControlNets
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame
from sdbridge.parameters.table import TABLE
from tests.engine.image.conditioning import small_folder, small_parts
from tests.engine.image.test_controlnet import save_adapter, save_real_hint
from tests.engine.image.test_ip_adapter import make_encoder, png, published
from tests.engine.image.test_lora import LINEAR, dora, kohya, pairs, saved, targets

SIZE = 64
CLOSED = {"wait_for_prompts": True}


@dataclass(frozen=True)
class Files:
    """One of everything that can be loaded."""

    controlnets: tuple[str, ...]
    loras: tuple[str, ...]
    style: str
    images: tuple[str, ...]
    mask: str
    bad: tuple[str, ...]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("conditioning")
    parts = small_parts("sd15")
    encoder = parts.text_encoders[0]
    text = [name for name, _ in encoder.named_modules() if name.endswith("q_proj")]
    with_text = kohya(pairs(parts.unet, targets(parts.unet, LINEAR), 1))
    with_text |= kohya({f"text_model.{n}": p for n, p in pairs(encoder, text, 2).items()}, "lora_te_")
    make_encoder(folder / "image_encoder")
    save_file(published(parts.unet, "standard"), folder / "style.safetensors")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    return Files(
        controlnets=(
            str(save_real_hint(folder / "one", "sd15", 1)),
            str(save_real_hint(folder / "two", "sd15", 2)),
            str(save_adapter(folder / "adapter")),
        ),
        loras=(
            str(saved(folder, with_text, "text.safetensors")),
            str(saved(folder, kohya(pairs(parts.unet, targets(parts.unet), 3)), "locon.safetensors")),
            str(
                saved(folder, dora(parts.unet, pairs(parts.unet, targets(parts.unet), 4)), "dora.safetensors")
            ),
        ),
        style=str(folder / "style.safetensors"),
        images=(str(png(folder, 1)), str(png(folder, 2))),
        mask=str(folder / "mask.png"),
        bad=(str(folder / "broken.safetensors"), str(folder / "nowhere")),
    )


class Stream:
    """An engine on the small model, fed with numbered frames."""

    def __init__(self, device: str = "cpu", acceleration: str = "auto") -> None:
        config = EngineConfig(
            model=str(small_folder("sd15")),
            device=device,
            dtype="float32",
            threads=1,
            acceleration=acceleration,
            options=CLOSED,
        )
        self.engine = ImageEngine(config)
        self.engine.load(
            {"prompt.1.text": "a fox", "steps": 2, "strength": 0.6, "width": SIZE, "height": SIZE}
        )
        self.engine.warm_up(SIZE, SIZE)
        self.revision = 1
        self.sent = 0

    def apply(self, changes: dict[str, object]) -> None:
        """Changes, and the wait for what they load, so that a test does not depend on threads."""
        self.revision += 1
        assert self.engine.apply(changes, self.revision) == ()
        self.settle()

    def settle(self) -> None:
        beside = self.engine._beside
        assert beside is not None
        for _ in range(3):  # a picture is read, then looked at
            beside.submit(lambda: None).result()
            self.engine._settle()

    def tick(self, number: int | None = None) -> np.ndarray:
        """The generated picture of one tick; every tick gives one, in order."""
        number = self.sent if number is None else number
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
        frame = Frame(pixels, self.sent, self.sent)
        others = {
            role: Frame(np.roll(pixels, shift, 0), self.sent, 0)
            for role, shift in (("control", 3), ("mask", 5), ("style", 7))
        }
        made = self.engine.tick(Chunk.of(frame, **others))
        assert made is not None
        out = made.frames[0]["generated"]
        assert out.frame_id == max(0, self.sent - self.engine.spec.pipeline_ticks)
        self.sent += 1
        return out.pixels

    def again(self, numbers: range = range(4)) -> list[np.ndarray]:
        """What these frames give after a hard reset."""
        self.engine.reset("hard")
        self.sent = 0
        return [self.tick(number) for number in numbers]


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.engine.unload()


def everything(files: Files) -> dict[str, object]:
    return {
        "controlnet.1.model": files.controlnets[0],
        "controlnet.1.preprocessor": "canny",
        "controlnet.1.scale": 0.7,
        "controlnet.2.model": files.controlnets[1],
        "controlnet.2.source": "control",
        "controlnet.2.end": 0.7,
        "controlnet.4.model": files.controlnets[2],
        "controlnet.4.preprocessor": "color",
        "lora.1.file": files.loras[0],
        "lora.1.weight": 0.6,
        "lora.2.file": files.loras[1],
        "lora.2.weight": -0.4,
        "lora.3.file": files.loras[2],
        "lora.3.weight": 0.3,
        "style_model": files.style,
        "style.1.source": "file",
        "style.1.file": files.images[0],
        "style.2.source": "input",
        "mask.source": "file",
        "mask.file": files.mask,
        "pre.blur": 1.0,
        "post.sharpen": 0.5,
        "post.color_match": 0.5,
        "pre.feedback": 0.2,
        "control_output": 1,
    }


def nothing(changes: dict[str, object]) -> dict[str, object]:
    """The same parameters at their defaults."""
    return {name: TABLE.find(name).default for name in changes}


def test_all_together_work_and_taken_away_leave_exactly_the_stream_without_them(
    stream: Stream, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    base = small_parts("sd15")
    before = stream.again()
    stream.apply(everything(files))
    steered = stream.again()
    assert not any(np.array_equal(a, b) for a, b in zip(before, steered, strict=True))
    assert not [record for record in caplog.records if record.name.startswith("sdbridge")]
    stream.apply(nothing(everything(files)))
    after = stream.again()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    for ours, wanted in (
        (stream.engine.model.unet, base.unet),
        (stream.engine.model.text_encoders[0], base.text_encoders[0]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), wanted.parameters(), strict=True))


def test_each_alone_changes_the_picture_and_its_zero_is_exactly_without(stream: Stream, files: Files) -> None:
    plain = stream.again(range(3))
    cases: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"controlnet.3.model": files.controlnets[0]}, {"controlnet.3.scale": 0.0}),
        ({"controlnet.8.model": files.controlnets[2]}, {"controlnet.8.enabled": False}),
        ({"lora.8.file": files.loras[1]}, {"lora.8.weight": 0.0}),
        ({"lora.1.file": files.loras[0]}, {"lora.1.weight": 0.0}),
        ({"lora.3.file": files.loras[2]}, {"lora.3.weight": 0.0}),
        (
            {"style_model": files.style, "style.1.source": "file", "style.1.file": files.images[0]},
            {"style_scale": 0.0},
        ),
        ({"mask.source": "file", "mask.file": files.mask}, {"mask.source": "off"}),
        ({"pre.blur": 2.0}, {"pre.blur": 0.0}),
        ({"pre.sharpen": 2.0}, {"pre.sharpen": 0.0}),
        ({"pre.feedback": 0.5}, {"pre.feedback": 0.0}),
        ({"post.blur": 2.0}, {"post.blur": 0.0}),
        ({"post.sharpen": 2.0}, {"post.sharpen": 0.0}),
        ({"post.color_match": 1.0}, {"post.color_match": 0.0}),
    ]
    for there, gone in cases:
        stream.apply(there)
        with_it = stream.again(range(3))
        assert not np.array_equal(with_it[2], plain[2]), there
        stream.apply(gone)
        assert np.array_equal(stream.again(range(3))[2], plain[2]), gone
        stream.apply(nothing({**there, **gone}))


def test_outside_the_mask_the_stream_gives_the_input_to_the_last_bit(stream: Stream, files: Files) -> None:
    stream.apply(
        {"mask.source": "file", "mask.file": files.mask, "mask.soft": 8.0, "post.blur": 3.0, "pre.blur": 2.0}
    )
    out = stream.again(range(4))
    lag = stream.engine.spec.pipeline_ticks
    for index, picture in enumerate(out):
        number = max(0, index - lag)
        given = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
        kept = SIZE // 2 - 4
        assert np.array_equal(picture[:, :kept, :3], given[:, :kept, :3])
        assert not np.array_equal(picture[:, kept + 8 :, :3], given[:, kept + 8 :, :3])


def test_the_control_output_and_the_upscaled_size(stream: Stream, files: Files) -> None:
    stream.apply(
        {
            "controlnet.1.model": files.controlnets[0],
            "controlnet.1.preprocessor": "invert",
            "control_output": 1,
            "post.upscale": "2x",
        }
    )
    assert stream.tick().shape == (2 * SIZE, 2 * SIZE, 4)
    made = stream.engine.tick(Chunk.of(Frame(np.zeros((SIZE, SIZE, 4), np.uint8), stream.sent, 0)))
    assert made is not None and made.frames[0]["control"].pixels.shape[0] == SIZE


def test_sizes_frames_and_modes_change_under_full_conditioning(stream: Stream, files: Files) -> None:
    stream.apply(everything(files))
    for change in (
        {"width": 72, "height": 48},
        {"steps": 3},
        {"steps": 1},
        {"mode": "txt2img"},
        {"mode": "img2img"},
        {"guidance_mode": "full", "guidance_scale": 2.0},
        {"guidance_mode": "initialize"},
        {"width": SIZE, "height": SIZE},
    ):
        stream.revision += 1
        assert stream.engine.apply(change, stream.revision) == ()
        for _ in range(4):
            pixels = np.random.default_rng(stream.sent).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
            made = stream.engine.tick(Chunk.of(Frame(pixels, stream.sent, 0)))
            stream.sent += 1
        assert made is not None and made.frames[0]["generated"].pixels.shape[:2] == (
            stream.engine._values["height"],
            stream.engine._values["width"],
        )


def test_what_is_done_with_the_input_is_unused_where_there_is_none(stream: Stream, files: Files) -> None:
    of_the_input = {"pre.blur": 2.0, "pre.sharpen": 0.5, "pre.feedback": 0.2, "mask.source": "alpha"}
    stream.apply({**of_the_input, "post.sharpen": 0.5})
    stream.tick()
    assert stream.engine.stats().unused == ()
    stream.apply({"mode": "txt2img"})
    stream.tick()
    assert set(stream.engine.stats().unused) == set(of_the_input)
    stream.apply(
        {"mode": "img2img", **dict.fromkeys(of_the_input, 0.0), "mask.source": "off", "post.sharpen": 0.0}
    )
    stream.tick()
    assert stream.engine.stats().unused == ()


@pytest.mark.parametrize("source", ["alpha", "input"])
def test_a_mask_that_moves_in_alpha_alone_is_no_still_picture(stream: Stream, source: str) -> None:
    """The similarity filter looks at colours: the mask stood still for up to ``max_skip`` frames."""
    stream.apply({"mask.source": source, "mask.soft": 0.0, "strength": 0.9})
    stream.apply({"similarity.enabled": True, "similarity.threshold": 0.5, "similarity.max_skip": 100})
    pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
    pixels[..., 0] = np.arange(SIZE)
    made: list[np.ndarray] = []
    for number, edge in enumerate((16, 16, 48, 48)):
        masked = pixels.copy()
        masked[:, :edge, 3] = 0
        chunk = Chunk.of(
            Frame(masked if source == "alpha" else pixels, number, number),
            mask=Frame(masked if source == "input" else pixels, number, 0),
        )
        out = stream.engine.tick(chunk)
        assert out is not None
        made.append(out.frames[0]["generated"].pixels[..., :3])
    assert stream.engine.painter.skipped == 2, "frames that are alike are skipped as before"
    assert not np.array_equal(made[1], made[3])
    assert np.array_equal(made[3][:, :48], pixels[:, :48, :3])


def operations(files: Files, seed: int) -> Iterator[dict[str, object]]:
    """Endless random adding, removing, fading, swapping, and files that do not exist."""
    rng = random.Random(seed)
    models = ("", "", *files.controlnets, *files.bad)
    while True:
        slot, kind = rng.randint(1, 8), rng.randrange(9)
        if kind == 0:
            yield {f"controlnet.{slot}.model": rng.choice(models)}
        elif kind == 1:
            name = rng.choice(("scale", "start", "end", "low", "high", "detail"))
            yield {
                f"controlnet.{slot}.{name}": rng.random(),
                f"controlnet.{slot}.enabled": rng.random() < 0.8,
            }
        elif kind == 2:
            plain = (
                "canny",
                "softedge",
                "lineart",
                "scribble",
                "color",
                "tile",
                "grey",
                "invert",
                "passthrough",
            )
            yield {
                f"controlnet.{slot}.preprocessor": rng.choice(plain),
                f"controlnet.{slot}.source": rng.choice(("main", "control", "file")),
                f"controlnet.{slot}.file": rng.choice(("", *files.images)),
            }
        elif kind == 3:
            yield {f"lora.{slot}.file": rng.choice(("", *files.loras, *files.bad))}
        elif kind == 4:
            yield {f"lora.{n}.weight": rng.choice((0.0, rng.uniform(-2, 2))) for n in range(1, 9)}
        elif kind == 5:
            yield {"style_model": rng.choice(("", files.style, files.style, *files.bad))}
        elif kind == 6:
            number = rng.randint(1, 4)
            yield {
                f"style.{number}.source": rng.choice(("off", "file", "input", "grab")),
                f"style.{number}.file": rng.choice(("", *files.images, *files.bad)),
                f"style.{number}.grab": rng.random() < 0.5,
                f"style.{number}.weight": rng.random(),
                "style_scale": rng.random(),
                "style_type": rng.choice(("linear", "ease_in", "style", "composition")),
            }
        elif kind == 7:
            yield {
                "mask.source": rng.choice(("off", "alpha", "input", "file")),
                "mask.file": rng.choice(("", files.mask, *files.images, *files.bad)),
                "mask.soft": rng.uniform(0, 40),
                "mask.invert": rng.random() < 0.5,
            }
        else:
            yield {
                "pre.blur": rng.choice((0.0, 2.0)),
                "pre.feedback": rng.random(),
                "post.sharpen": rng.random(),
                "post.color_match": rng.random(),
                "control_alignment": rng.choice(("aligned", "newest")),
                "control_output": rng.randint(0, 8),
            }


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, torch.Tensor))


def clear(stream: Stream) -> None:
    rows = [
        row
        for row in TABLE
        if row.group in ("controlnet", "lora", "style", "mask", "hooks") and row.kind != "trigger"
    ]
    stream.apply({row.name: row.default for row in rows})
    for _ in range(4):
        stream.tick()
    for extension in stream.engine._extensions:
        if isinstance(extension, ControlNets):
            extension._scales.clear()  # up to 64 of the scales it was asked for, kept on purpose


def run_operations(stream: Stream, files: Files, count: int, wait: bool, may_stay: int = 8) -> None:
    """``may_stay``: tensors; four grabbed styles stay with their slots."""
    before = stream.again()
    clear(stream)
    alive = tensors_alive()
    asked = operations(files, count)
    for _ in range(count):
        changes = next(asked)
        if wait:
            stream.apply(changes)
        else:
            stream.revision += 1
            assert stream.engine.apply(changes, stream.revision) == ()
        stream.tick()  # one picture a tick, in order, whatever is asked for
    clear(stream)
    assert tensors_alive() <= alive + may_stay
    after = stream.again()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_sixty_random_operations_leak_nothing_and_miss_no_frame(stream: Stream, files: Files) -> None:
    run_operations(stream, files, 60, wait=True)


def test_random_operations_while_loading_goes_on(stream: Stream, files: Files) -> None:
    run_operations(stream, files, 40, wait=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_random_operations_leak_nothing_and_miss_no_frame(stream: Stream, files: Files) -> None:
    import tracemalloc

    run_operations(stream, files, 100, wait=True, may_stay=64)  # makes the buffers that are made once
    tracemalloc.start()
    first, _ = tracemalloc.get_traced_memory()
    run_operations(stream, files, 1000, wait=True)
    gc.collect()
    last, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last - first < 4_000_000


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("acceleration", ["compile", "eager"])
def test_a_thousand_random_operations_leave_no_memory_behind_on_a_gpu(
    files: Files, acceleration: str
) -> None:
    """Beside the frames graphs are made for every call that follows from them, and dropped."""
    stream = Stream("cuda", acceleration)

    def rest() -> int:
        """Bytes of the device's memory that something holds, once nothing is under way."""
        clear(stream)
        until = time.monotonic() + 300.0
        while stream.engine.shows_up_to is not None or not settled(1.0):
            assert time.monotonic() < until, "it never came to rest"
            stream.settle()
            stream.tick()
        gc.collect()
        torch.cuda.synchronize()
        cuda_graph.let_go()
        return int(torch.cuda.memory_allocated())

    settled = getattr(stream.engine.painter.acceleration, "settled", lambda seconds: True)
    try:
        before = stream.again()
        asked, held = operations(files, 1200), []
        for number in range(1200):
            stream.revision += 1
            assert stream.engine.apply(next(asked), stream.revision) == ()
            stream.tick()  # one picture a tick, in order, whatever is asked for
            if number in (199, 699, 1199):
                held.append(rest())
        assert held[2] - held[0] <= 16 << 20, held
        after = stream.again()
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    finally:
        stream.engine.unload()


def test_a_thousand_moves_of_every_fader_load_nothing(stream: Stream, files: Files) -> None:
    stream.apply(everything(files))
    extensions = [e for e in stream.engine._extensions if hasattr(e, "loads")]
    loads = [e.loads for e in extensions]
    groups = ("controlnet", "lora", "style", "mask", "hooks")
    faders = [row for row in TABLE if row.group in groups and row.kind == "float"]
    rng = random.Random(0)
    for _ in range(1000):
        stream.revision += 1
        moved = {row.name: rng.uniform(row.minimum or 0.0, row.maximum or 1.0) for row in faders}
        stream.engine.apply(moved, stream.revision)
        stream.engine._settle()
    stream.tick()
    assert [e.loads for e in extensions] == loads


def test_a_bad_file_is_told_beside_the_stream_which_goes_on(stream: Stream, files: Files) -> None:
    told: list[SdbridgeError] = []
    stream.engine.report_trouble(told.append)
    before = stream.again(range(2))
    for name in ("lora.1.file", "controlnet.1.model", "controlnet.2.file", "style_model", "mask.file"):
        stream.apply({name: files.bad[0]})
        assert "broken.safetensors" in str(told[-1]) and told[-1].code.startswith("SDB-"), name
        stream.apply({name: ""})
    assert len(told) == 5 and len({pickle.dumps(error) for error in told}) == 5  # they cross the pipe
    assert np.array_equal(stream.again(range(2))[1], before[1])


def test_a_distilled_lora_brings_its_sampler_and_takes_it_away(
    stream: Stream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    unet = stream.engine.model.unet
    folder = tmp_path_factory.mktemp("lcm")
    lcm = saved(folder, kohya(pairs(unet, targets(unet), 5)), "lcm-lora.safetensors")
    natural = stream.engine.painter.settings.plan.sampler
    stream.apply({"lora.1.file": str(lcm)})
    stream.tick()
    assert stream.engine.painter.settings.plan.sampler == "lcm" != natural
    stream.apply({"lora.1.file": ""})
    stream.tick()
    assert stream.engine.painter.settings.plan.sampler == natural
