"""The UNet's convolution kernels against float64, by Triton's interpreter where no GPU is."""

import os

import pytest
import torch
import torch.nn.functional as F

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from sdbridge.engine.accelerate.kernels import unet_conv as subject
from sdbridge.engine.accelerate.kernels.linear import Workspace
from sdbridge.engine.accelerate.kernels.tuning import Timing, Tuner
from sdbridge.engine.accelerate.kernels.unet_conv import ConvProblem, conv3x3, parse_way
from sdbridge.engine.accelerate.kernels.unet_conv_tuning import ConvTuning, MeasuredConvs

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


def random(*size, seed=0):
    made = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(*size, generator=made).half().to(DEVICE)


def weight_of(outputs, channels, seed=1):
    """As a channels-last module has it: the values random, the memory ``[N, 3, 3, C]``."""
    made = random(outputs, channels, 3, 3, seed=seed) * (9 * channels) ** -0.5
    return made.contiguous(memory_format=torch.channels_last)


def truth_of(rows, batch, height, width, weight, stride=1, upsample=False, bias=None):
    picture = rows.double().view(batch, height, width, -1).permute(0, 3, 1, 2)
    if upsample:
        picture = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    out = F.conv2d(picture, weight.double(), None if bias is None else bias.double(), stride, 1)
    return out.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])


def distance(out, truth):
    assert out.shape == truth.shape
    return float((out.double() - truth).norm() / truth.norm())


WAYS = [
    "32x32x32.w4.s2.g8.split1",
    "16x64x32.w4.s2.g2.split3",
    "64x16x64.w4.s2.g8.split7",
    "swap:32x16x32.w4.s2.g8.split1",
    "swap:32x32x64.w4.s2.g8.split4",
    "wide:32x64x32.w4.s2.g8.split1",
    "wide:16x64x64.w4.s2.g8.split2",
    "apart:32x32x32.w4.s2.g8.split4",
    "wide-apart:32x64x32.w4.s2.g8.split3",
    "swap-apart:32x32x64.w4.s2.g8.split3",
]


# batch, height, width, channels, outputs, stride, upsample, with a bias
SHAPES = [
    (2, 3, 5, 40, 48, 1, False, True),  # ragged: pixels, channels and outputs
    (1, 4, 6, 64, 40, 1, False, False),
    (2, 5, 6, 32, 33, 2, False, False),
    (1, 2, 4, 40, 40, 1, True, True),
    (1, 5, 5, 4, 32, 1, False, False),
]
CASES = [(way, SHAPES[0]) for way in WAYS] + [
    (way, SHAPES[1 + (index + more) % 4]) for index, way in enumerate(WAYS) for more in range(2)
]


@needs_triton
@pytest.mark.parametrize("way,shape", CASES)
def test_it_is_the_convolution(way, shape):
    batch, height, width, channels, outputs, stride, upsample, with_bias = shape
    rows, weight = random(batch * height * width, channels), weight_of(outputs, channels)
    bias = random(outputs, seed=2) if with_bias else None
    shape = (batch, height, width, weight, stride, upsample, bias)
    asked = []
    out = conv3x3(rows, *shape, pick=lambda problem: asked.append(problem) or way)
    assert distance(out, truth_of(rows, *shape)) < 1e-3
    assert parse_way(way, asked[0]) is not None
    assert asked[0].pixels == len(out)


@needs_triton
@pytest.mark.parametrize("way", ["whole:16x16x32.w4.s2.g8.split1", "whole:16x32x64.w4.s2.g8.split2"])
@pytest.mark.parametrize("size", [(4, 4), (2, 8)])
@pytest.mark.parametrize("channels", [64, 40])
def test_a_whole_small_picture_at_once(way, size, channels):
    rows, weight, bias = random(2 * 16, channels), weight_of(40, channels), random(40, seed=2)
    out = conv3x3(rows, 2, *size, weight, bias=bias, pick=lambda problem: way)
    assert distance(out, truth_of(rows, 2, *size, weight, bias=bias)) < 1e-3


@needs_triton
@pytest.mark.parametrize("pixels", [16, 32, 64])
def test_a_box_of_the_picture_by_the_copy_engine(pixels):
    way = f"swap:{pixels}x32x32.w4.s2.g8.split2.tma"
    rows, weight = random(2 * 64, 40), weight_of(40, 40)
    out = conv3x3(rows, 2, 4, 16, weight, pick=lambda problem: way)
    assert parse_way(way, ConvProblem(2, 4, 16, 40, 40)) is not None
    assert distance(out, truth_of(rows, 2, 4, 16, weight)) < 1e-3


