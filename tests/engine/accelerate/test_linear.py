"""Every epilogue of the fused linear layers against float64, by Triton's interpreter where no GPU is."""

import os

import pytest
import torch
import torch.nn.functional as F

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from sdbridge.engine.accelerate.kernels import linear as subject
from sdbridge.engine.accelerate.kernels.linear import (
    Problem,
    default_way,
    linear,
    linear_geglu,
    parse_way,
)
from sdbridge.engine.accelerate.kernels.linear_tuning import LinearTuning, candidate_tiles
from sdbridge.engine.accelerate.kernels.tiles import Tile, parse_tile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(not subject.triton_here(), reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreter_of_today(monkeypatch):
    """Triton 3.6's interpreter takes int() of an array of one, which NumPy 2.4 no longer allows."""
    if not subject.triton_here():
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


TILES = [
    "32x32x32.w4.s2.g8.split1",
    "64x32x64.w4.s3.g2.split1",
    "32x64x32.w4.s2.g8.split3",
    "16x16x64.w4.s2.g8.split4",
    "32x32x64.w4.s2.g8.split1.tma",
]
SHAPES = [(77, 48, 96), (32, 64, 128), (130, 40, 72)]  # ragged in M; in N and K too


def random(*size, seed=0, dtype=torch.float16):
    made = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(*size, generator=made).to(dtype).to(DEVICE)


def distance(out, truth):
    assert out.shape == truth.shape
    return float((out.double() - truth).norm() / truth.norm())


@needs_triton
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("shape", "extras"),
    [(SHAPES[0], ""), (SHAPES[1], "bias"), (SHAPES[0], "residual"), (SHAPES[2], "bias residual")],
)
def test_linear_is_the_plain_product(tile, shape, extras):
    m, n, k = shape
    x, weight = random(m, k), random(n, k, seed=1)
    bias = random(n, seed=2) if "bias" in extras else None
    residual = random(m, n, seed=3) if "residual" in extras else None
    out = linear(x, weight, bias, residual, pick=lambda problem: tile)
    truth = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if residual is not None:
        truth = truth + residual.double()
    assert distance(out, truth) < 1e-3


@needs_triton
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_geglu_is_the_halves_of_the_product(tile, with_bias):
    m, n, k = 77, 48, 96
    x, weight = random(m, k), random(2 * n, k, seed=1)
    bias = random(2 * n, seed=2) if with_bias else None
    out = linear_geglu(x, weight, bias, pick=lambda problem: tile)
    hidden, gate = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, -1)
    assert distance(out, hidden * F.gelu(gate)) < 1e-3


@needs_triton
def test_the_gate_is_gelu_far_out_too():
    gates = torch.cat([torch.linspace(-9, 9, 399), torch.tensor([-3e4])])[:, None].half().to(DEVICE)
    x = torch.cat([gates, torch.ones_like(gates), torch.zeros(400, 14, device=DEVICE).half()], 1)
    weight = torch.zeros(32, 16, dtype=torch.float16, device=DEVICE)
    weight[0, 1] = weight[16, 0] = 1  # hidden 1, gate as given
    out = linear_geglu(x, weight, pick=lambda problem: "64x16x16.w4.s2.g8.split1")[:, 0].double()
    error = (out - F.gelu(gates[:, 0].double())).abs()
    assert bool((error < 2e-6 + out.abs() * 6e-4).all())


@needs_triton
@pytest.mark.parametrize("geglu", [False, True])
def test_the_library_with_what_it_lacks_behind_it(geglu):
    m, n, k = 50, 48, 96
    x, residual = random(m, k), random(m, n)
    weight, bias = random(n * (1 + geglu), k, seed=1), random(n * (1 + geglu), seed=2)
    truth = F.linear(x.double(), weight.double(), bias.double())
    if geglu:
        out = linear_geglu(x, weight, bias, pick=lambda problem: "library")
        assert distance(out, truth[:, :n] * F.gelu(truth[:, n:])) < 1e-3
        return
    assert distance(linear(x, weight, bias, pick=lambda problem: "library"), truth) < 1e-3
    out = linear(x, weight, bias, residual, pick=lambda problem: "library")
    assert distance(out, truth + residual.double()) < 1e-3
    truth = truth + residual.double()
    assert linear(x, weight, bias, residual, residual, pick=lambda problem: "library") is residual
    assert distance(residual, truth) < 1e-3


