"""TensorRT as far as it goes without TensorRT: graphs against PyTorch, building and running on a stand-in."""

import copy

import pytest
import torch

from sdbridge.engine.accelerate.tensorrt.build import build_engine
from sdbridge.engine.accelerate.tensorrt.cache import ShapeRange
from sdbridge.errors import SdbridgeError

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the test extra's onnxruntime")
pytest.importorskip("onnxscript", reason="needs the test extra's onnxscript")

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel  # noqa: E402

from sdbridge.engine.accelerate.tensorrt.export import export_onnx, read_weight_names  # noqa: E402
from sdbridge.engine.accelerate.tensorrt.graphs import (  # noqa: E402
    autoencoder_graphs,
    controlnet_graph,
    unet_graph,
    vae_graphs,
)
from sdbridge.engine.accelerate.tensorrt.runtime import BuiltEngine  # noqa: E402
from sdbridge.models.small import build_small_checkpoint  # noqa: E402
from tests.engine.accelerate import fake_tensorrt as trt  # noqa: E402

# Exporting takes torch a minute on these machines.
pytestmark = pytest.mark.slow

RANGES = {
    "rows": ShapeRange(1, 2, 4),
    "height": ShapeRange(4, 8, 24),
    "width": ShapeRange(4, 8, 24),
    "tokens": ShapeRange(1, 77, 231),
}
TOLERANCE = 1e-3  # the issue's; fp32 on the CPU stays far under it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


def disturb(network: torch.nn.Module, by: float) -> None:
    """What begins as zero has a value then, and all that there is shows in the output."""
    for parameter in network.parameters():
        parameter.data += by * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def unet(folder):
    build_small_checkpoint(folder / "sd15", "sd15")
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_pretrained(folder / "sd15" / "unet").eval()
    disturb(model, 0.02)
    return model


@pytest.fixture(scope="module")
def controlnet(unet):
    torch.manual_seed(1)
    model = ControlNetModel.from_unet(unet).eval()
    disturb(model, 0.05)
    return model


@pytest.fixture(scope="module")
def exported(folder, unet, controlnet):
    """UNet with residual inputs, exported and built once for all tests here."""
    graph = unet_graph(unet, controlnet, 8, 8)
    file = folder / "unet.onnx"
    names = export_onnx(graph, file)
    heard = []
    blob = build_engine(trt, graph, file, RANGES, heard.append)
    return graph, file, names, blob, heard


def values(graph, rows, height, width):
    torch.manual_seed(rows * height + width)
    base = graph.inputs[0].example
    given = {}
    for item in graph.inputs:
        shape = list(item.example.shape)
        for dimension, name in item.dynamic.items():
            if name == "rows":
                shape[dimension] = rows
            elif name in ("height", "width"):
                size = {"height": height, "width": width}[name]
                shape[dimension] = max(1, size * shape[dimension] // base.shape[dimension])
        if item.name == "timesteps":
            given[item.name] = torch.randint(0, 1000, shape)
        else:
            given[item.name] = torch.randn(shape)
    return given


def run_onnx(file, graph, given):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [
        torch.from_numpy(v) for v in session.run(None, {i.name: given[i.name].numpy() for i in graph.inputs})
    ]


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 8, 8), (4, 8, 16), (2, 24, 4)])
def test_the_unet_graph_matches_pytorch_at_other_rows_and_sizes(exported, rows, height, width):
    graph, file, *_ = exported
    given = values(graph, rows, height, width)
    with torch.no_grad():
        wanted = graph.module(*given.values())
    (got,) = run_onnx(file, graph, given)
    assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def test_the_controlnet_graph_has_its_scale_as_an_input(folder, unet, controlnet):
    graph = controlnet_graph(controlnet, unet, 8, 8)
    file = folder / "controlnet.onnx"
    export_onnx(graph, file)
    given = values(graph, 2, 8, 8)
    given["scale"] = torch.tensor([0.0, 0.7])
    with torch.no_grad():
        wanted = graph.module(*given.values())
    got = run_onnx(file, graph, given)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= TOLERANCE * max(1.0, float(b.abs().max()))
        assert not a[0].any() and a[1].any()


def test_encoder_and_decoder_graphs_match_pytorch(folder):
    torch.manual_seed(2)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1,) * 4,
    ).eval()

    class Model:
        vae_is_tiny, vae_dtype, device, latent_scale, latent_shift = True, torch.float32, "cpu", 0.5, 0.1

    Model.vae = vae
    for graph in vae_graphs(Model, 64, 64):
        file = folder / f"{graph.name}.onnx"
        export_onnx(graph, file)
        given = values(graph, 1, graph.inputs[0].example.shape[2] * 2, graph.inputs[0].example.shape[3])
        with torch.no_grad():
            wanted = graph.module(*given.values())
        (got,) = run_onnx(file, graph, given)
        assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.fixture(scope="module")
def sdxl(folder):
    build_small_checkpoint(folder / "sdxl", "sdxl")
    torch.manual_seed(4)
    unet = UNet2DConditionModel.from_pretrained(folder / "sdxl" / "unet").eval()
    disturb(unet, 0.02)
    network = ControlNetModel.from_unet(unet).eval()
    disturb(network, 0.05)
    return unet, network


