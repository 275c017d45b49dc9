"""``acceleration: tensorrt`` end to end on the CPU: a stand-in of its API, ONNX Runtime's arithmetic."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from sdbridge.bench.drive import Drive, Recipe, is_loading
from sdbridge.bench.networks import random_lora
from sdbridge.engine.accelerate import choose_acceleration
from sdbridge.engine.accelerate.attention import ChosenAttention, put_on
from sdbridge.engine.accelerate.tensorrt import acceleration as tensorrt_acceleration
from sdbridge.engine.accelerate.tensorrt import build, library, obtain, workshop
from sdbridge.engine.accelerate.tensorrt.acceleration import TensorRT
from sdbridge.engine.accelerate.tensorrt.cache import ShapeRange
from sdbridge.engine.accelerate.tensorrt.export import WeightName
from sdbridge.engine.accelerate.tensorrt.graphs import Graph, GraphInput
from sdbridge.engine.accelerate.tensorrt.order import Order, ranges_for, read_order
from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.interface import EngineConfig, Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models.small import build_small_checkpoint

pytest.importorskip("onnxruntime", reason="needs the test extra's onnxruntime")
pytest.importorskip("onnxscript", reason="needs the test extra's onnxscript")
from tests.engine.accelerate import fake_tensorrt

SIDE = 64


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(library, "DEVICES", {"cuda", "cpu"})
    monkeypatch.setattr(tensorrt_acceleration, "REST_S", 0.02)
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_small_checkpoint(tmp_path_factory.mktemp("small") / "m", distilled="turbo")
    random_lora(folder)
    return folder


def streaming(folder: Path, acceleration: str, recipe: Recipe) -> tuple[ImageEngine, Drive]:
    options = {"wait_for_prompts": True}
    engine = ImageEngine(
        EngineConfig(model=str(folder), dtype="float32", acceleration=acceleration, options=options)
    )
    engine.load(recipe.start_values())
    engine.warm_up(recipe.width, recipe.height)
    engine.reset("hard")
    return engine, Drive(engine, recipe, frozenset(range(1000)))


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def parts_of(engine: ImageEngine) -> dict:
    made = engine.painter.acceleration
    assert isinstance(made, TensorRT)
    return made._parts


@pytest.mark.slow  # three exports, each by a process that imports torch
@pytest.mark.timeout(900)
def test_a_small_model_streams_through_engines_that_are_built_refitted_cached_and_dropped(
    standing_in, checkpoint, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    recipe = Recipe({"steps": 1, "strength": 0.36}, SIDE, SIDE)
    plain, eager = streaming(checkpoint, "eager", recipe)
    engine, drive = streaming(checkpoint, "tensorrt", recipe)
    try:
        heard: list[Progress] = []
        drive.tick()  # frames flow before anything is built
        eager.tick()
        assert differ(drive.kept[0], eager.kept[0]) == 0
        acceleration = engine.painter.acceleration
        lines = acceleration.build(heard.append)
        assert lines == ("TensorRT encode: built", "TensorRT decode: built", "TensorRT unet: built")
        assert "TensorRT unet" in {event.stage for event in heard}
        assert any(event.left_s is not None for event in heard)

        # the engines give what eager gives, at other rows too
        calls = []
        run = acceleration.run_denoise

        def watched(call):  # compared at once: the next frame writes over what a call was given
            got = run(call).clone()
            calls.append((got, plain.painter.acceleration.run_denoise(call).clone()))
            return got

        monkeypatch.setattr(acceleration, "run_denoise", watched)
        used = count_runs(parts_of(engine), monkeypatch)
        for _ in range(3):
            drive.tick()
            eager.tick()
        assert used == {"unet": 3, "encode": 3, "decode": 3}
        assert all(differ(drive.kept[n], eager.kept[n]) <= 1 for n in range(4))
        assert len(calls) == 3
        for got, wanted in calls:
            assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max()

        # a LoRA: without the engine while its fader moves, with other weights in it afterwards
        for each in (engine, plain):
            each.apply({"lora.1.file": str(checkpoint / "bench-lora.safetensors"), "lora.1.weight": 3.0}, 1)
        for each in (drive, eager):
            while is_loading(each.engine):
                each.engine._settle()
        before = used["unet"]
        drive.number = eager.number = 20
        drive.tick()
        eager.tick()
        assert used["unet"] == before and differ(drive.kept[20], eager.kept[20]) == 0
        assert acceleration.settled(60.0)
        drive.tick()
        eager.tick()
        assert used["unet"] == before + 1 and differ(drive.kept[21], eager.kept[21]) <= 1

        # an engine that fails in the middle of the stream
        def broken(tensors):
            raise RuntimeError("cuda error 700")

        monkeypatch.setattr(parts_of(engine)["unet"].engine, "run", broken)
        for _ in range(2):
            drive.tick()
            eager.tick()
        assert differ(drive.kept[23], eager.kept[23]) <= 1
        said = [r.getMessage() for r in caplog.records if "cuda error 700" in r.getMessage()]
        assert said == ["the unet goes on without TensorRT: cuda error 700"]
    finally:
        engine.unload()
        plain.unload()

    # the second start builds nothing; a damaged engine is built anew
    monkeypatch.setattr(obtain, "_make", refuse)
    again, _ = streaming(checkpoint, "tensorrt", recipe)
    assert again.painter.acceleration.build(lambda event: None) == (
        "TensorRT encode: was built before",
        "TensorRT decode: was built before",
        "TensorRT unet: was built before",
    )
    again.unload()
    (file,) = (Path(tensorrt_acceleration.paths.cache_dir()) / "tensorrt").glob("unet-*.engine")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    third, drive = streaming(checkpoint, "tensorrt", recipe)
    assert "could not be built" in third.painter.acceleration.build(lambda event: None)[2]
    drive.tick()
    assert drive.kept
    third.unload()


def count_runs(parts: dict, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    used = dict.fromkeys(parts, 0)
    for name, part in parts.items():

        def run(tensors, name=name, before=part.engine.run):
            used[name] += 1
            return before(tensors)

        monkeypatch.setattr(part.engine, "run", run)
    return used


def refuse(*given, **named):
    raise SdbridgeError("SDB-TENSORRT-BUILD", "nothing may be built here")


def test_without_the_library_another_acceleration_runs_and_says_why(caplog) -> None:
    name, why = choose_acceleration("tensorrt", torch.device("cpu"))
    assert name == "eager" and "TensorRT cannot be used" in why
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_an_old_library_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type("Old", (), {"__version__": "8.6.1"}))
    found, why = library.find_tensorrt("cuda")
    assert found is None and "8.6.1" in why


def test_a_stream_goes_on_where_nothing_can_be_built(standing_in, checkpoint, monkeypatch, caplog) -> None:
    monkeypatch.setattr(obtain, "_make", refuse)
    engine, drive = streaming(checkpoint, "tensorrt", Recipe({"steps": 1}, SIDE, SIDE))
    lines = engine.painter.acceleration.build(lambda event: None)
    assert all("could not be built" in line for line in lines)
    drive.tick()
    engine.unload()
    assert drive.kept
    assert (
        sum("nothing may be built here" in r.getMessage() for r in caplog.records if r.levelname == "WARNING")
        == 3
    )


def test_an_engine_that_tensorrt_refuses_is_built_anew_once(
    standing_in, checkpoint, monkeypatch, caplog
) -> None:
    """It came whole out of the cache, and its library will not have it."""
    blobs: list[bytes] = []

    def make(*given):
        blobs.append(b"new" if refused else b"old")
        return blobs[-1], ()

    class Engine:
        def __init__(self, library, blob, device, stream) -> None:
            if blob in refused:
                raise SdbridgeError("SDB-TENSORRT-LOAD", "TensorRT refused an engine")

        def close(self) -> None:
            pass

    monkeypatch.setattr(TensorRT, "_try", lambda self, part, tensors, output: None)  # nothing to run
    refused: set[bytes] = set()
    monkeypatch.setattr(obtain, "_make", make)
    monkeypatch.setattr(tensorrt_acceleration, "BuiltEngine", Engine)
    said = []
    for _ in range(3):
        engine, _ = streaming(checkpoint, "tensorrt", Recipe({"steps": 1}, SIDE, SIDE))
        said.append(
            {line.partition(": ")[2] for line in engine.painter.acceleration.build(lambda event: None)}
        )
        engine.unload()
        refused.add(b"old")
    assert said == [{"built"}, {"built"}, {"was built before"}]
    assert blobs == [b"old"] * 3 + [b"new"] * 3
    assert sum("is refused" in record.getMessage() for record in caplog.records) == 3


def test_orders_of_processes_that_are_no_more_are_cleared_away(tmp_path) -> None:
    for name in ("work-0-x", "work-999999999-x", f"work-{os.getpid()}-x", "work-strange-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"x")
    obtain._work_folder(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert f"work-{os.getpid()}-x" in left and not left & {"work-999999999-x", "work-strange-x"}


def test_attention_of_our_choice_keeps_no_engine_from_running(checkpoint) -> None:
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    call = UnetCall(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 77, 32))
    assert tensorrt_acceleration._obstacle(call, unet) == ""
    put_on(unet, lambda query, key, value: query)
    assert any(isinstance(m.processor, ChosenAttention) for m in unet.modules() if hasattr(m, "processor"))
    assert tensorrt_acceleration._obstacle(call, unet) == ""


def test_what_runs_without_an_engine_is_built_too() -> None:
    below = SimpleNamespace(close=lambda: None, build=lambda progress: ("74 kernels compiled",))
    acceleration = TensorRT(SimpleNamespace(device=torch.device("cpu")), fake_tensorrt, below)  # type: ignore
    assert acceleration.build(lambda event: None) == ("74 kernels compiled",)
    acceleration.close()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (9, 8), (65, 33), (12, 20), (90, 160)])
def test_residuals_of_any_size_are_traced_at_sizes_that_go_together(checkpoint, height, width) -> None:
    """Odd sizes are halved upwards; the example's must stay a half, a quarter and an eighth."""
    shapes, size = [], (height, width)
    for level in range(4):
        shapes.append((8 << level, *size))
        size = (-(-size[0] // 2), -(-size[1] // 2))
    halvings = [workshop._halvings((height, width), shape[1:]) for shape in shapes]
    assert halvings == [0, 1, 2, 3]
    example = [16 >> times for times in halvings]
    inputs = tuple(
        GraphInput(name, torch.zeros(2, 4, side, side), {0: "rows", 2: "height", 3: "width"})
        for name, side in zip(("sample", "residual_1", "residual_2", "residual_3"), example, strict=True)
    )
    graph = Graph("unet", torch.nn.Identity(), inputs, ("noise",))
    ranges = {
        "rows": ShapeRange(1, 1, 8),
        "height": ShapeRange(min(height, 32), height, max(height, 129)),
        "width": ShapeRange(min(width, 32), width, max(width, 129)),
    }
    profile = build._profile(fake_tensorrt.Builder(fake_tensorrt.Logger()), graph, ranges)
    for item, shape in zip(inputs, shapes, strict=True):
        assert profile._shapes[item.name][1][2:] == shape[1:], "the likeliest size is the one that runs"
    assert [profile._shapes[item.name][2][2] for item in inputs][1:] == [
        -(-max(height, 129) // n) for n in (2, 4, 8)
    ]


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path, monkeypatch, caplog) -> None:
    def full(*given):
        raise OSError(28, "No space left on device")

    names = (WeightName("a", "a", False),)
    monkeypatch.setattr(obtain, "_make", lambda *given: (b"engine", names))
    monkeypatch.setattr(obtain, "save_engine", full)
    got = obtain.obtain_engine(order(), weights(), tmp_path, "10", torch.device("cpu"), lambda p: None)
    assert got.blob == b"engine" and not got.cached
    assert sum("No space left" in r.getMessage() for r in caplog.records) == 1


def test_an_engine_is_kept_with_its_names_and_a_damaged_list_is_not_trusted(tmp_path, monkeypatch) -> None:
    made = []

    def make(*given):
        made.append(given[0].part)
        return b"engine", (WeightName("a", "b", True),)

    monkeypatch.setattr(obtain, "_make", make)

    def get():
        return obtain.obtain_engine(order(), weights(), tmp_path, "10", torch.device("cpu"), lambda p: None)

    assert not get().cached
    again = get()
    assert again.cached and again.names == (WeightName("a", "b", True),) and len(made) == 1
    (seal,) = tmp_path.glob("*.json")
    read = json.loads(seal.read_text())
    read["about"]["names"][0]["transposed"] = False
    seal.write_text(json.dumps(read))
    assert not get().cached and len(made) == 2
    other = weights() | {"a": torch.ones(3)}
    obtain.obtain_engine(order(), other, tmp_path, "10", torch.device("cpu"), lambda p: None)
    assert len(made) == 3


def test_a_workshop_that_dies_is_told_and_leaves_nothing(tmp_path) -> None:
    strange = Order("unet", "NoSuchClass", {}, ranges_for(1, 8, 8, tokens=True))
    with pytest.raises(SdbridgeError, match="SDB-TENSORRT-BUILD"):
        obtain.obtain_engine(strange, weights(), tmp_path, "10", torch.device("cpu"), lambda p: None)
    assert not list(tmp_path.iterdir())


def test_a_build_ends_when_the_stream_does(tmp_path) -> None:
    strange = Order("unet", "UNet2DConditionModel", {}, ranges_for(1, 8, 8, tokens=True), library="json")
    with pytest.raises(SdbridgeError, match="cancelled"):
        obtain.obtain_engine(
            strange, weights(), tmp_path, "10", torch.device("cpu"), lambda p: None, lambda: True
        )
    assert not list(tmp_path.iterdir())


def test_an_order_crosses_to_the_workshop_whole(tmp_path) -> None:
    given = Order(
        "unet",
        "UNet2DConditionModel",
        {"a": [1, 2]},
        ranges_for(4, 64, 96, tokens=True),
        ((4, 64, 96), (8, 32, 48)),
    )
    given.write(tmp_path)
    assert read_order(tmp_path) == given


def test_an_engine_serves_what_it_was_made_for_and_more() -> None:
    ranges = ranges_for(1, 64, 64, tokens=True)
    assert ranges["height"] == ShapeRange(32, 64, 128) and ranges["rows"] == ShapeRange(1, 1, 8)
    given = Order("unet", "UNet2DConditionModel", {}, ranges)
    assert given.takes(4, 32, 128, 77) and given.takes(1, 64, 64, 154)
    assert not given.takes(9, 64, 64, 77) and not given.takes(1, 24, 64, 77)
    wide = Order("unet", "UNet2DConditionModel", {}, ranges_for(12, 160, 16, tokens=True))
    assert wide.takes(12, 160, 16, 77)


def order() -> Order:
    return Order("unet", "UNet2DConditionModel", {}, {"rows": ShapeRange(1, 1, 2)})


def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(3)}


def test_kernels_compiled_for_what_runs_meanwhile_are_told_too() -> None:
    told: list[Progress | None] = []
    without = SimpleNamespace(close=lambda: None)
    without.report_progress = lambda tell: tell(Progress("compile", 1, 2))
    acceleration = TensorRT(SimpleNamespace(device=torch.device("cpu")), fake_tensorrt, without)  # type: ignore
    acceleration.report_progress(told.append)
    acceleration.close()
    assert [event and event.stage for event in told] == ["compile"]