@needs_triton
def test_the_channels_of_a_wider_row_are_read_where_they_lie():
    wide, weight = random(36, 96), weight_of(32, 64)
    part = wide[:, 32:]
    out = conv3x3(part, 1, 6, 6, weight, pick=lambda problem: WAYS[0])
    assert distance(out, truth_of(part.contiguous(), 1, 6, 6, weight)) < 1e-3


@needs_triton
@pytest.mark.parametrize("way", ["16x32x32.w4.s2.g8.split3", "whole:16x16x32.w4.s2.g8.split2"])
def test_a_split_sum_repeats_bit_by_bit_and_follows_a_weight_written_in_place(way):
    rows, weight = random(16, 64), weight_of(32, 64)
    workspace = Workspace(DEVICE)

    def run():
        return conv3x3(rows, 1, 4, 4, weight, pick=lambda problem: way, workspace=workspace)

    first = run()
    assert torch.equal(run(), first)
    assert int(workspace.hold(0, 0)[1].abs().sum()) == 0  # ready for the next
    weight *= 2
    assert distance(run(), 2 * first.double()) < 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride,upsample", [(1, False), (2, False), (1, True)])
def test_without_triton_the_plain_operations_answer(monkeypatch, layout, stride, upsample):
    monkeypatch.setattr(subject, "triton_here", lambda: False)
    rows, weight, bias = random(2 * 30, 16).float(), weight_of(24, 16).float(), random(24, seed=2).float()
    weight = weight.contiguous(memory_format=layout)
    out = conv3x3(rows, 2, 5, 6, weight, stride, upsample, bias)
    assert distance(out, truth_of(rows, 2, 5, 6, weight, stride, upsample, bias)) < 1e-5


@needs_triton
def test_a_weight_that_lies_otherwise_and_float32_go_to_the_library():
    rows = random(36, 32)
    weight = weight_of(16, 32).contiguous()
    picks = []
    out = conv3x3(rows, 1, 6, 6, weight, pick=lambda problem: picks.append(problem) or WAYS[0])
    assert distance(out, truth_of(rows, 1, 6, 6, weight)) < 2e-3
    out = conv3x3(rows.float(), 1, 6, 6, weight_of(16, 32).float(), pick=lambda p: picks.append(p) or WAYS[0])
    assert distance(out, truth_of(rows, 1, 6, 6, weight_of(16, 32))) < 2e-3
    assert not picks


UNET = [(64, 320, 320), (32, 640, 640), (16, 2560, 1280), (8, 1280, 1280), (32, 960, 640)]


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("size,channels,outputs", UNET)
@pytest.mark.parametrize("stride,upsample", [(1, False), (2, False), (1, True)])
def test_candidates_and_the_default_fit_their_problem(batch, size, channels, outputs, stride, upsample):
    problem = ConvProblem(batch, size, size, channels, outputs, stride, upsample)
    tuning = ConvTuning(problem)
    assert "library" in tuning.candidates() and len(tuning.candidates()) > 4
    assert len(set(tuning.candidates())) == len(tuning.candidates())
    assert all(tuning.allowed(candidate) for candidate in tuning.candidates())
    assert parse_way(subject.default_way(problem), problem) is not None


def test_a_way_is_checked_against_its_problem():
    problem = ConvProblem(1, 8, 8, 64, 64)
    assert parse_way("whole:64x16x64.w4.s2.g8.split1", problem) is not None
    for wrong in (
        "",
        ":64x16x64.w4.s2.g8.split1",
        "swap:library",
        "apart:64x64x64.w4.s2.g8.split1",
        "wide:64x32x64.w4.s2.g8.split1",
        "whole:32x16x64.w4.s2.g8.split1",
        "whole:64x64x64.w4.s2.g8.split1",
        "narrow:64x64x64.w4.s2.g8.split1",
        "64x64x64.w4.s2.g8.split1.tma",
        "swap:128x64x64.w4.s2.g8.split1.tma",
        "64x64x64.w4.s2.g8.stream132",
    ):
        assert parse_way(wrong, problem) is None
    assert parse_way("whole:64x16x64.w4.s2.g8.split1", ConvProblem(1, 8, 8, 64, 64, stride=2)) is None


