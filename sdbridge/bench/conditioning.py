"""What conditioning costs: a LoRA fader, a ControlNet in the stream, and adding one while frames flow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdbridge import paths
from sdbridge.bench.image import WARM_UP_FRAMES, _chunks
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value

Figures = Mapping[str, object]
SIZE = 512
RANK = 16


def lora_fader(seconds: float = 10.0, **options: Any) -> Figures:
    """Milliseconds from a moved weight to changed tensors, and the frames meanwhile. Wanted: under 3 ms."""
    with _stream(options) as (engine, chunks, folder):
        engine.apply({"lora.1.file": str(_random_lora(engine, folder))}, 1)
        _until_loaded(engine, chunks)
        moves: list[float] = []
        ticks: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            engine.apply({"lora.1.weight": 0.1 + (len(moves) % 50) / 50}, len(moves) + 2)
            engine._settle()
            _wait(engine)
            moves.append((time.perf_counter() - began) * 1e3)
            ticks.append(_tick_ms(engine, chunks, len(moves)))
        return {**_times("move", moves), **_times("tick", ticks)}


def controlnet_cost(seconds: float = 10.0, **options: Any) -> Figures:
    """One canny ControlNet in the stream against none. Wanted: at most 0.55 of the UNet's own time more."""
    with _stream(options) as (engine, chunks, folder):
        off = _run(engine, chunks, seconds / 2)
        denoise_ms = engine.stats().parts_ms.get("denoise", 0.0)
        network = _random_controlnet(engine, folder)
        engine.apply({"controlnet.1.model": str(network), "controlnet.1.preprocessor": "canny"}, 1)
        _until_loaded(engine, chunks)
        _run(engine, chunks, seconds / 4)  # past the frames after which it is captured
        on = _run(engine, chunks, seconds / 2)
        more = statistics.median(on) - statistics.median(off)
        engine.apply({"controlnet.1.model": ""}, 2)
        return {
            **_times("without", off),
            **_times("with", on),
            "more_ms": more,
            "unet_queued_ms": denoise_ms,
            "share_of_tick": more / statistics.median(off),
            "canny_ms": _canny_ms(engine, int(options.get("side", SIZE))),
        }


def controlnet_add(seconds: float = 10.0, **options: Any) -> Figures:
    """The latest frame while a ControlNet is loaded and taken up. Wanted: at most twice the median."""
    with _stream(options) as (engine, chunks, folder):
        network = _random_controlnet(engine, folder)
        before = _run(engine, chunks, seconds / 2)
        engine.apply({"controlnet.1.model": str(network), "controlnet.1.preprocessor": "canny"}, 1)
        during: list[float] = []
        while _loading(engine):
            during.append(_tick_ms(engine, chunks, len(during)))
        after = [_tick_ms(engine, chunks, number) for number in range(60)]
        usual = statistics.median(after)
        return {
            **_times("before", before),
            **_times("during", during or after),
            **_times("after", after),
            "latest_over_median": max([*during, *after]) / max(usual, statistics.median(before)),
        }


@contextmanager
def _stream(options: Mapping[str, Any]) -> Iterator[tuple[Any, list[Any], Path]]:
    """An engine that runs, its input, and the folder of its checkpoint: ``model`` or SD-Turbo's true size."""
    from sdbridge.engine.image.engine import ImageEngine

    folder = options.get("model")
    side = int(options.get("side", SIZE))
    if folder is None:
        if options.get("weights") != "random":
            raise SdbridgeError("SDB-BENCH-FAULT", "sd-turbo at true size needs --weights random")
        from sdbridge.models.random_weights import build_random_checkpoint

        folder = build_random_checkpoint(paths.cache_dir() / "random-weights" / "sd-turbo", "sd-turbo")
    engine = ImageEngine(EngineConfig(model=str(folder)))
    values: dict[str, Value] = {"prompt.1.text": "fire", "steps": 1, "width": side, "height": side}
    engine.load(values)
    try:
        engine.warm_up(side, side)
        chunks = _chunks(side, side, 1)
        for number in range(WARM_UP_FRAMES):
            engine.tick(chunks[number % len(chunks)])
        yield engine, chunks, Path(folder)
    finally:
        engine.unload()


def _run(engine: Any, chunks: list[Any], seconds: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        found.append(_tick_ms(engine, chunks, len(found)))
    return found


def _tick_ms(engine: Any, chunks: list[Any], number: int) -> float:
    began = time.perf_counter()
    engine.tick(chunks[number % len(chunks)])
    return (time.perf_counter() - began) * 1e3


def _until_loaded(engine: Any, chunks: list[Any]) -> None:
    number = 0
    while _loading(engine):
        engine.tick(chunks[number % len(chunks)])
        number += 1


def _loading(engine: Any) -> bool:
    return any(getattr(extension, "loading", False) for extension in engine._extensions)


def _wait(engine: Any) -> None:
    if engine.model.device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def _times(name: str, times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {f"{name}_median_ms": statistics.median(ordered), f"{name}_max_ms": ordered[-1]}


def _canny_ms(engine: Any, side: int) -> float:
    """Canny alone on one picture, with the wait for the device."""
    import torch

    from sdbridge.engine.preprocess.base import Settings
    from sdbridge.engine.preprocess.canny import Canny

    image = torch.rand(1, 3, side, side, device=engine.model.device)
    canny, times = Canny(), []
    for _ in range(20):
        began = time.perf_counter()
        canny(image, Settings())
        _wait(engine)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def _random_controlnet(engine: Any, folder: Path) -> Path:
    """A ControlNet that fits the running model, with random weights, kept beside its checkpoint."""
    place = folder / "bench-controlnet"
    if not (place / "config.json").is_file():
        import torch
        from diffusers import ControlNetModel

        network = ControlNetModel.from_unet(engine.model.unet, load_weights_from_unet=False)
        network.to(dtype=torch.float16).save_pretrained(place)
    return place


def _random_lora(engine: Any, folder: Path) -> Path:
    """A LoRA over every attention and feed-forward layer of the UNet, rank 16, kept beside the checkpoint."""
    place = folder / "bench-lora.safetensors"
    if not place.is_file():
        import torch
        from safetensors.torch import save_file

        tensors: dict[str, Any] = {}
        for name, module in engine.model.unet.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2 or "transformer_blocks" not in name:
                continue
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, weight.shape[1]) * 0.01
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(weight.shape[0], RANK) * 0.01
        save_file(tensors, place)
    return place
