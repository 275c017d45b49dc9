"""What hangs on the text or the timesteps alone is made when those change, and in no other frame."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.accelerate.replay import WARM_CALLS
from sdbridge.engine.image.controlnet import ControlNets
from tests.engine.image.rig import Rig, frame, relative
from tests.engine.image.test_allocations import run_on
from tests.engine.image.test_controlnet import save_real_hint
from tests.engine.image.test_foresight import Graph
from tests.engine.image.test_lora import kohya, pairs, saved, targets

Values = dict[str, Any]
START: Values = {
    "prompt.1.text": "fox",
    "prompt.2.text": "a sea of ice",
    "prompt.2.weight": 0.0,
    "scheduler": "lcm",
    "steps": 2,
    "prompt_transition": 0.0,
    "negative_prompt": "grey",
    "lora.1.weight": 0.0,
    "lora.2.weight": 0.0,
}
LONG = "word " * 90

#: One after the other: what is changed, and how often times and text are made for it in its first frame.
CHANGES: list[tuple[str, Values, int, int]] = [
    ("prompt", {"prompt__1__text": "fire on a hill"}, 0, 1),
    ("weights of the prompts", {"prompt__2__weight": 0.7}, 0, 1),
    ("how they are blended", {"prompt_blend": "linear"}, 0, 1),
    ("step values", {"step_indices": "20,41"}, 1, 0),
    ("sampler", {"scheduler": "tcd"}, 0, 0),
    ("schedule", {"schedule_steps": 45}, 1, 0),
    ("seed", {"seed__1__value": 77}, 0, 0),
    ("UNet's LoRA", {"lora__1__weight": 0.8}, 1, 1),
    ("UNet's LoRA moves", {"lora__1__weight": 0.5}, 1, 1),
    ("encoder's LoRA", {"lora__2__weight": 0.6}, 1, 1),
    ("both off", {"lora__1__weight": 0.0, "lora__2__weight": 0.0}, 1, 1),
    ("guidance self", {"guidance_mode": "self", "guidance_scale": 1.5}, 0, 0),
    ("guidance full", {"guidance_mode": "full"}, 1, 1),
    ("negative prompt", {"negative_prompt": "a dog"}, 0, 1),
    ("guidance scale", {"guidance_scale": 2.5}, 0, 0),
    ("guidance initialize", {"guidance_mode": "initialize"}, 1, 1),
    ("no guidance", {"guidance_mode": "none"}, 0, 1),
    ("feature bank", {"feature_bank__enabled": True}, 0, 0),
    ("its strength", {"feature_bank__strength": 0.3}, 0, 0),
    ("prompt under the bank", {"prompt__1__text": "a bridge"}, 0, 1),
    ("no feature bank", {"feature_bank__enabled": False}, 0, 0),
    ("a longer text", {"prompt__1__text": LONG}, 1, 1),
    ("a short one again", {"prompt__1__text": "fox"}, 0, 1),
    ("steps", {"steps": 3, "step_indices": ""}, 1, 1),
    ("fewer", {"steps": 1}, 1, 1),
    ("two frames at a time", {"frame_batch": 2}, 1, 1),
    ("one, a shape known by now", {"frame_batch": 1}, 0, 1),
]


def write_loras(model: Any, folder: Path) -> Values:
    """One of all that is made beforehand in the UNet, one of the text encoders: what to set."""
    reading = targets(model.unet, ("attn2.to_k", "attn2.to_v", "time_emb_proj"))
    picture = saved(folder, kohya(pairs(model.unet, reading, 1)), "unet.safetensors")
    state: dict[str, torch.Tensor] = {}
    prefixes = ["lora_te_"] if len(model.text_encoders) == 1 else ["lora_te1_", "lora_te2_"]
    for prefix, encoder in zip(prefixes, model.text_encoders, strict=True):
        named = [name for name, _ in encoder.named_modules() if name.endswith("q_proj")]
        for name, pair in pairs(encoder, named, 2).items():
            state |= kohya({f"text_model.{name.removeprefix('text_model.')}": pair}, prefix)
    text = saved(folder, state, "text.safetensors")
    return {"lora__1__file": str(picture), "lora__2__file": str(text)}


class Pair:
    """The same stream twice: operation by operation, and from stand-ins for graphs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **more: Any) -> None:
        self.plain = Rig(folder, {**START, **more}, dtype="float64")
        with monkeypatch.context() as patch:
            run_on(Graph, patch)
            self.rig = Rig(folder, {**START, **more}, dtype="float64")
        self.acceleration: Compiled = self.rig.engine.painter.acceleration
        self.number = 0
        self.set(**write_loras(self.rig.model, tmp_path))

    def set(self, **values: Any) -> None:
        for rig in (self.plain, self.rig):
            rig.set(**values)
            while any(getattr(each, "loading", False) for each in rig.engine._extensions):
                rig.engine.frame_edge()

    def made_for(self, slot: int) -> tuple[int, int]:
        """How often times and text were made for the ControlNet of this slot."""
        nets = next(each for each in self.rig.engine._extensions if isinstance(each, ControlNets))
        made = nets._slots[slot].network.run.hoisting.made
        return made["times"], made["text"]

    @property
    def made(self) -> tuple[int, int]:
        hoisting = self.acceleration.unet.hoisting
        assert hoisting is not None
        return hoisting.made["times"], hoisting.made["text"]

    def step(self) -> float:
        """A frame of both, or as many as one takes; how far apart they are."""
        size = self.rig.engine.painter.settings
        found = []
        for rig in (self.rig, self.plain):
            before, number = len(rig.latents), self.number
            while len(rig.latents) == before:
                number += 1
                rig.tick(frame(number))
            found.append(rig.latents[-1])
        self.number = number
        assert size is not None
        return relative(*found)

    def let_time_pass(self, seconds: float) -> None:
        for rig in (self.plain, self.rig):
            rig.clock.sleep(seconds)