@needs_triton
def test_a_split_product_is_the_same_on_every_replay():
    x, weight = random(40, 512), random(48, 512, seed=1)
    workspace = subject.Workspace(DEVICE)
    runs = [
        linear(x, weight, pick=lambda problem: "32x32x32.w4.s2.g8.split4", workspace=workspace)
        for _ in range(3)
    ]
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert int(workspace.hold(0, 0)[1].abs().sum()) == 0  # ready for the next


@needs_triton
def test_rows_of_a_packed_weight_and_a_wider_out_are_used_where_they_lie():
    packed = random(3 * 64, 96, seed=1)
    x = random(40, 96)
    wide = torch.full((40, 128), 7.0, dtype=torch.float16, device=DEVICE)
    given = wide[:, :64]
    out = linear(x, packed[64:128], out=given, pick=lambda problem: TILES[0])
    assert out.data_ptr() == wide.data_ptr() and bool((wide[:, 64:] == 7).all())
    assert distance(out, x.double() @ packed[64:128].double().T) < 1e-3
    packed[64:128] *= 2  # as a LoRA fader does
    again = linear(x, packed[64:128], pick=lambda problem: TILES[0])
    assert distance(again, 2 * out.double()) < 1e-3


@needs_triton
@pytest.mark.parametrize("flags", [{}, {"residual": True, "bias": True}, {"geglu": True, "bias": True}])
@pytest.mark.parametrize("m", [64, 77, 256, 1024, 4096])
def test_the_default_way_is_a_way(flags, m):
    for n, k in [(320, 320), (1280, 1280), (1280, 5120), (5120, 1280)]:
        problem = Problem(m, n, k, **flags)
        assert parse_way(default_way(problem)) is not None
        for candidate in LinearTuning(problem).candidates():
            assert parse_way(candidate) is not None


@needs_triton
def test_float32_stays_float32():
    x, weight = random(9, 32, dtype=torch.float32), random(24, 32, seed=1, dtype=torch.float32)
    assert distance(linear(x, weight, pick=lambda problem: TILES[0]), x.double() @ weight.double().T) < 1e-6


def test_a_bare_product_is_the_librarys_and_geglu_is_ours():
    assert default_way(Problem(4096, 320, 320, bias=True)) == "library"
    assert default_way(Problem(4096, 320, 320, residual=True, in_place=True)) == "library"
    for m in (64, 256, 4096):
        assert parse_tile(default_way(Problem(m, 1280, 320, bias=True, geglu=True))) is not None


def test_without_a_gpu_the_plain_operations_answer(monkeypatch):
    monkeypatch.setattr(subject, "_fits_triton", lambda *tensors: False)
    x, weight, bias = random(9, 32), random(24, 32, seed=1), random(24, seed=2)
    residual = random(9, 24, seed=3)
    assert torch.equal(linear(x, weight, bias, residual), F.linear(x, weight, bias) + residual)
    hidden, gate = F.linear(x, weight, bias).chunk(2, -1)
    assert torch.equal(linear_geglu(x, weight, bias), hidden * F.gelu(gate))
    given = torch.empty(9, 24, dtype=torch.float16, device=DEVICE)
    assert linear(x, weight, out=given) is given


def test_a_misspelled_way_is_none():
    assert parse_way("library") is not None
    for wrong in ("", "separate:library", "64x64x64.w4.s3.g8", "rm -rf", "65x64x64.w4.s3.g8.split1"):
        assert parse_way(wrong) is None
    assert parse_way("64x64x64.w4.s3.g8.stream132") is None


