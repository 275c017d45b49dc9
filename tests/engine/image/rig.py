"""An engine with a counting UNet, for tests: what went in, what came out, before pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdbridge.engine.image.engine import ImageEngine
from sdbridge.engine.image.painting import Painting
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.image.seed import noise_of
from sdbridge.engine.image.travellers import Leaving
from sdbridge.engine.interface import EngineConfig
from sdbridge.frame import Chunk, Frame

SIZE = 64


class StillClock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


_OPEN: list[ImageEngine] = []


def close_all() -> None:
    """Unload every engine that a test left: its threads would hold it, its graphs and their streams."""
    while _OPEN:
        _OPEN.pop().unload()


class Rig:
    """One loaded engine; ``calls`` are the UNet calls since ``warm_up``, ``latents`` what left the stream."""

    def __init__(
        self, model: Path, values: Mapping[str, Any], *, dtype: str = "float64", size: int = 64, **config: Any
    ) -> None:
        self.clock = StillClock()
        options = {"wait_for_prompts": True, **config.pop("options", {})}
        self.engine = ImageEngine(
            EngineConfig(
                model=str(model),
                device=config.pop("device", "cpu"),
                dtype=dtype,
                threads=1,
                options=options,
                **config,
            ),
            self.clock,
        )
        _OPEN.append(self.engine)
        self.engine.load(values)
        self.engine.warm_up(size, size)
        self.calls: list[UnetCall] = []
        self.latents: list[Tensor] = []
        self._watch()

    def _watch(self) -> None:
        painter = self.engine.painter
        acceleration, decode = painter.acceleration, type(painter)._decode
        denoise = acceleration.run_denoise

        def counting_denoise(call: UnetCall) -> Tensor:
            self.calls.append(kept(call))
            return denoise(call)

        def watching_decode(leaving: Leaving, revision: int) -> Painting:
            self.latents.append(leaving.latent.clone())  # its buffer is written again
            return decode(painter, leaving, revision)

        acceleration.run_denoise = counting_denoise  # type: ignore[method-assign]
        painter._decode = watching_decode  # type: ignore[method-assign]

    def stop_watching(self) -> None:
        """Keep nothing of what goes by from here on."""
        painter = self.engine.painter
        del painter.acceleration.run_denoise, painter._decode

    @property
    def model(self) -> Any:
        return self.engine.model

    def set(self, **values: Any) -> tuple[Any, ...]:
        """Parameters by name, ``__`` for a dot."""
        return self.engine.apply({name.replace("__", "."): v for name, v in values.items()}, 1)

    def set_and_await(self, **values: Any) -> None:
        """As ``set``, and the next frame has all of it: graphs for a new shape are waited for (60 s)."""
        self.set(**values)
        until = time.monotonic() + 60.0
        self.engine.frame_edge()
        while self.engine.shows_up_to is not None:
            assert time.monotonic() < until, "the graphs of a new shape never came"
            time.sleep(0.01)
            self.engine.frame_edge()

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        return self.engine.tick(chunk)

    def latent_of(self, chunk: Chunk | None) -> Tensor:
        """Tick once and give the latent that left."""
        before = len(self.latents)
        self.engine.tick(chunk)
        assert len(self.latents) == before + 1
        return self.latents[-1]

    def source_of(self, chunk: Chunk) -> Tensor:
        """The clean latent of a frame."""
        from sdbridge.engine.image.pictures import to_tensor

        pixels = chunk.main.pixels
        image = to_tensor(pixels, torch.device("cpu"), pixels.shape[1], pixels.shape[0])[:, :3]
        with torch.inference_mode():
            return self.engine.painter.encode(image).clone()

    def noise(self, steps: int, seed: int = 2, size: int = 64) -> Tensor:
        return noise_of(seed, (steps, 4, size // 8, size // 8)).to(self.model.dtype)


def kept(call: UnetCall) -> UnetCall:
    """``call`` as it is now: the stream writes the next one into the same buffers."""
    same: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return same.setdefault(id(value), value.clone())
        if isinstance(value, tuple):
            return tuple(copied(each) for each in value)
        if isinstance(value, Mapping):
            return {name: copied(each) for name, each in value.items()}
        return value

    return replace(call, **{each.name: copied(getattr(call, each.name)) for each in fields(call)})


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def frame(number: int, size: int = SIZE, seed: int | None = None) -> Chunk:
    """A picture of noise; the same number (or seed) gives the same picture."""
    rng = np.random.default_rng(number if seed is None else seed)
    return Chunk.of(Frame(rng.integers(0, 256, (size, size, 4), dtype=np.uint8), number, number * 1000))