@pytest.fixture
def paired(checkpoint, monkeypatch, tmp_path) -> Iterator[Callable[..., Pair]]:
    def make(family: str = "sd15", **more: Any) -> Pair:
        return Pair(checkpoint(family), monkeypatch, tmp_path, **more)

    yield make


def test_nothing_is_made_while_nothing_moves_and_each_change_is_in_its_very_frame(paired) -> None:
    pair = paired()
    for _ in range(3):
        assert pair.step() <= 1e-9
    for _ in range(20):
        before = pair.made
        assert pair.step() <= 1e-9 and pair.made == before
    for name, values, times, text in CHANGES:
        pair.set(**values)
        before = pair.made
        assert pair.step() <= 1e-9, f"{name}: its first frame"
        now = pair.made
        assert (now[0] - before[0], now[1] - before[1]) == (times, text), name
        for _ in range(2):
            assert pair.step() <= 1e-9, name
        assert pair.made == now, f"{name}: nothing moved after it"


def test_a_transition_is_made_in_each_of_its_frames_and_then_no_more(paired) -> None:
    pair = paired(prompt_transition=1.0)
    pair.step()
    pair.set(prompt__1__text="a city at night")
    for passed in range(7):
        before = pair.made
        assert pair.step() <= 1e-9
        assert pair.made == (before[0], before[1] + (passed < 6)), passed
        pair.let_time_pass(0.2)


def test_the_pooled_text_and_the_size_are_in_the_times_of_sdxl(paired) -> None:
    pair = paired("sdxl")
    pair.step()
    changes: list[tuple[Values, int, int]] = [
        ({}, 0, 0),
        ({"prompt__1__text": "fire on a hill"}, 1, 1),
        ({"prompt__2__weight": 0.4}, 1, 1),
        ({"width": 128}, 1, 0),
        ({"guidance_mode": "full", "guidance_scale": 1.7}, 1, 1),
        ({"negative_prompt": "a dog"}, 1, 1),
        ({"lora__1__weight": 0.8}, 1, 1),
        ({"lora__2__weight": 0.8}, 1, 1),
        ({"guidance_mode": "none", "width": 64}, 1, 1),
    ]
    for values, times, text in changes:
        pair.set(**values)
        before = pair.made
        assert pair.step() <= 1e-9, values
        now = pair.made
        assert (now[0] - before[0], now[1] - before[1]) == (times, text), values
        assert pair.step() <= 1e-9 and pair.made == now


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    folder = tmp_path_factory.mktemp("networks")

    def get(family: str, number: int) -> str:
        place = folder / f"{family}-{number}"
        return str(place if place.exists() else save_real_hint(place, family, number))

    return get


def test_a_controlnet_makes_them_when_they_change_too(paired, networks) -> None:
    pair = paired()
    pair.set(controlnet__1__model=networks("sd15", 1), controlnet__1__preprocessor="canny")
    pair.set(controlnet__2__model=networks("sd15", 1), controlnet__2__source="main", controlnet__2__scale=0.3)
    for _ in range(3):
        assert pair.step() <= 1e-9
    for _ in range(WARM_CALLS):  # then it is captured
        before = pair.made_for(1)
        assert pair.step() <= 1e-9 and pair.made_for(1) == before == pair.made_for(2)
    changes: list[tuple[str, Values, int, int]] = [
        ("a longer text, where graphs are", {"prompt__1__text": LONG}, 1, 1),
        ("a short one again", {"prompt__1__text": "fire on a hill"}, 0, 1),
        ("weights of the prompts", {"prompt__2__weight": 0.7}, 0, 1),
        ("step values", {"step_indices": "20,41"}, 1, 0),
        ("the UNet's LoRA is none of its", {"lora__1__weight": 0.8}, 0, 0),
        ("the encoder's LoRA", {"lora__2__weight": 0.6}, 0, 1),
        ("scale", {"controlnet__1__scale": 0.4}, 0, 0),
        ("the other slot goes, with the same network", {"controlnet__2__enabled": False}, 0, 0),
        ("end", {"controlnet__1__end": 0.9}, 0, 0),
        ("size", {"width": 128}, 0, 0),
        ("guidance full", {"guidance_mode": "full", "guidance_scale": 1.5}, 1, 1),
        ("negative prompt", {"negative_prompt": "a dog"}, 0, 1),
        ("feature bank", {"feature_bank__enabled": True}, 0, 0),
        ("frames at a time", {"frame_batch": 2}, 1, 1),
    ]
    for name, values, times, text in changes:
        pair.set(**values)
        before = pair.made_for(1)
        assert pair.step() <= 1e-9, f"{name}: its first frame"
        now = pair.made_for(1)
        assert (now[0] - before[0], now[1] - before[1]) == (times, text), name
        assert pair.step() <= 1e-9, name
        assert pair.made_for(1) == now, f"{name}: nothing moved after it"


