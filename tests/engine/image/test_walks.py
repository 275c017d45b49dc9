"""Random walks over every live parameter, and long runs: no fault, no junk, no frame missing."""

from __future__ import annotations

import gc
import os

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdbridge.engine.image.guidance import Guidance
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.schedule import noise_schedule, plan_steps
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.image.seed import noise_of
from sdbridge.engine.image.stream import StreamBatch
from sdbridge.engine.image.text import TextEmbedding
from sdbridge.engine.image.travellers import Entering, FrameTag
from sdbridge.engine.interface import ResetKind
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.parameters.table import TABLE
from tests.engine.image.rig import Rig, frame

FRAMES = 50
#: Files and folders are the conditioning's own tests; sizes are drawn small below.
LEFT_OUT = ("controlnet.", "lora.", "style", "mask.", "model", "width", "height", "pre.", "post.", "control_")
LIVE = [
    row
    for row in TABLE
    if row.effect in ("live", "reencode") and row.kind != "trigger" and not row.name.startswith(LEFT_OUT)
]
SIZES = st.sampled_from([64, 72, 96])
TEXTS = st.sampled_from(["", "fire", "a (red:1.3) fox", "[x] \N{FOX FACE}", "word " * 90])
INDICES = st.sampled_from(["", "0", "16,32", "0,16,32,45", "40,20", "99", "nonsense"])


def values_of(row: Parameter) -> st.SearchStrategy[Value]:
    if row.name == "step_indices":
        return INDICES
    if row.kind == "bool":
        return st.booleans()
    if row.kind == "enum":
        return st.sampled_from(row.choices)
    if row.kind == "str":
        return TEXTS
    assert row.minimum is not None and row.maximum is not None
    if row.name in ("steps", "frame_batch"):  # rows cost time: up to 3 x 2 here, all of them on the GPU
        return st.integers(1, 3 if row.name == "steps" else 2)
    if row.kind == "int":
        return st.integers(int(row.minimum), int(row.maximum))
    return st.floats(row.minimum, row.maximum)


CHANGES = st.one_of(
    st.sampled_from(LIVE).flatmap(lambda row: st.tuples(st.just(row.name), values_of(row))),
    st.tuples(st.sampled_from(["width", "height"]), SIZES),
)
RESETS: st.SearchStrategy[ResetKind] = st.sampled_from(["soft", "recache", "hard"])
WALK = st.lists(
    st.tuples(
        st.integers(0, FRAMES - 1),
        st.one_of(CHANGES, st.tuples(st.just("reset"), RESETS), st.tuples(st.just("no input"), st.none())),
    ),
    max_size=30,
)
FIRST: dict[str, Value] = {"prompt.1.text": "fox", "steps": 2, "scheduler": "lcm"}


@pytest.fixture(scope="module")
def walker(checkpoint) -> Rig:
    return Rig(checkpoint(), FIRST, dtype="float32")


def run_walk(rig: Rig, walk: list) -> None:
    start = {row.name: row.default for row in LIVE} | {"width": 64, "height": 64} | FIRST

    def picture() -> list[bytes]:
        rig.engine.apply(start, 0)
        rig.engine.reset("hard")
        return [rig.tick(frame(k)).frames[0]["generated"].pixels.tobytes() for k in range(3)]

    first = picture()
    rig.engine.reset("hard")
    rig.calls.clear()
    by_frame: dict[int, list] = {}
    for number, change in walk:
        by_frame.setdefault(number, []).append(change)
    newest = -1
    painted_freely = False
    for number in range(FRAMES):
        given_chunk = frame(number % 7, seed=number % 7)
        chunk = type(given_chunk).of(type(given_chunk.main)(given_chunk.main.pixels, number, number))
        for name, value in by_frame.get(number, ()):
            if name == "reset":
                rig.engine.reset(value)
            elif name == "no input":
                chunk = None
            else:
                rig.engine.apply({name: TABLE.find(name).coerce(value)}, number)
        before = len(rig.calls)
        made = rig.tick(chunk)
        rig.clock.ns += 33_000_000
        assert len(rig.calls) - before <= 1
        mode, batch = rig.engine._values["mode"], rig.engine._values["frame_batch"]
        painted_freely |= mode == "txt2img"
        if mode != "txt2img" and batch == 1 and chunk is not None:
            assert made is not None, f"frame {number} gave nothing"
        if made is None:
            continue
        for entry in made.frames:
            out = entry["generated"]
            assert (out.height, out.width) == (rig.engine._values["height"], rig.engine._values["width"]) or (
                mode == "bypass"
            )
            # txt2img counts by itself, so only before it do ids have to be those of the input
            if not painted_freely:
                assert newest <= out.frame_id <= number
                newest = out.frame_id
    for latent in rig.latents:
        assert latent.isfinite().all()
    rig.latents.clear()
    rig.calls.clear()
    assert picture() == first, "back at the first setting, reset and seed, the result is the first one"


