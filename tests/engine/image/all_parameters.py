"""Values for every parameter that touches the picture, and two engines that follow them: eager and graphs."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from sdbridge.engine.accelerate.cuda_graph import CudaGraph
from sdbridge.engine.image.controlnet import ControlNets
from sdbridge.frame import Chunk, Frame, Role
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.parameters.table import TABLE
from tests.engine.image.conditioning import small_parts
from tests.engine.image.rig import Rig, relative
from tests.engine.image.test_controlnet import save_adapter, save_real_hint
from tests.engine.image.test_ip_adapter import make_encoder, png, published
from tests.engine.image.test_lora import LINEAR, kohya, pairs, peft, saved, targets

#: Where the walk cannot go, and why.
LEFT_OUT = {
    "depth_model": "its network is a download",
    "style_encoder": "has its place beside style_model",
    "softedge_model": "its network is a download",
}
#: Slots that are walked: as many as tell whether one disturbs another.
SLOTS = {"prompt": 3, "seed": 2, "controlnet": 2, "lora": 3, "style": 2}
LONG = "word " * 90


@dataclass(frozen=True)
class Files:
    """One of everything that can be loaded, for one family of models."""

    choices: Mapping[str, Sequence[str]]  # by the parameter's name as written in the table

    @classmethod
    def make(cls, folder: Path, family: str) -> Files:
        base = "sd15" if family == "sd15-inpaint" else family
        parts = small_parts(base)  # type: ignore[arg-type]
        unet = parts.unet
        with_text = kohya(pairs(unet, targets(unet, LINEAR), 1))
        prefixes = ["lora_te_"] if len(parts.text_encoders) == 1 else ["lora_te1_", "lora_te2_"]
        for prefix, encoder in zip(prefixes, parts.text_encoders, strict=True):
            named = [name for name, _ in encoder.named_modules() if name.endswith("q_proj")]
            for name, pair in pairs(encoder, named, 2).items():
                with_text |= kohya({f"text_model.{name.removeprefix('text_model.')}": pair}, prefix)
        read = targets(unet, ("attn2.to_k", "attn2.to_v", "time_emb_proj"))
        loras = [
            saved(folder, with_text, "text.safetensors"),
            saved(folder, kohya(pairs(unet, targets(unet), 3)), "locon.safetensors"),
            saved(folder, peft(pairs(unet, read, 4)), "peft.safetensors"),
        ]
        make_encoder(folder / "image_encoder")
        styles = [folder / f"{kind}.safetensors" for kind in ("standard", "plus")]
        for path in styles:
            save_file(published(unet, path.stem), path)
        networks = [save_real_hint(folder / f"net{n}", base, n) for n in (1, 2)]
        kinds = ["full_adapter_xl"] if family == "sdxl" else ["full_adapter", "light_adapter"]
        adapters = [save_adapter(folder / kind, kind=kind) for kind in kinds]
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 32:] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        pictures = [str(png(folder, n)) for n in (1, 2)]
        return cls(
            {
                "controlnet.#.model": [str(each) for each in (*networks, *adapters, adapters[0])] + [""],
                "controlnet.#.file": [*pictures, ""],
                "lora.#.file": [str(each) for each in loras] + [""],
                "style_model": [str(each) for each in styles] * 2 + [""],
                "style.#.file": [*pictures, *pictures, ""],
                "mask.file": [str(folder / "mask.png"), pictures[0], ""],
            }
        )


#: Of what is not in ``Files``: where the table's range is too wide, too costly, or says nothing.
CHOICES: Mapping[str, Sequence[Value]] = {
    "prompt.#.text": ("fox", "a sea of ice", "a (red:1.3) fox", "", LONG),
    "negative_prompt": ("", "grey", "a dog"),
    "prompt.#.weight": (0.0, 0.4, 1.0, 1.7),
    "prompt_transition": (0.0, 0.0, 0.3),
    "clip_skip": (0, 0, 1),
    "seed.#.value": (2, 77, 12345),
    "seed_mode": ("fixed", "fixed", "random", "walk"),
    "steps": (1, 2, 2, 3),
    "step_indices": ("", "", "20,41", "5", "0,16,32", "nonsense"),
    "schedule_steps": (50, 50, 45, 4),
    "guidance_scale": (0.0, 1.0, 1.0, 1.2, 1.6, 3.0),
    "controlnet.#.enabled": (True, True, False),
    "controlnet.#.start": (0.0, 0.0, 0.3, 0.7),
    "controlnet.#.end": (1.0, 1.0, 0.6, 0.2),
    "controlnet.#.preprocessor": (
        "passthrough", "canny", "softedge", "lineart", "scribble", "color", "tile", "grey", "invert",
    ),
    "control_output": (0, 1, 2),
    "lora.#.weight": (0.0, 0.3, 0.5, 1.0, -0.4),
    "style_scale": (0.0, 0.6, 1.0, 2.0),
    "style.#.source": ("off", "file", "file", "input", "grab"),
    "mask.source": ("off", "off", "alpha", "input", "file"),
    "mask.soft": (0.0, 4.0, 17.0),
    "pre.blur": (0.0, 0.0, 1.5),
    "post.blur": (0.0, 0.0, 1.5),
    "similarity.enabled": (False, False, True),
    "similarity.threshold": (0.5, 0.9, 0.98, 1.0),
    "similarity.max_skip": (0, 1, 3),
    "feature_bank.interval": (1, 2, 4),
    "feature_bank.frames": (1, 1, 2, 3),
    "latent_feedback": (0.0, 0.0, 0.3),
    "pre.feedback": (0.0, 0.0, 0.3),
    "mode": ("img2img", "img2img", "txt2img", "bypass"),
    "width": (64, 64, 72, 96),
    "height": (64, 64, 72),
    "frame_batch": (1, 1, 2),
}  # fmt: skip


def walked() -> list[Parameter]:
    """The rows of the table, as written, that the walk moves."""
    return [
        row
        for row in TABLE.templates
        if row.effect in ("live", "reencode") and row.name not in LEFT_OUT and row.group != "output"
        and (row.kind != "trigger" or row.name == "style.#.grab")
    ]  # fmt: skip


class Walk:
    """Draws what is changed, and what comes in, frame by frame; the same seed gives the same walk."""

    def __init__(self, files: Files, seed: int, rows: Sequence[Parameter] | None = None) -> None:
        self._chance = random.Random(seed)
        self._files = files
        self._rows = list(walked() if rows is None else rows)
        self._mode: Value = "img2img"
        self.moved: set[str] = set()

    def moves(self) -> dict[str, Value]:
        chance = self._chance
        found: dict[str, Value] = {}
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            row = chance.choice(self._rows)
            found |= self._drawn(row)
        if self._mode != "img2img" and chance.random() < 0.4:
            found["mode"] = "img2img"
        self._mode = found.get("mode", self._mode)
        return found

    def everything(self) -> dict[str, Value]:
        """A value for each, most of them at work."""
        found: dict[str, Value] = {}
        for row in self._rows:
            found |= self._drawn(row, every=True)
        return {**found, "mode": "img2img", "frame_batch": 1}

    def _drawn(self, row: Parameter, every: bool = False) -> dict[str, Value]:
        self.moved.add(row.name)
        count = SLOTS[row.name.split(".")[0]] if row.slots else 1
        chosen = range(1, count + 1) if every else (self._chance.randint(1, count),)
        return {row.name.replace("#", str(slot)): self._value(row) for slot in chosen}

    def _value(self, row: Parameter) -> Value:
        chance = self._chance
        given = self._files.choices.get(row.name) or CHOICES.get(row.name)
        if given:
            return chance.choice(given)
        if row.kind in ("bool", "trigger"):
            return row.kind == "trigger" or chance.random() < 0.7
        if row.kind == "enum":
            return chance.choice(row.choices)
        assert row.kind == "float" and row.minimum is not None and row.maximum is not None, row.name
        return chance.choice((row.minimum, row.default, round(chance.uniform(row.minimum, row.maximum), 3)))

    def chunk(self, number: int) -> Chunk | None:
        """Pictures that come back now and then; sources that come and go; now and then nothing."""
        chance = self._chance
        if chance.random() < 0.06:
            return None
        size = chance.choice((64, 64, 64, 72))
        roles: list[Role] = [r for r in ("control", "mask", "style") if chance.random() < 0.8]
        return Chunk.of(self._frame(number, size), **{role: self._frame(number, size) for role in roles})

    def _frame(self, number: int, size: int) -> Frame:
        # Never twice the same to the bit: a feature bank would take either of two equal keys for the nearest.
        grain = np.random.default_rng(number).integers(-2, 3, (size, size, 4))
        coarse = np.random.default_rng(self._chance.randrange(3)).integers(0, 256, (4, 4, 4), dtype=np.uint8)
        pixels = np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))
        pixels = (pixels + grain).clip(0, 255).astype(np.uint8)
        return Frame(pixels, number, number * 1000)

    def passes(self) -> float:
        return self._chance.choice((0.0, 0.04, 0.2))

    def reset(self) -> Any:
        return self._chance.choice(("soft", "recache", "hard")) if self._chance.random() < 0.05 else None


class Both:
    """The same stream twice: operation by operation, and from graphs."""

    def __init__(self, plain: Rig, graphs: Rig, tolerance: float = 1e-9, alone: Any = None) -> None:
        """``alone``: held while a frame runs."""
        self.alone = alone or nullcontext()
        self.plain, self.graphs = plain, graphs
        self.tolerance = tolerance
        self.compared = self.replayed = 0
        self.worst = 0.0

    @property
    def rigs(self) -> tuple[Rig, Rig]:
        return self.plain, self.graphs

    def set(self, values: Mapping[str, Value]) -> None:
        if values:
            found = [rig.engine.apply(dict(values), 1) for rig in self.rigs]
            assert found[0] == found[1]

    def arrive(self) -> None:
        """All that was asked for is loaded, captured and taken up, in both."""
        until = time.monotonic() + 120.0
        for rig in self.rigs:
            engine = rig.engine
            while True:
                for _ in range(3):  # a picture is read, then looked at
                    assert engine._beside is not None
                    engine._beside.submit(lambda: None).result(60)
                    engine.frame_edge()
                settle = getattr(engine.painter.acceleration, "settled", lambda seconds: True)
                nets = next(each for each in engine._extensions if isinstance(each, ControlNets))
                if settle(60) and engine.shows_up_to is None and nets.awaits is None:
                    break
                assert time.monotonic() < until, "it never came to rest"

    def tick(self, chunk: Chunk | None) -> None:
        """A frame of both, compared: what left the stream, who it is, and its pixels."""
        made = []
        for rig in self.rigs:
            rig.latents.clear()
            rig.calls.clear()
            with self.alone:
                made.append(rig.tick(chunk))
        unet = self.graphs.engine.painter.acceleration.unet  # type: ignore[attr-defined]
        mine, wanted = self.graphs.latents, self.plain.latents
        self.replayed += len(mine) if isinstance(unet._graphs.by_key.get(unet._denoise), CudaGraph) else 0
        if self.texts_wait:  # one of another length, whose graphs are not there yet
            return
        assert len(mine) == len(wanted)
        for ours, theirs in zip(mine, wanted, strict=True):
            assert theirs.isfinite().all(), "the walk has left what means anything"
            apart = relative(ours, theirs)
            self.worst = max(self.worst, apart)
            assert apart <= self.tolerance, f"{apart:.3g} apart"
            self.compared += 1
        theirs_made, ours_made = made
        assert (theirs_made is None) == (ours_made is None)
        if theirs_made is not None and ours_made is not None:
            _same(ours_made, theirs_made)
        assert self.graphs.engine.spec == self.plain.engine.spec

    def pass_time(self, seconds: float) -> None:
        for rig in self.rigs:
            rig.clock.sleep(seconds)

    def reset(self, how: Any) -> None:
        for rig in self.rigs:
            rig.engine.reset(how)

    @property
    def texts_wait(self) -> bool:
        return self.graphs.engine.painter._texts.waiting


def _same(ours: Chunk, theirs: Chunk) -> None:
    assert len(ours.frames) == len(theirs.frames)
    for mine, other in zip(ours.frames, theirs.frames, strict=True):
        assert mine.keys() == other.keys()
        for role, frame in mine.items():
            wanted = other[role]
            assert frame.frame_id == wanted.frame_id and frame.pixels.shape == wanted.pixels.shape
            off = np.abs(frame.pixels.astype(int) - wanted.pixels.astype(int))
            assert off.max() <= 1, f"{role} is {off.max()} off"  # a half may be rounded either way


def walk(both: Both, drawn: Walk, frames: int, scene: int = 40) -> None:
    """``frames`` frames of both, with whatever the walk draws; says where it was when they parted.

    Every so many frames, ``scene``, everything is changed at once.
    """
    said: dict[str, Value] = {}
    feeds_back, exact = False, both.tolerance
    for number in range(frames):
        moved = drawn.everything() if number % scene == 3 else drawn.moves()
        said |= moved
        both.set(moved)
        both.pass_time(drawn.passes())
        how = drawn.reset()
        if how is not None:
            both.reset(how)
        # The last picture is in float32, whose rounding goes either way.
        feeds_back = bool(said.get("pre.feedback")) or (feeds_back and how != "hard")
        both.tolerance = 1e-5 if feeds_back else exact
        both.arrive()
        chunk = drawn.chunk(number)
        try:
            both.tick(chunk)
        except AssertionError as error:
            raise AssertionError(f"frame {number}: {error}; {moved=}, {how=}; all: {said}") from error
        if both.texts_wait:
            _await_text(both, chunk)


def _await_text(both: Both, chunk: Chunk | None) -> None:
    while both.texts_wait:
        for rig in both.rigs:
            with both.alone:
                rig.tick(chunk)
        both.arrive()
    both.reset("hard")