@pytest.mark.parametrize("part", ["unet", "controlnet", "encode", "decode"])
def test_sdxl_and_the_full_vae_match_pytorch_too(folder, sdxl, part: str):
    if part == "unet":
        graph = unet_graph(*sdxl, 8, 8)
    elif part == "controlnet":
        graph = controlnet_graph(sdxl[1], sdxl[0], 8, 8)
    else:
        torch.manual_seed(5)
        vae = AutoencoderKL(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=8,
        ).eval()
        graph = autoencoder_graphs(vae, False, 0.13, 0.0, 64, 64)[part == "decode"]
    names = {item.name for item in graph.inputs}
    assert ({"text_embeds", "time_ids"} <= names) == (part in ("unet", "controlnet"))
    file = folder / f"sdxl-{part}.onnx"
    export_onnx(graph, file)
    first = graph.inputs[0].example
    given = values(graph, 3, 2 * first.shape[2], first.shape[3])
    with torch.no_grad():
        wanted = graph.module(*given.values())
    for mine, theirs in zip(
        run_onnx(file, graph, given), wanted if part == "controlnet" else [wanted], strict=True
    ):
        assert (mine - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def test_a_model_in_half_is_exported_in_half(folder, unet):
    """As on a card: a TensorRT network takes its precision from the file."""
    import onnx

    graph = unet_graph(copy.deepcopy(unet).half(), None, 8, 8)
    file = folder / "half.onnx"
    export_onnx(graph, file)
    kinds = {item.name: item.type.tensor_type.elem_type for item in onnx.load(file).graph.input}
    half, whole = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64
    assert kinds == {"sample": half, "timesteps": whole, "tokens": half}
    given = {name: v if name == "timesteps" else v.half() for name, v in values(graph, 2, 8, 16).items()}
    with torch.no_grad():
        wanted = graph.module(*given.values())
    (got,) = run_onnx(file, graph, given)
    assert got.dtype == wanted.dtype == torch.float16
    # both round at every operation, each in its own order: 1.5e-3 apart
    assert (got.float() - wanted.float()).abs().max() <= 5 * TOLERANCE * wanted.float().abs().max()


def test_every_weight_a_lora_may_change_has_its_name_in_the_graph(exported, unet):
    _, file, names, *_ = exported
    named = {entry.parameter for entry in names}
    layers = [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert {f"unet.{name}.weight" for name in layers} <= named
    assert read_weight_names(file) == names


def test_building_reports_progress_with_time_left(exported):
    heard = exported[-1]
    assert [event.done for event in heard] == [1, 2, 3, 4]
    assert all(
        event.total == 4 and event.stage == "TensorRT unet" and event.left_s is not None for event in heard
    )


def test_a_built_engine_runs_on_real_pointers_at_changing_shapes(exported):
    graph, _, _, blob, _ = exported
    engine = BuiltEngine(trt, blob, torch.device("cpu"), stream=lambda: 0)
    for rows, size in ((1, 8), (4, 8), (2, 16), (1, 8)):
        given = values(graph, rows, size, size)
        with torch.no_grad():
            wanted = graph.module(*given.values())
        got = engine.run(given)["noise"]
        assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    with pytest.raises(SdbridgeError, match="SDB-TENSORRT-RUN"):
        engine.run(values(graph, 8, 8, 8))


def test_refitting_gives_the_engine_other_weights_without_a_build(exported, unet, controlnet):
    graph, _, names, blob, _ = exported
    engine = BuiltEngine(trt, blob, torch.device("cpu"), stream=lambda: 0)
    other = copy.deepcopy(graph.module)
    torch.manual_seed(3)
    for parameter in other.parameters():
        if parameter.dim() > 1:
            parameter.data += 0.05 * torch.randn_like(parameter)
    written = engine.refit(names, dict(other.named_parameters()))
    assert written == len(names)
    given = values(graph, 2, 8, 8)
    with torch.no_grad():
        wanted, before = other(*given.values()), graph.module(*given.values())
    got = engine.run(given)["noise"]
    assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    assert (got - before).abs().max() > 10 * TOLERANCE * wanted.abs().max()


def test_a_graph_that_is_not_understood_is_told_in_the_parsers_words(exported, tmp_path):
    graph = exported[0]
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"\x00not onnx")
    with pytest.raises(SdbridgeError, match=r"SDB-TENSORRT-BUILD.*broken\.onnx"):
        build_engine(trt, graph, file, RANGES, lambda event: None)


def test_a_build_can_be_cancelled(exported):
    graph, file, *_ = exported
    with pytest.raises(SdbridgeError, match="cancelled"):
        build_engine(trt, graph, file, RANGES, lambda event: None, cancelled=lambda: True)


def test_the_stand_in_refuses_names_that_are_not_documented():
    with pytest.raises(AttributeError):
        trt.Builder(trt.Logger()).build_cuda_engine(None)
    with pytest.raises(AttributeError):
        trt.Builder(trt.Logger()).create_builder_config().max_workspace_size = 1
