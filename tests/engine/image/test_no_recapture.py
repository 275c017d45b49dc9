"""What an artist moves live changes the picture and captures, compiles and prepares nothing (issue 9)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.image.rig import frame, relative
from tests.engine.image.test_foresight_control import Streams, networks  # noqa: F401
from tests.engine.image.test_lora import LINEAR, kohya, pairs, saved, targets

START = {
    "prompt__2__text": "a sea of ice",
    "guidance_mode": "full",
    "guidance_scale": 1.5,
    "negative_prompt": "grey",
    "controlnet__1__preprocessor": "canny",
    "controlnet__1__scale": 0.8,
    "lora__1__weight": 0.5,
    "feature_bank__enabled": True,
}

#: What is moved, and to what; each must show in the picture.
MOVES = {
    "prompt": {"prompt__1__text": "fire on a hill"},
    "prompt weight": {"prompt__2__weight": 0.7},
    "prompt blend": {"prompt__2__weight": 0.7, "prompt_blend": "slerp"},
    "negative prompt": {"negative_prompt": "a dog"},
    "guidance scale": {"guidance_scale": 2.5},
    "strength": {"strength": 0.3},
    "step values": {"step_indices": "20,41"},
    "schedule": {"schedule_steps": 40},
    "sampler": {"scheduler": "tcd"},
    "seed": {"seed__1__value": 77},
    "seed blend": {"seed__2__value": 5, "seed__2__weight": 0.5},
    "LoRA weight": {"lora__1__weight": -0.8},
    "LoRA off": {"lora__1__weight": 0.0},
    "ControlNet scale": {"controlnet__1__scale": 0.3},
    "ControlNet end": {"controlnet__1__end": 0.5},
    "canny thresholds": {"controlnet__1__low": 0.02, "controlnet__1__high": 0.05},
    "bank strength": {"feature_bank__strength": 0.1, "feature_bank__threshold": 0.0},
    "feedback": {"latent_feedback": 0.4},
}


@pytest.fixture
def streams(checkpoint, monkeypatch, networks, tmp_path) -> Iterator[Streams]:  # noqa: F811
    made = Streams(checkpoint(), monkeypatch)
    parts = made.rig.model
    file = saved(tmp_path, kohya(pairs(parts.unet, targets(parts.unet, LINEAR), 1)), "moved.safetensors")
    for rig in (made.rig, made.plain):
        made.set(rig, controlnet__1__model=networks["one"], lora__1__file=str(file), **START)
        loras = next(each for each in rig.engine._extensions if each.name == "lora")
        while loras.loading:
            rig.engine.frame_edge()
    for _ in range(3):
        made.let()
        for _ in range(5):
            made.number += 1
            made.rig.latent_of(frame(made.number))
            made.plain.latent_of(frame(made.number))
    yield made
    made.end()


def test_what_moves_live_captures_nothing(streams: Streams) -> None:
    rig, plain, held = streams.rig, streams.plain, streams.held
    assert streams.steers and held.of_shapes

    def captured() -> int:
        return sum(held.of_shapes.values()) + held.in_stream

    held.let.set()
    before = captured()
    for name, values in MOVES.items():
        rig.set(**values)
        for _ in range(3):  # the other stream has it not, and paints another picture
            streams.number += 1
            mine = rig.latent_of(frame(streams.number)).clone()
            theirs = plain.latent_of(frame(streams.number))
        assert relative(mine, theirs) > 1e-6, f"{name} is not in the picture"
        assert rig.engine.shows_up_to is None, f"{name} waits"
        plain.set(**values)
        assert streams.acceleration.settled(60) and captured() == before, f"{name} was captured for"