def test_the_hopper_kernel_takes_whole_lines_that_fit():
    problem = ConvProblem(1, 32, 32, 640, 640)
    good = "halo:256x64x64.w4.s3.g8.stream132"
    assert parse_way(good, problem) is not None
    assert parse_way(good, ConvProblem(1, 32, 32, 640, 640, upsample=True)) is not None
    for wrong in (
        "halo:256x64x64.w4.s3.g8.split2",
        "halo:256x64x64.w8.s3.g8.stream132",
        "halo:256x64x64.w4.s8.g8.stream132",
        "halo:256x64x32.w4.s3.g8.stream132",
    ):
        assert parse_way(wrong, problem) is None
    for other in (
        ConvProblem(1, 32, 32, 640, 640, stride=2),
        ConvProblem(1, 32, 32, 640, 640, bias=True),
        ConvProblem(1, 32, 32, 100, 640),
        ConvProblem(1, 36, 32, 640, 640),
        ConvProblem(1, 40, 40, 640, 640),
    ):
        assert parse_way(good, other) is None


def test_problems_that_differ_are_remembered_apart():
    problems = [
        ConvProblem(1, 8, 8, 64, 64),
        ConvProblem(2, 8, 8, 64, 64),
        ConvProblem(1, 8, 8, 64, 64, stride=2),
        ConvProblem(1, 8, 8, 64, 64, upsample=True),
        ConvProblem(1, 8, 8, 64, 64, bias=True),
    ]
    assert len({problem.key for problem in problems}) == 5


@needs_triton
def test_a_candidate_is_looked_at_before_it_is_trusted(monkeypatch):
    tuning = ConvTuning(ConvProblem(1, 4, 4, 32, 32, bias=True))
    assert tuning.agrees(DEVICE, "16x32x32.w4.s2.g8.split2")
    assert tuning.agrees(DEVICE, "library")
    sound = subject._parts
    monkeypatch.setattr(subject, "_parts", lambda *given: (sound(*given)[0], sound(*given)[1] + 1))
    assert not tuning.agrees(DEVICE, "16x32x32.w4.s2.g8.split2")  # nobody is the last to arrive


def test_what_was_measured_is_picked_and_what_was_asked_is_measured():
    timed = []

    def measure(problem, device):
        timed.append(problem.key)
        return [Timing("64x64x64.w4.s5.g8.split2", 1.0)]

    pick = MeasuredConvs(Tuner(None, {}, measure))
    problem = ConvProblem(1, 8, 8, 64, 64)
    assert pick(problem) == subject.default_way(problem)
    pick.tune(DEVICE)
    assert timed == [problem.key]
    assert pick(problem) == "64x64x64.w4.s5.g8.split2"


def test_what_is_shipped_fits_its_problem():
    problems = [
        ConvProblem(batch, size, size, channels, outputs, stride, upsample)
        for batch in (1, 2, 4)
        for size in (8, 16, 32, 64)
        for channels in (320, 640, 960, 1280, 1920, 2560)
        for outputs in (320, 640, 1280)
        for stride, upsample in ((1, False), (2, False), (1, True))
    ]
    known = {problem.key: problem for problem in problems}
    for key, way in subject.shipped_ways().items():
        assert parse_way(way, known[key]) is not None, key


@pytest.mark.gpu
@pytest.mark.parametrize("stride,upsample", [(1, False), (2, False), (1, True)])
@pytest.mark.parametrize(
    "way",
    [
        "wide-apart:64x128x64.w4.s4.g8.split4",
        "swap:64x64x64.w4.s6.g8.split3.tma",
        "whole:64x16x64.w4.s3.g8.split3",
        "halo:64x64x64.w4.s3.g8.stream132",
        "halo:64x64x64.w4.s3.g8.stream50.chained",
    ],
)
def test_on_the_card_each_form_is_right(way, stride, upsample):
    problem = ConvProblem(2, 8, 8, 960, 640, stride, upsample)
    if parse_way(way, problem) is None:
        pytest.skip("not a way of this problem")
    if torch.cuda.get_device_capability() != (9, 0) and ("halo" in way or "tma" in way):
        pytest.skip("needs a Hopper GPU")
    rows, weight = random(2 * 64, 960), weight_of(640, 960)
    workspace = Workspace(DEVICE)
    truth = truth_of(rows, 2, 8, 8, weight, stride, upsample)
    for _ in range(3):
        out = conv3x3(rows, 2, 8, 8, weight, stride, upsample, pick=lambda _: way, workspace=workspace)
        assert distance(out, truth) < 1e-3


@pytest.mark.gpu
def test_on_the_card_what_is_shipped_is_right():
    problem = ConvProblem(1, 16, 16, 1280, 1280)
    rows, weight = random(256, 1280), weight_of(1280, 1280)
    assert distance(conv3x3(rows, 1, 16, 16, weight), truth_of(rows, 1, 16, 16, weight)) < 1e-3
    assert parse_way(subject.default_way(problem), problem) is not None