@pytest.mark.parametrize(
    "tile",
    [Tile(64, 128, 32, 8, 4, 1, 2), Tile(16, 16, 16, chained=True), Tile(64, 64, 64, tma=True)],
)
def test_a_tile_spells_itself(tile):
    assert parse_tile(str(tile)) == tile


@pytest.mark.parametrize("text", ["", "64x64x64", "64x64x64.w3.s3.g8.split1", "4096x64x64.w4.s3.g8.split1"])
def test_a_misspelled_tile_is_none(text):
    assert parse_tile(text) is None


def test_small_problems_get_no_large_tiles():
    assert all(tile.m <= 64 for tile in candidate_tiles(Problem(64, 1280, 1280)))
    assert any(tile.split > 1 for tile in candidate_tiles(Problem(64, 1280, 5120)))


@needs_triton
@pytest.mark.parametrize(
    "problem",
    [
        Problem(40, 48, 96, bias=True, residual=True, in_place=True),
        Problem(40, 48, 128, geglu=True, bias=True),
        Problem(40, 64, 96),
    ],
)
def test_a_candidate_is_known_right_or_wrong(problem, monkeypatch):
    tuning = LinearTuning(problem)
    assert tuning.agrees(DEVICE, TILES[0])
    assert tuning.agrees(DEVICE, "library")
    launch = subject._kernels().launch_gemm

    def wrong(tile, x, weight, out, **rest):
        launch(tile, x, weight, out, **rest)
        out[3, 5] += 100.0

    monkeypatch.setattr(subject._kernels(), "launch_gemm", wrong)
    assert not tuning.agrees(DEVICE, TILES[0])


def test_calls_to_time_read_other_weights_each():
    tuning = LinearTuning(Problem(8, 32, 64, bias=True))
    slab = random(10_000)
    calls = tuning.bind(DEVICE, slab, 5)("torch")
    weights = {call.keywords["weight"].data_ptr() for call in calls}
    assert len(weights) == 5 and all(call().shape == (8, 32) for call in calls)


def test_the_shipped_ways_are_ways_of_their_problems():
    from sdbridge.engine.accelerate.kernels.linear import shipped_ways

    for key, way in shipped_ways().items():
        size, dtype, said = key.removeprefix("linear ").split(" ")
        flags = {} if said == "plain" else dict.fromkeys(said.split("+"), True)
        problem = Problem(*map(int, size.split("x")), dtype, **flags)
        assert problem.key == key
        assert parse_way(way) is not None


ON_A_CARD = [
    "library",
    "64x64x64.w4.s5.g8.split1",
    "64x32x128.w4.s4.g8.split4",
    "128x64x64.w4.s2.g8.split1.tma",
    "64x64x64.w4.s3.g8.split2.tma",
    "64x64x64.w4.s3.g8.split2.tma.chained",
    "default",
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("way", ON_A_CARD)
@pytest.mark.parametrize("m", [4096, 256, 77])
def test_on_a_card_every_way_agrees_with_pytorch(way, m):
    if torch.cuda.get_device_capability()[0] < 9 and ("tma" in way or "chained" in way):
        pytest.skip("the card has no copy engine")
    for flags in ({"bias": True, "geglu": True}, {"bias": True, "residual": True, "in_place": True}, {}):
        for n, k in ((1280, 320), (640, 1280), (72, 200)):
            problem = Problem(m, n, k, **flags)
            assert LinearTuning(problem).agrees(DEVICE, default_way(problem) if way == "default" else way)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_a_graph_of_splits_gives_the_same_bits_at_every_replay():
    x, weight, workspace = random(256, 1280), random(1280, 1280, seed=1) * 0.03, subject.Workspace(DEVICE)

    def run():
        once = linear(x, weight, pick=lambda problem: ON_A_CARD[2], workspace=workspace)
        return linear(once, weight, pick=lambda problem: ON_A_CARD[2], workspace=workspace)

    wanted = run().clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(50):
        out.zero_()
        graph.replay()
        assert torch.equal(out, wanted)