@pytest.mark.timeout(600)  # 1,000 frames: seconds on a quiet machine
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(WALK)
def test_random_walks(walker: Rig, walk: list) -> None:
    run_walk(walker, walk)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(WALK)
def test_many_random_walks(walker: Rig, walk: list) -> None:
    run_walk(walker, walk)


class HalfUnet:
    """A fixed mix of channels, computed in half precision: 1,000 frames take a second."""

    device = torch.device("cpu")
    prediction = "epsilon"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)).to(dtype)

    def __call__(self, call: UnetCall) -> torch.Tensor:
        assert call.sample.dtype == self.dtype
        return torch.einsum("oc,bchw->bohw", self.weights, call.sample).tanh()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", [0, 16, 32])
def test_one_step_self_guidance_stays_finite_over_1000_frames_in_half_precision(dtype, index: int) -> None:
    """Defect 1: fp16 passed 65504 after 4, 9 and 50 frames at these indices."""
    model = HalfUnet(dtype)
    stream = StreamBatch(model)
    stream.prepare(plan_steps(noise_schedule({}), "lcm", 50, (index,)), 1, (4, 8, 8))
    stream.set_noise(noise_of(2, (1, 4, 8, 8)))
    text = TextEmbedding(torch.zeros(1, 77, 4, dtype=dtype))
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(10, 1, 4, 8, 8, generator=generator)
    spread = []
    with torch.inference_mode():
        for k in range(1000):
            source = sources[k % 10]
            left = stream.run(
                Entering(source, source, (FrameTag(k, 0),)),
                Guidance("self", 1.4, 1.0),
                Conditioning(text, text),
                model,
            )
            assert left is not None
            spread.append(float(left.latent.std()))
    assert np.isfinite(spread).all()
    assert max(spread[-10:]) == pytest.approx(max(spread[:10]), rel=1e-6), "nothing builds up"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_engine_in_fp16_stays_finite_over_1000_frames_of_self_guidance(checkpoint) -> None:
    values = {"prompt.1.text": "x", "scheduler": "lcm", "step_indices": "16", "guidance_scale": 1.4}
    rig = Rig(checkpoint(), {**values, "guidance_mode": "self"}, dtype="float16")
    chunks = [frame(k) for k in range(10)]
    spread = [float(rig.latent_of(chunks[k % 10]).std()) for k in range(1000)]
    assert np.isfinite(spread).all()
    assert max(spread[-10:]) == pytest.approx(max(spread[:10]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_flat_over_3000_frames_of_changes(checkpoint) -> None:
    rig = Rig(checkpoint(), {**FIRST, "feature_bank.enabled": True}, dtype="float32")
    engine = rig.engine
    acceleration = engine.painter.acceleration
    del acceleration.run_denoise, engine.painter._decode  # the rig keeps what it sees
    chunks = [frame(k) for k in range(5)]

    def run(count: int) -> None:
        for k in range(count):
            engine.apply({"strength": (k % 10) / 10, "prompt.1.text": f"text {k % 100}"}, k)
            if k % 50 == 0:
                engine.apply({"steps": 1 + k // 50 % 3}, k)
            engine.tick(chunks[k % 5])

    run(1000)
    gc.collect()
    tensors = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    before = psutil.Process(os.getpid()).memory_info().rss
    run(2000)
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= tensors + 20
    assert psutil.Process(os.getpid()).memory_info().rss - before < 40 * 2**20
