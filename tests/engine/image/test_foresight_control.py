"""ControlNets in a stream of graphs: taken up, changed in shape and let go of without a frame that waits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.image import painter
from sdbridge.engine.image.controlnet import ControlNets
from tests.engine.image.rig import Rig, frame, relative
from tests.engine.image.test_accelerate import StandInGraph
from tests.engine.image.test_controlnet import save_adapter, save_real_hint
from tests.engine.image.test_foresight import VALUES, HeldCaptures

CANNY = {"controlnet__1__preprocessor": "canny", "controlnet__1__scale": 0.8}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "one": str(save_real_hint(folder / "one", "sd15", 1)),
        "two": str(save_real_hint(folder / "two", "sd15", 2)),
        "adapter": str(save_adapter(folder / "adapter")),
    }


class Streams:
    """The same stream twice: run plainly, and from graphs whose captures are held."""

    def __init__(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = HeldCaptures()

        def build(name, model, *further, **more):
            made = Compiled(model, capture=self.held)
            made.graphs.beside = BesideTheStream(torch.device("cpu"))
            return made

        self.plain = Rig(checkpoint, VALUES, dtype="float64")
        monkeypatch.setattr(painter, "build_acceleration", build)
        self.rig = Rig(checkpoint, VALUES, dtype="float64")
        self.acceleration: Compiled = self.rig.engine.painter.acceleration
        self.nets = next(e for e in self.rig.engine._extensions if isinstance(e, ControlNets))
        self.number = 0
        for _ in range(2):
            self.step()

    def step(self) -> float:
        """A frame through both; how far apart they are."""
        self.number += 1
        self.rig.calls.clear()
        found = self.rig.latent_of(frame(self.number))
        return relative(found, self.plain.latent_of(frame(self.number)))

    def set(self, rig: Rig, **values) -> None:
        """Parameters in one of them, and what they load."""
        rig.set(**values)
        nets = next(e for e in rig.engine._extensions if isinstance(e, ControlNets))
        for slot in nets._slots.values():
            if slot.models._running is not None:
                slot.models._running.result(60)

    def steer_both(self, network: str) -> None:
        """The ControlNet, in both of them, with all its graphs."""
        for rig in (self.rig, self.plain):
            self.set(rig, controlnet__1__model=network, **CANNY)
            rig.tick(frame(7))
        self.let()

    def let(self) -> None:
        self.held.let.set()
        # each round may begin what the one before it made possible
        while not self.acceleration.settled(60) or self.rig.engine.shows_up_to is not None:
            self.rig.engine.frame_edge()
        self.held.let.clear()

    @property
    def steers(self) -> bool:
        call = self.rig.calls[-1]
        return call.down_residuals is not None or call.intrablock_residuals is not None

    @property
    def from_graphs(self) -> bool:
        return isinstance(
            self.acceleration.graphs.by_key[self.acceleration.unet.key_of(self.rig.calls[-1])], StandInGraph
        )

    def end(self) -> None:
        self.held.let.set()
        self.plain.engine.unload()
        self.rig.engine.unload()


@pytest.fixture
def streams(checkpoint, monkeypatch):
    made = Streams(checkpoint(), monkeypatch)
    yield made
    made.end()


@pytest.mark.parametrize("kind", ["one", "adapter"])
def test_a_network_steers_only_once_all_that_it_runs_is_captured(streams: Streams, networks, kind) -> None:
    streams.set(streams.rig, controlnet__1__model=networks[kind], **CANNY)
    for _ in range(4):
        assert streams.step() <= 1e-9 and not streams.steers
    assert streams.nets.loading and streams.rig.engine.wants_frame
    captured = streams.held.in_stream
    streams.let()
    streams.set(streams.plain, controlnet__1__model=networks[kind], **CANNY)
    plain_too = []
    for _ in range(5):
        plain_too.append(streams.step())
        assert streams.steers and streams.from_graphs
    assert max(plain_too) <= 1e-9
    assert streams.held.in_stream == captured
    slot = streams.nets._slots[1]
    assert slot.make_map._run._graph is not None
    if kind == "one":
        assert slot.network.run.captured and slot.network.embed._graph is not None


def test_while_one_steers_another_shape_waits_for_its_graphs_too(streams: Streams, networks) -> None:
    streams.steer_both(networks["one"])
    for rig in (streams.rig, streams.plain):
        rig.engine.reset("hard")
    assert streams.step() <= 1e-9 and streams.steers
    captured = streams.held.in_stream
    for change in ({"steps": 3}, {"width": 128}, {"guidance_mode": "full", "guidance_scale": 2.0}):
        streams.rig.set(**change)
        for _ in range(3):
            assert streams.step() <= 1e-9 and streams.steers
        streams.let()
        streams.plain.set(**change)
        for _ in range(3):
            assert streams.step() <= 1e-9 and streams.steers and streams.from_graphs
        assert streams.nets._slots[1].network.run.captured
    assert streams.held.in_stream == captured


def test_one_that_goes_says_nothing_more_and_keeps_the_shape_until_the_call_without_it_is_there(
    streams: Streams, networks
) -> None:
    streams.steer_both(networks["one"])
    for rig in (streams.rig, streams.plain):
        rig.set(steps=3)  # without a ControlNet this was never run
        rig.tick(frame(8))
    streams.let()
    for rig in (streams.rig, streams.plain):
        rig.engine.reset("hard")
        rig.set(controlnet__1__enabled=False, strength=0.5)
    for _ in range(3):
        assert streams.step() <= 1e-9 and streams.steers, "as if it were gone"
    streams.let()
    for _ in range(3):
        assert streams.step() <= 1e-9 and not streams.steers and streams.from_graphs
    captures = sum(streams.held.of_shapes.values())
    for rig in (streams.rig, streams.plain):  # back at once: all of it is known
        rig.set(controlnet__1__enabled=True)
    for _ in range(3):
        assert streams.step() <= 1e-9 and streams.steers
    assert sum(streams.held.of_shapes.values()) == captures


def test_one_is_exchanged_for_another_when_that_is_ready(streams: Streams, networks) -> None:
    streams.steer_both(networks["one"])
    for rig in (streams.rig, streams.plain):
        rig.engine.reset("hard")
    streams.set(streams.rig, controlnet__1__model=networks["two"])
    for _ in range(3):
        assert streams.step() <= 1e-9, "the first one goes on"
    streams.let()
    streams.set(streams.plain, controlnet__1__model=networks["two"])
    for _ in range(4):
        last = streams.step()
    assert last <= 1e-9 and streams.from_graphs


def test_canny_s_detail_moves_live_and_captures_nothing(streams: Streams, networks) -> None:
    streams.steer_both(networks["one"])
    for rig in (streams.rig, streams.plain):
        rig.engine.reset("hard")
    captures = sum(streams.held.of_shapes.values())
    for detail in (0.5, 0.0, 0.9, 1.0, 0.3):
        for rig in (streams.rig, streams.plain):
            rig.set(controlnet__1__detail=detail)
        assert streams.step() <= 1e-9 and streams.steers and streams.from_graphs
        assert streams.rig.engine.shows_up_to is None
    assert sum(streams.held.of_shapes.values()) == captures


WISHES = [
    *({"steps": steps} for steps in (1, 2, 3)),
    *({"width": width} for width in (64, 72, 128)),
    {"height": 72},
    {"height": 64},
    {"guidance_mode": "full", "guidance_scale": 2.0},
    {"guidance_mode": "initialize"},
    {"guidance_mode": "self"},
    {"guidance_scale": 1.0},
    {"feature_bank__enabled": True, "feature_bank__interval": 1},
    {"feature_bank__enabled": False},
    {"feature_bank__frames": 2},
    {"feature_bank__frames": 1},
    {"prompt__1__text": "a long way " * 9},
    {"prompt__1__text": "ice"},
    {"strength": 0.9},
    {"controlnet__1__enabled": False},
    {"controlnet__1__enabled": True},
    {"controlnet__2__scale": 0.0},
    {"controlnet__2__scale": 0.7},
    {"controlnet__1__preprocessor": "grey"},
    {"controlnet__1__preprocessor": "canny"},
    {"controlnet__1__detail": 0.2},
    {"controlnet__2__preprocessor": "lineart"},
    {"control_output": 2},
    {"control_output": 0},
    {"controlnet__1__model": "one"},
    {"controlnet__1__model": "two"},
    {"controlnet__2__model": "adapter"},
    {"controlnet__2__model": "one"},
    {"controlnet__2__model": ""},
    {"mode": "txt2img"},
    {"mode": "img2img"},
    {"frame_batch": 2},
    {"frame_batch": 1},
]


@pytest.mark.parametrize(
    ("seed", "wishes"), [(1, 60), *(pytest.param(seed, 300, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_whatever_is_wished_for_in_whatever_order_is_in_the_picture_in_the_end(
    streams: Streams, networks, seed: int, wishes: int
) -> None:
    """Captures go on beside; no frame raises, and all frames at the end are those of a plain stream."""
    draw = random.Random(seed)
    streams.held.let.set()
    said: dict[str, object] = {}
    for number in range(wishes):
        wish = {
            name: networks.get(value, value) if isinstance(value, str) else value
            for name, value in draw.choice(WISHES).items()
        }
        said |= wish
        streams.rig.set(**wish)
        if number % 30 == 17:
            streams.rig.engine.reset(draw.choice(["soft", "recache", "hard"]))
        for _ in range(draw.choice([0, 1, 1, 3])):
            streams.rig.tick(frame(number, size=draw.choice([64, 72])))
        if number % 25 == 24:
            assert streams.acceleration.settled(60)
    for rig in (streams.rig, streams.plain):
        streams.set(rig, **said)
        streams.set(rig, frame_batch=1, mode="img2img")
        rig.tick(frame(1))
    for _ in range(50):
        assert streams.acceleration.settled(60)
        streams.rig.tick(frame(2))
        if streams.rig.engine.shows_up_to is None and not streams.nets.loading:
            break
    else:
        raise AssertionError("it never came to rest")
    for rig in (streams.rig, streams.plain):
        rig.engine.reset("hard")
    for _ in range(4):
        assert streams.step() <= 1e-9
    assert streams.rig.engine.painter.settings == streams.plain.engine.painter.settings
