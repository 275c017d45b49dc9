"""No tensor is made in a warm tick: every result lies in a buffer that was there before."""

from __future__ import annotations

import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sdbridge.bench.networks import random_controlnet, random_lora
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.image import painter as painter_module
from sdbridge.engine.image.outgoing import Outgoing
from sdbridge.engine.image.pictures import HostPictures
from sdbridge.engine.image.scratch import Scratch
from sdbridge.frame import Chunk
from tests.engine.image.rig import Rig, frame, relative


class Recorder(TorchDispatchMode):
    """Counts operations whose output lies where none of their inputs does, by place in our code."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()
        self.asleep = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _storages((args, kwargs))
        made = func(*args, **(kwargs or {}))
        name = str(func)
        # torch.tensor() makes its storage before the dispatcher sees anything, and gives it to lift_fresh.
        if not self.asleep and ("lift_fresh" in name or not _storages(made) <= given):
            self.made[f"{name} at {_place()}"] += 1
        return made


def _storages(values: Any) -> set[int]:
    tensors = [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
    return {each.untyped_storage().data_ptr() for each in tensors if each.numel()}


def _place() -> str:
    for entry in reversed(traceback.extract_stack()):
        if "/sdbridge/" in entry.filename and "/tests/" not in entry.filename:
            return f"{entry.filename.rpartition('/sdbridge/')[2]}: {entry.line}"
    return "nowhere in sdbridge"


class ReplayedGraph:
    """A CUDA graph's contract without CUDA: fixed inputs and outputs, and memory of its own in between."""

    recorder: Recorder | None = None

    def __init__(self, run: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> None:
        self._run = run
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        with torch.inference_mode():
            self._output = tree_map(torch.clone, run(*self._inputs))

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self._inputs

    def takes(self, *tensors: torch.Tensor) -> bool:
        return all(a.shape == b.shape for a, b in zip(self._inputs, tensors, strict=True))

    def run(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        with _asleep(type(self).recorder), torch.inference_mode():
            made = self._run(*self._inputs)
            for mine, new in zip(tree_leaves(self._output), tree_leaves(made), strict=True):
                mine.copy_(new)
        return self._output


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run on the stand-ins."""
    run_on(ReplayedGraph, monkeypatch)


def run_on(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this test capture their calls so."""
    monkeypatch.setattr(
        painter_module,
        "build_acceleration",
        lambda name, model, attend=None: Compiled(model, capture=capture, attend=attend),
    )


@contextmanager
def _asleep(recorder: Recorder | None) -> Iterator[None]:
    if recorder is not None:
        recorder.asleep = True
    yield
    if recorder is not None:
        recorder.asleep = False


def still(rig: Rig, number: int) -> None:
    """No parameter moves."""


def moving(rig: Rig, number: int) -> None:
    """What moves in every frame of the benchmark: a blend of two prompts, and the seed."""
    rig.set(prompt__2__weight=0.1 + 0.01 * number, seed__1__value=number)


def fading(rig: Rig, number: int) -> None:
    """Time passes, and a text of two chunks comes."""
    rig.clock.sleep(0.03)
    rig.set(prompt__1__text="word " * (90 if number >= 5 else 1))


MORE = {"prompt.3.text": "ice", "prompt.3.weight": 0.5, "seed.2.weight": 0.5, "seed_blend": "slerp"}
LONG = {"prompt_transition": 100.0, "prompt_blend": "linear", "negative_prompt": "bad " * 200}
SELF = {"guidance_mode": "self", "guidance_scale": 1.4}
FOUR = {"steps": 4, "scheduler": "lcm", "step_indices": "32,36,40,44"}
ONE = {"steps": 1, "strength": 0.36}

CASES: dict[str, tuple[str, Mapping[str, Any], str, Callable[[Rig, int], None]]] = {
    "SD-Turbo": ("sd21", ONE, "turbo", still),
    "SD-Turbo, prompts and seed move": ("sd21", ONE, "turbo", moving),
    "SDXL-Turbo, prompts and seed move": ("sdxl", ONE, "turbo", moving),
    "four steps": ("sd15", FOUR, "", moving),
    "four steps, self": ("sd15", {**FOUR, **SELF}, "", moving),
    "four steps, initialize": ("sd15", {**FOUR, **SELF, "guidance_mode": "initialize"}, "", moving),
    "SDXL, four steps, full": ("sdxl", {**FOUR, **SELF, "guidance_mode": "full"}, "", moving),
    "two frames at a time": ("sd21", {**ONE, "frame_batch": 2}, "turbo", moving),
    "two frames at a time, two steps": ("sd15", {"steps": 2, "frame_batch": 2, **SELF}, "", moving),
    "the last picture fed back": ("sd21", {**ONE, "latent_feedback": 0.3}, "turbo", moving),
    "three prompts and two seeds": ("sd15", {**ONE, **MORE}, "lcm", moving),
    "seeds walk, a text fades in": ("sd15", {**ONE, "seed_mode": "walk", **LONG}, "lcm", fading),
    "one, self": ("sd21", {**ONE, **SELF}, "turbo", moving),
    "from the prompt alone": ("sd15", {"mode": "txt2img", "steps": 2}, "lcm", moving),
}


def generated(chunk: Chunk | None) -> np.ndarray:
    assert chunk is not None
    return chunk.frames[0]["generated"].pixels


_NONE: Mapping[str, Any] = {}
WIDE = ("SD-Turbo", "four steps, self")


def rig_of(
    checkpoint: Any, case: str, dtype: str, more: Mapping[str, Any] = _NONE, size: int = 64, **given: Any
) -> tuple[Rig, Callable[[int], Chunk | None]]:
    """A rig of this case, and a tick of it that moves what the case moves."""
    family, values, distilled, move = CASES[case]
    texts: dict[str, Any] = {"prompt.1.text": "fire", "prompt.2.text": "ocean", "prompt_transition": 0.0}
    rig = Rig(checkpoint(family, distilled), {**texts, **values, **more}, dtype=dtype, size=size, **given)
    rig.stop_watching()
    frames = int(values.get("frame_batch", 1))

    def tick(number: int) -> Chunk | None:
        move(rig, number)
        entries = [frame(number * frames + each, size).frames[0] for each in range(frames)]
        return rig.tick(None if values.get("mode") == "txt2img" else Chunk(tuple(entries)))

    return rig, tick


def allocated(tick: Callable[[int], Any]) -> Counter[str]:
    """What four ticks allocate after 25: noises are kept for 16, networks beside are captured after 20."""
    recorder = ReplayedGraph.recorder = Recorder()
    for number in range(25):
        tick(number)
    with recorder:
        for number in range(25, 29):
            tick(number)
    return recorder.made


@pytest.mark.parametrize("case", CASES)
def test_a_warm_tick_makes_no_tensor(checkpoint, graphs, case: str) -> None:
    # In half precision everything is converted on the way; without, some results are others' buffers.
    _, tick = rig_of(checkpoint, case, "float32" if case in WIDE else "bfloat16")
    made = allocated(tick)
    assert not made, "\n".join(f"{count} x {what}" for what, count in made.items())


def test_a_controlnet_makes_what_travels_with_its_frame(checkpoint, graphs, tmp_path) -> None:
    """The picture as numbers, its edges and what the network's first layers make of them: nothing else."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(), folder)
    values = {
        "controlnet.1.model": str(random_controlnet(folder)),
        "controlnet.1.preprocessor": "canny",
        "lora.1.file": str(random_lora(folder)),
    }
    rig, tick = rig_of(lambda *_: folder, "four steps, self", "bfloat16", values)
    until = time.monotonic() + 60.0
    while any(getattr(each, "loading", False) for each in rig.engine._extensions):
        assert time.monotonic() < until
        rig.tick(frame(0))
        time.sleep(0.01)

    def with_fader(number: int) -> None:
        rig.set(lora__1__weight=0.1 + 0.01 * number)
        tick(number)

    found = {what.partition(":")[0]: count for what, count in allocated(with_fader).items()}
    assert found == {
        "aten.to.dtype at engine/image/pictures.py": 4,
        "aten.to.dtype at engine/preprocess/canny.py": 4,
        "aten.clone.default at engine/image/control_networks.py": 4,
    }


def test_what_would_be_allocated_is_seen(checkpoint, graphs, monkeypatch) -> None:
    """One operation more, or one that writes a new tensor, is named with its place."""
    _, tick = rig_of(checkpoint, "SD-Turbo", "float32")
    room = Scratch.room
    monkeypatch.setattr(Scratch, "room", lambda self, *given: room(Scratch(), *given))
    assert any("aten.empty" in what and "engine/image/scratch.py" in what for what in allocated(tick))
    recorder = Recorder()
    with recorder:
        torch.tensor([1.0])
    assert recorder.made["aten.lift_fresh.default at nowhere in sdbridge"] == 1


@pytest.mark.parametrize(
    "case",
    [
        "SD-Turbo, prompts and seed move",
        "SDXL, four steps, full",
        "two frames at a time, two steps",
        "one, self",
    ],
)
def test_buffers_that_are_written_again_change_no_picture(checkpoint, request, case: str) -> None:
    """What is kept from frame to frame (time projections of SDXL's pooled text) never goes by a buffer."""
    found = []
    for fixture in ("checkpoint", "graphs"):  # eager first
        request.getfixturevalue(fixture)
        rig, tick = rig_of(checkpoint, case, "float64")
        rig._watch()
        for number in range(6):
            tick(number)
        found.append(rig.latents)
    for eager, replayed in zip(*found, strict=True):
        assert relative(replayed, eager) <= 1e-9


def test_pictures_that_somebody_keeps_are_never_written_again(checkpoint, graphs) -> None:
    _, tick = rig_of(checkpoint, "SD-Turbo", "float32")
    kept = [generated(tick(number)) for number in range(6)]
    at_once = [pixels.copy() for pixels in kept]
    places = {pixels.ctypes.data for pixels in kept}
    for number in range(6, 9):
        tick(number)
    assert all(np.array_equal(*pair) for pair in zip(kept, at_once, strict=True))
    assert len({pixels.tobytes() for pixels in at_once}) == len(places) == 6
    kept.clear()
    later = [generated(tick(number)) for number in range(9, 14)]
    assert places & {pixels.ctypes.data for pixels in later}, "what was let go is used again"


def test_a_host_buffer_comes_back_when_no_part_of_its_picture_is_held() -> None:
    host, image = HostPictures(), torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    _, first, _ = host.take(image)
    place, part = first.ctypes.data, first[1][:, 0]
    del first
    _, second, _ = host.take(image)
    assert second.ctypes.data != place, "a view of it is held"
    del part
    _, third, _ = host.take(image)
    assert third.ctypes.data == place
    del second, third
    other = host.take(torch.zeros(1, 8, 8, 4, dtype=torch.uint8))
    assert other[1].shape == (1, 8, 8, 4) and host.take(image)[1].shape == (2, 4, 4, 4)


def test_a_buffer_stays_whether_or_not_its_device_is_named_with_a_number() -> None:
    """A model on "cuda" has tensors on "cuda:0": the pictures' buffer was made anew for each frame."""
    scratch, numbered = Scratch(), torch.device("cpu:0")
    first = scratch.room("pixels", (2, 2), torch.uint8, numbered)
    assert first.device != numbered, "as on a GPU"
    assert scratch.room("pixels", (2, 2), torch.uint8, numbered) is first
    assert scratch.room("pixels", (2, 3), torch.uint8, numbered) is not first


def test_a_latent_is_written_over_only_when_its_decoder_has_read_it(monkeypatch) -> None:
    """Two buffers take turns, one for each run, also for a run that brings no picture."""
    waited: list[str] = []

    class Stream:
        def wait_event(self, event: str) -> None:
            waited.append(event)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    outgoing = Outgoing(torch.device("cpu"))
    outgoing._read = ["a", "b"]  # type: ignore[list-item]
    recorded = []
    for run in range(6):
        outgoing.await_room()
        if run != 2:
            recorded.append(outgoing._read[-1])
    assert waited == ["a", "b"] * 3 and recorded == ["a", "b", "b", "a", "b"]


def test_a_latent_is_decoded_aside_and_the_frames_have_their_stream_back(monkeypatch) -> None:
    """In this order: the latent is there, it is decoded on the other stream, and read; also if that fails."""
    said: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Any) -> None:
            said.append(f"{self.name} waits for {event.name}")

        def record(self, stream: Any) -> None:
            said.append(f"{self.name} after {stream.name}")

    class Latent:
        def record_stream(self, stream: Any) -> None:
            said.append(f"kept for {stream.name}")

    class Decoder:
        fails = False

        def run_decode_rgba(self, latent: Any) -> torch.Tensor:
            said.append("decodes")
            if self.fails:
                raise RuntimeError("no kernel")
            return torch.zeros(1, 4, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Named("frames"))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: said.append(f"on {stream.name}"))
    outgoing, decoder = Outgoing(torch.device("cpu")), Decoder()
    outgoing._aside, outgoing._made = Named("aside"), Named("made")  # type: ignore[assignment]
    outgoing._read = [Named("old"), Named("read")]  # type: ignore[list-item]
    outgoing._straight(Latent(), decoder)  # type: ignore[arg-type]
    asked = ["made after frames", "aside waits for made", "kept for aside", "on aside", "decodes"]
    assert said == [*asked, "read after aside", "on frames"]
    said.clear()
    decoder.fails = True
    with pytest.raises(RuntimeError):
        outgoing._straight(Latent(), decoder)  # type: ignore[arg-type]
    assert said == [*asked, "on frames"]


ON_A_GPU = (
    "SD-Turbo, prompts and seed move",
    "four steps",
    "four steps, self",
    "two frames at a time",
    "from the prompt alone",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ON_A_GPU)
def test_fifty_warm_ticks_allocate_nothing_on_the_device(checkpoint, case: str) -> None:
    rig, tick = rig_of(checkpoint, case, "float16", device="cuda", acceleration="compile")
    tick(0)
    assert rig.engine.painter.acceleration.settled(300)
    for number in range(1, 31):
        tick(number)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for number in range(31, 81):
        tick(number)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
@needs_gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["SD-Turbo, prompts and seed move", "four steps, self"])
def test_two_frames_in_flight_are_painted_as_one_after_the_other(checkpoint, case: str) -> None:
    """No buffer is written before whoever reads it on the other stream has done so."""
    rig, tick = rig_of(checkpoint, case, "float16", device="cuda", acceleration="compile", size=512)
    tick(0)
    engine = rig.engine
    assert engine.painter.acceleration.settled(300)
    chunks = [frame(number, 512) for number in range(60)]
    found: list[list[np.ndarray]] = []
    for in_flight in (1, 2):
        engine.reset("hard")
        made: list[Chunk | None] = []
        for number, chunk in enumerate(chunks):
            moving(rig, number % 80)
            engine.submit(chunk)
            while engine.pending >= in_flight:
                made.append(engine.collect(True))
        while engine.pending:
            made.append(engine.collect(True))
        found.append([generated(chunk) for chunk in made if chunk is not None])
    for alone, overlapping in zip(*found, strict=True):
        assert np.abs(alone.astype(int) - overlapping).max() <= 1
