"""With graphs every parameter means what it means operation by operation: a walk through all of them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sdbridge.engine.accelerate import replay
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.image import painter
from sdbridge.frame import Chunk
from sdbridge.parameters.table import TABLE
from tests.engine.accelerate.test_cuda_graph import RecordedGraph, on_cpu  # noqa: F401 (a fixture)
from tests.engine.image import rig
from tests.engine.image.all_parameters import LEFT_OUT, Both, Files, Walk, walk, walked
from tests.engine.image.rig import Rig

START = {"prompt.1.text": "fox", "steps": 2, "prompt_transition": 0.0}


class Event:
    """Of a device that has done all it was given."""

    def __init__(self, *how: Any, **more: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


@pytest.fixture
def both(checkpoint, monkeypatch, on_cpu) -> Iterator[Callable[..., Both]]:  # noqa: F811
    """An eager engine beside one of real ``CudaGraph`` records; ``beside``: made as on a GPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(replay, "WARM_CALLS", 2)

    def make(family: str, distilled: str = "", beside: bool = False, **values: Any) -> Both:
        folder, given = checkpoint(family, distilled), {**START, **values}

        def build(name, model, attend=None):
            made = Compiled(model, attend=attend)
            if beside:
                made.graphs.beside = BesideTheStream(torch.device("cpu"))
            return made

        plain = Rig(folder, given, dtype="float64")
        with monkeypatch.context() as patch:
            patch.setattr(painter, "build_acceleration", build)
            graphs = Rig(folder, given, dtype="float64")
        return Both(plain, graphs, alone=RecordedGraph.alone)

    yield make
    rig.close_all()
    gc.collect()  # graphs that go now are seen off by the fixture, not by the next test's


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    made: dict[str, Files] = {}

    def get(family: str) -> Files:
        if family not in made:
            made[family] = Files.make(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


def test_the_walk_goes_through_the_whole_table(files) -> None:
    """A new parameter is walked, or a reason stands in ``LEFT_OUT``."""
    names = {row.name for row in walked()}
    assert not names & LEFT_OUT.keys()
    missing = {
        row.name
        for row in TABLE.templates
        if row.effect in ("live", "reencode") and row.kind != "trigger" and row.name not in LEFT_OUT
    } - names
    assert not missing
    drawn = Walk(files("sd15"), 0)
    drawn.everything()
    assert drawn.moved == names


SHORT = [("sd15", "", False, 1, 26), ("sdxl", "turbo", False, 2, 20), ("sd15", "lcm", True, 3, 16)]
LONG = [
    (family, distilled, beside, seed, 400)
    for seed, (family, distilled, beside) in enumerate(
        [
            ("sd15", "", False), ("sd15", "turbo", True), ("sd15", "lcm", False), ("sdxl", "turbo", False),
            ("sdxl", "", True), ("sd15-inpaint", "", False), ("sd15-inpaint", "lcm", True),
            ("sd21", "", False),
        ],
        start=11,
    )
]  # fmt: skip


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "distilled", "beside", "seed", "frames"),
    [*SHORT, *(pytest.param(*each, marks=pytest.mark.slow) for each in LONG)],
)
def test_graphs_paint_what_eager_paints(
    both, files, family: str, distilled: str, beside: bool, seed: int, frames: int
) -> None:
    pair = both(family, distilled, beside)
    walk(pair, Walk(files(family), seed), frames, scene=6 if frames < 100 else 40)
    acceleration = pair.graphs.engine.painter.acceleration
    assert isinstance(acceleration, Compiled)
    assert not [line for line in acceleration.graphs.said if "cannot be captured" in line]
    assert pair.compared > frames // 2 and pair.replayed > 0.8 * pair.compared


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "distilled", "seed"),
    [
        ("sd15", "turbo", 21),
        ("sdxl", "turbo", 22),
        ("sd15", "lcm", 23),
        ("sd15-inpaint", "", 24),
        ("sd21", "", 25),
    ],
)
def test_graphs_on_a_gpu_paint_what_eager_paints(
    checkpoint, files, family: str, distilled: str, seed: int
) -> None:
    """With real graphs, made beside: whether what they read and write stays theirs, only a GPU can tell."""
    frames, folder = int(os.environ.get("SDBRIDGE_WALK_FRAMES", 60)), checkpoint(family, distilled)
    plain, graphs = (
        Rig(folder, START, dtype="float64", device="cuda", acceleration=acceleration)
        for acceleration in ("eager", "compile")
    )
    try:
        pair = Both(plain, graphs)
        walk(pair, Walk(files(family), seed), frames, scene=12)
        said = graphs.engine.painter.acceleration.graphs.said  # type: ignore[attr-defined]
        assert not [line for line in said if "cannot be captured" in line]
        assert pair.compared > frames // 2 and pair.replayed > 0.5 * pair.compared
    finally:
        rig.close_all()


def test_a_bank_that_goes_is_not_in_the_graph_made_beside_it(both, files) -> None:
    """With a T2I-Adapter the modules are captured, which still had the bank's attention then."""
    pair, drawn = both("sd15", beside=True), Walk(files("sd15"), 5)
    adapter = next(name for name in files("sd15").choices["controlnet.#.model"] if "full_adapter" in name)
    steps = [
        {"controlnet.1.model": adapter, "feature_bank.enabled": True, "feature_bank.strength": 1.0},
        {"feature_bank.enabled": False},
        {"feature_bank.enabled": True},
        {"feature_bank.enabled": False, "width": 96},
    ]
    acceleration = pair.graphs.engine.painter.acceleration
    for values in steps:
        pair.set({"feature_bank.threshold": 0.0, **values})
        pair.arrive()
        for number in range(4):
            pair.tick(Chunk.of(drawn._frame(number, 64)))
            pair.arrive()
    assert not [line for line in acceleration.graphs.said if "cannot be captured" in line]


def test_a_style_that_goes_while_its_graph_is_made_is_in_that_graph(both, files) -> None:
    pair, drawn = both("sd15", beside=True), Walk(files("sd15"), 5)
    choices = files("sd15").choices
    pair.set({"style_model": choices["style_model"][0], "style.1.file": choices["style.#.file"][0]})
    pair.arrive()
    pair.tick(Chunk.of(drawn._frame(0, 64)))
    pair.set({"style.1.source": "file"})
    for _ in range(3):
        pair.arrive()
    with pair.alone:  # the capture waits for this
        pair.tick(Chunk.of(drawn._frame(1, 64)))
        time.sleep(0.2)  # its trial is over
        pair.set({"style.1.source": "off"})
        pair.tick(Chunk.of(drawn._frame(2, 64)))
    pair.arrive()
    pair.set({"style.1.source": "file"})
    pair.arrive()
    for number in range(3, 6):
        pair.tick(Chunk.of(drawn._frame(number, 64)))