MOVES: list[Values] = [
    *({"prompt__1__text": text} for text in ("fox", "fire", LONG)),
    *({"prompt__2__weight": weight} for weight in (0.0, 0.3, 0.7)),
    *({"prompt_transition": seconds} for seconds in (0.0, 0.5)),
    *({"negative_prompt": text} for text in ("grey", "a dog")),
    *({"guidance_mode": mode, "guidance_scale": 1.6} for mode in ("none", "self", "initialize", "full")),
    *({"step_indices": values} for values in ("", "20,41", "5,30")),
    *({"steps": steps} for steps in (1, 2)),
    *({"lora__1__weight": weight} for weight in (0.0, 0.5, 0.9)),
    *({"lora__2__weight": weight} for weight in (0.0, 0.8)),
    *({"feature_bank__enabled": enabled} for enabled in (True, False)),
    *({"width": width} for width in (64, 128)),
    *({"frame_batch": frames} for frames in (1, 2)),
    {"clip_skip": 1},
    {"clip_skip": 0},
]


@pytest.mark.parametrize(
    ("family", "frames"),
    [
        ("sd15", 25),
        *(pytest.param(family, 150, marks=pytest.mark.slow) for family in ("sd15", "sdxl")),
    ],
)
def test_a_walk_over_all_of_it_paints_what_eager_paints(paired, networks, family: str, frames: int) -> None:
    pair, chance = paired(family), random.Random(frames)
    steering: list[Values] = [
        *({"controlnet__1__model": networks(family, number)} for number in (1, 2)),
        *({"controlnet__2__model": model} for model in ("", networks(family, 1))),
        *({"controlnet__1__scale": scale} for scale in (0.0, 0.5, 1.0)),
    ]
    for number in range(frames):
        moved = [chance.choice(MOVES) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
        if chance.random() < 0.2:
            moved.append(chance.choice(steering))
        for values in moved:
            pair.set(**values)
        pair.let_time_pass(chance.choice((0.0, 0.1)))
        if chance.random() < 0.05:
            for rig in (pair.rig, pair.plain):
                rig.engine.reset("hard")
        assert pair.step() <= 1e-9, (number, moved)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_on_a_gpu_every_change_is_in_the_picture_of_the_graphs(
    checkpoint, networks, tmp_path, family
) -> None:
    """And nothing is made in the frames after it, nor while nothing moves."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # two frames in the bank are taken up as they are: nothing hangs on which of two keys is nearer
    banked = {"feature_bank.interval": 1, "feature_bank.frames": 2, "feature_bank.threshold": 1.0}
    given = {**START, **banked, "controlnet.1.model": networks(family, 1)}
    eager, rig = (
        Rig(checkpoint(family), given, dtype="float32", device="cuda", acceleration=name)
        for name in ("eager", "compile")
    )
    loras = write_loras(rig.model, tmp_path)
    hoisting = rig.engine.painter.acceleration.unet.hoisting
    number = 0
    changes = [(name, values) for name, values, *_ in CHANGES if "frame_batch" not in values]
    for name, values in [("LoRAs", loras), *changes]:
        for each in (eager, rig):
            each.set_and_await(**values)
            each.tick(frame(0))
            until = time.monotonic() + 60.0
            while each.engine.painter._texts.waiting or any(
                getattr(extension, "loading", False) for extension in each.engine._extensions
            ):
                assert time.monotonic() < until, name
                time.sleep(0.01)
                each.tick(frame(0))
            each.engine.reset("hard")
        assert rig.engine.painter.acceleration.settled(60)
        for turn in range(4):
            number += 1
            before = dict(hoisting.made)
            ours, theirs = (each.latent_of(frame(number)) for each in (rig, eager))
            assert relative(ours, theirs) < 5e-3, (name, turn)
            assert not turn or before == hoisting.made, name
