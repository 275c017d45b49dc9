"""An engine for an order: out of the cache if one fits, else made in the workshop and kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import torch
from torch import Tensor

from sdbridge.engine.accelerate.tensorrt.cache import (
    EngineKey,
    drop_engine,
    hash_weights,
    load_about,
    load_engine,
    save_engine,
)
from sdbridge.engine.accelerate.tensorrt.export import WeightName
from sdbridge.engine.accelerate.tensorrt.order import ENGINE_FILE, WEIGHTS_FILE, Order
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Obtained:
    """A serialised engine, the names by which its weights are refitted, and where it came from."""

    blob: bytes
    names: tuple[WeightName, ...]
    cached: bool


def obtain_engine(
    order: Order,
    weights: Mapping[str, Tensor],
    folder: Path,
    version: str,
    device: torch.device,
    on_progress: OnProgress,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    anew: bool = False,
) -> Obtained:
    """``weights`` is the part's state on the CPU. A full or read-only cache costs a line, not the engine.

    ``anew``: what lies in the cache was refused, so it goes. Raises SDB-TENSORRT-BUILD with the workshop's
    own words.
    """
    key = engine_key(order, weights, version, device)
    if anew:
        drop_engine(folder, key)
    found = _from_cache(folder, key)
    if found is not None:
        return found
    blob, names = _make(order, weights, folder, on_progress, cancelled)
    try:
        save_engine(folder, key, blob, {"names": [asdict(name) for name in names]})
    except OSError as error:
        log.warning(
            "the built %s cannot be kept in %s (%s); it is built again next time", order.part, folder, error
        )
    return Obtained(blob, names, cached=False)


def engine_key(order: Order, weights: Mapping[str, Tensor], version: str, device: torch.device) -> EngineKey:
    """Everything that an engine for ``order`` on this machine depends on."""
    gpu, capability = "cpu", ""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        gpu, capability = facts.name, f"{facts.major}.{facts.minor}"
    shape = json.dumps([order.module, dict(order.config), order.residuals, order.latent], default=str)
    return EngineKey(
        graph=order.part,
        weights=f"{hash_weights(weights)} {shape}",
        gpu=gpu,
        capability=capability,
        driver=_driver(),
        tensorrt=version,
        torch=torch.__version__,
        dtype=str(next(iter(weights.values())).dtype),
        ranges=order.ranges,
    )


def _driver() -> str:
    """The NVIDIA driver's version, or why it cannot be asked: either way the same until something changes."""
    try:
        import pynvml
    except ImportError:
        return "not known"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return str(error)


def _from_cache(folder: Path, key: EngineKey) -> Obtained | None:
    blob = load_engine(folder, key)
    if blob is None:
        return None
    try:
        names = tuple(WeightName(**entry) for entry in load_about(folder, key)["names"])
    except (KeyError, TypeError) as error:
        log.warning(
            "the list of weights beside a built %s is damaged (%s); it is built anew", key.graph, error
        )
        return None
    return Obtained(blob, names, cached=True)


def _make(
    order: Order,
    weights: Mapping[str, Tensor],
    folder: Path,
    on_progress: OnProgress,
    cancelled: Callable[[], bool],
) -> tuple[bytes, tuple[WeightName, ...]]:
    """Put the order into a folder of its own, let the workshop make it, and take the folder away again."""
    from safetensors.torch import save_file

    work: Path | None = None
    try:
        work = _work_folder(folder)
        save_file(dict(weights), work / WEIGHTS_FILE)
        order.write(work)
        names = _run_workshop(work, order.part, on_progress, cancelled)
        return (work / ENGINE_FILE).read_bytes(), names
    except OSError as error:
        raise SdbridgeError("SDB-TENSORRT-BUILD", f"building {order.part} needs disk: {error}") from None
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _work_folder(folder: Path) -> Path:
    """Beside the cache; where that cannot be written, in the system's place for passing things."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_left_behind(folder)
        return Path(tempfile.mkdtemp(prefix=f"work-{os.getpid()}-", dir=folder))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sdbridge-tensorrt-"))


def _clear_left_behind(folder: Path) -> None:
    """Orders of processes that were killed hold a model's weights each: gigabytes."""
    for left in folder.glob("work-*-*"):
        owner = left.name.split("-")[1]
        if not owner.isdigit() or not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _run_workshop(
    work: Path, part: str, on_progress: OnProgress, cancelled: Callable[[], bool]
) -> tuple[WeightName, ...]:
    command = [sys.executable, "-m", __name__.rpartition(".")[0] + ".workshop", str(work)]
    said: dict[str, Any] = {}
    with (work / "log").open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        threading.Thread(target=_end_when, args=(process, cancelled), daemon=True).start()
        try:
            assert process.stdout is not None
            for line in _lines(process.stdout):
                if "progress" in line:
                    on_progress(Progress(**line["progress"]))
                else:
                    said |= line
            process.wait()
        finally:
            process.kill()
            process.wait()
            for end in (process.stdin, process.stdout):
                if end is not None:
                    end.close()
    if cancelled():
        raise SdbridgeError("SDB-TENSORRT-BUILD", f"building {part} was cancelled")
    if "names" not in said:
        tail = (work / "log").read_text(errors="replace").strip().splitlines()[-1:]
        why = said.get("error") or f"exit code {process.returncode} {' '.join(tail)[:200]}"
        raise SdbridgeError("SDB-TENSORRT-BUILD", f"building {part} failed: {why}")
    return tuple(WeightName(**entry) for entry in said["names"])


def _end_when(process: subprocess.Popen[bytes], cancelled: Callable[[], bool]) -> None:
    """End the workshop soon after ``cancelled``; it is silent for a minute while it exports."""
    while process.poll() is None:
        if cancelled():
            process.kill()
        time.sleep(0.2)


def _lines(stream: IO[bytes]) -> Any:
    """JSON lines; what a library prints between them is left out."""
    for raw in stream:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
