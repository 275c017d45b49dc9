"""Findings about the configuration and its model: valid, on the disk, room for the download."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sdbridge import paths
from sdbridge.config import Config, load_config
from sdbridge.demo import demo_config_path
from sdbridge.doctor.finding import Finding
from sdbridge.engine.making import engine_config
from sdbridge.engine.registry import ENGINES
from sdbridge.errors import SdbridgeError
from sdbridge.frame import INPUT_ROLES
from sdbridge.models import catalog, embedded_model
from sdbridge.models.demand import demand
from sdbridge.models.resolve import EMBEDDED, is_hub_id
from sdbridge.textures import registry
from sdbridge.textures.supply import AUTO


def check_config(path: Path | None) -> Iterator[Finding]:
    where = path or demo_config_path()
    try:
        config = load_config(where)
    except SdbridgeError as error:
        yield Finding("config", "wrong", error.what, error.next_step)
        return
    yield Finding("config", "good", f"{where} is valid")
    for remark in config.remarks:
        yield Finding("config", "note", remark)
    yield from check_chosen(config)
    engine = engine_config(config.engine, config.parameters)  # parameters may name another model
    yield from check_model(engine.model)
    yield from check_memory(config)
    yield from check_acceleration(engine.acceleration)
    yield from check_attention(config.engine.attention)


def check_chosen(config: Config) -> Iterator[Finding]:
    """Names in the file that only the program knows: the engine's kind, the backends of the textures."""
    kind = config.engine.kind
    if kind not in ENGINES and ":" not in kind:
        near = difflib.get_close_matches(kind, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        step = "Set engine.kind to image or passthrough."
        yield Finding("engine", "wrong", f"there is no engine kind {kind!r}{hint}", step)
    inputs = [
        (f"input {role}", getattr(config.input, role), registry.receiver_available) for role in INPUT_ROLES
    ]
    outputs = [(f"output {n}", chosen, registry.sender_available) for n, chosen in enumerate(config.output)]
    for name, chosen, available in (*inputs, *outputs):
        if chosen is None or chosen.backend == AUTO:
            continue
        try:
            able, why = available(chosen.backend)
        except SdbridgeError as error:
            yield Finding(name, "wrong", error.what, error.next_step)
            continue
        if not able:
            step = "Choose another backend, or mend what is missing."
            yield Finding(name, "wrong", f"{chosen.backend} is asked for and cannot run here: {why}", step)


def check_model(model: str) -> Iterator[Finding]:
    """Local files must exist; a catalog id must be pulled or have room to be."""
    if model in ("", EMBEDDED):
        if embedded_model.is_present():
            yield Finding("model", "good", "the embedded model: nothing to download")
        else:
            yield Finding(
                "model", "note", "the embedded model's weights are not here; random weights stand in"
            )
        return
    if Path(model).expanduser().exists():
        yield Finding("model", "good", f"{model} is on the disk")
        return
    entry = catalog.find(model)
    if entry is None and is_hub_id(model):
        here = catalog.local_path(model)
        text = (
            f"{model} is on the disk"
            if here
            else f"{model} is not here yet: the start pulls it, if it exists"
        )
        yield Finding("model", "good" if here else "note", text, "" if here else f"sdbridge pull {model}")
        return
    if entry is None:
        step = "Check the path, or give a catalog id (sdbridge pull lists them) or a Hugging Face id."
        yield Finding("model", "wrong", f"{model} is neither a file nor in the catalog", step)
        return
    if catalog.local_folder(entry) is not None:
        yield Finding("model", "good", f"{entry.id} is on the disk")
        return
    needed_gb = entry.size_bytes / 2**30
    folder = paths.models_dir()
    free_gb = shutil.disk_usage(_existing(folder)).free / 2**30
    fits = free_gb > needed_gb * 1.1
    yield Finding(
        "model",
        "note" if fits else "wrong",
        f"{entry.id} is not here yet: {needed_gb:.1f} GB to download, {free_gb:.0f} GB free",
        f"sdbridge pull {entry.id}" if fits else "Free some disk first.",
    )


def check_acceleration(choice: str) -> Iterator[Finding]:
    """TensorRT comes from NVIDIA's own index, so that it may be asked for and not be there."""
    if choice != "tensorrt":
        return
    missing = [name for name in ("tensorrt", "onnx", "onnxscript") if find_spec(name) is None]
    if "tensorrt" in missing:
        text = "TensorRT is asked for and not installed: compile (CUDA) or eager runs instead"
        yield Finding("acceleration", "note", text, "README.md says how to install it.")
    elif missing:
        text = f"engines that are built already run; to build others, {' and '.join(missing)} are missing"
        yield Finding("acceleration", "note", text, f"pip install {' '.join(missing)}")
    else:
        text = "TensorRT is installed"
        yield Finding("acceleration", "good", text, "sdbridge build makes its engines beforehand.")


def check_attention(choice: str) -> Iterator[Finding]:
    """Which attention would run; that xFormers' kernels take this card is only seen when they run."""
    try:
        here = version("xformers") if find_spec("xformers") is not None else ""
    except PackageNotFoundError:
        here = "of unknown version"
    if choice != "xformers":
        beside = f"; xFormers {here} is here for `engine: {{attention: xformers}}`" if here else ""
        yield Finding("attention", "good", f"PyTorch's own (flash, cuDNN){beside}")
    elif here:
        text = f"xFormers {here}, on CUDA; PyTorch's own for what it refuses"
        yield Finding("attention", "good", text)
    else:
        text = "xFormers is asked for and not installed: PyTorch's own attention (flash, cuDNN) runs instead"
        yield Finding("attention", "note", text, 'pip install "sdbridge[xformers]"')


def check_memory(config: Config) -> Iterator[Finding]:
    """What the model will take, counted from its files; compared with the card where there is one."""
    engine = engine_config(config.engine, config.parameters)
    free = free_vram() if engine.device in ("auto", "cuda") else None
    captures = free is not None and engine.acceleration != "eager"
    try:
        counted = demand(
            engine, config.parameters, config.engine.width, config.engine.height, captured=captures
        )
    except SdbridgeError as error:
        yield Finding("model files", "wrong", error.what, error.next_step)
        return
    if counted is None:
        yield Finding("memory", "note", "counted from the model's files, once they are on the disk")
    elif free is None:
        where = "no NVIDIA card" if engine.device in ("auto", "cuda") else f"on {engine.device}, no card"
        kind = "32-bit floats" if engine.dtype == "float32" else "fp16"
        yield Finding("memory", "note", f"the model takes {counted.describe()} in {kind}; {where} to compare")
    elif counted.total <= free:
        yield Finding("memory", "good", f"{counted.describe()} of {free / 2**30:.1f} GB free on the card")
    elif counted.without_graphs <= free:
        text = f"{counted.describe()}, of {free / 2**30:.1f} GB free on the card: graphs may not fit"
        yield Finding("memory", "note", text, "engine: {acceleration: eager} does without them, more slowly.")
    else:
        yield Finding(
            "memory",
            "wrong",
            f"the model takes {counted.describe()}, but {free / 2**30:.1f} GB are free on the card",
            "Close other programs, make the picture smaller, or take a smaller model.",
        )


def free_vram() -> int | None:
    """Free bytes on the first NVIDIA card, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return int(result.stdout.split()[0]) * 2**20
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
