"""What a start begins while Python still imports: weights are called from the disk, the GPU wakes."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path

from sdbridge.engine.interface import EngineConfig

log = logging.getLogger(__name__)

_LARGE = 1 << 20
#: Folders of a checkpoint that a stream may read, in the order in which it does.
_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae_tiny", "taesd", "taesdxl", "vae")


def call_weights(config: EngineConfig) -> None:
    """Have the system read the model's files into its memory; returns at once, and needs no torch."""
    if not hasattr(os, "posix_fadvise"):  # Windows and macOS read ahead by themselves, file by file
        return
    threading.Thread(target=_call, args=(Path(config.model).expanduser(),), name="call", daemon=True).start()


def wake_driver(config: EngineConfig) -> None:
    """Have NVIDIA's driver make the GPU's context while torch is still imported; returns at once.

    It is the card's primary context, which torch finds there and takes for its own. Where there is no such
    driver or card, or a torch that cannot use it, nothing happens.
    """
    kind, _, number = config.device.partition(":")
    if kind in ("auto", "cuda") and (not number or number.isdigit()) and _torch_knows_cuda():
        threading.Thread(target=_call_driver, args=(int(number or 0),), name="driver", daemon=True).start()


def wake_gpu(device: str) -> None:
    """Make the CUDA context and load cuBLAS and cuDNN, a second's work that leaves the interpreter free."""
    threading.Thread(target=_wake, args=(device,), name="wake", daemon=True).start()


def _torch_knows_cuda() -> bool:
    """Told by the libraries that lie there, not by importing it."""
    spec = PathFinder.find_spec("torch")
    places = (spec and spec.submodule_search_locations) or ()
    return any(next(Path(place).glob("lib/*torch_cuda*"), None) is not None for place in places)


def _call_driver(number: int) -> None:
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does before its first call
    device, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), number)
            or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        )
    except (OSError, AttributeError) as error:
        log.debug("no NVIDIA driver wakes: %s", error)
        return
    if failed:  # torch meets it too, and tells it
        log.debug("the driver does not wake: CUDA's error %d", failed)


def _call(model: Path) -> None:
    try:
        for path in files_of(model):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError as error:  # loading says it better, and soon
        log.debug("%s cannot be read ahead: %s", model, error)


def files_of(model: Path) -> list[Path]:
    """The large files that loading ``model`` will read first."""
    if model.is_file():
        return [model]
    found: list[Path] = []
    for part in _PARTS:
        weights = sorted((model / part).glob("*.safetensors"))
        whole = [path for path in weights if ".fp16" not in path.name]
        found += [path for path in whole or weights if path.stat().st_size >= _LARGE]
    return found


def _wake(device: str) -> None:
    import torch

    try:
        square = torch.ones(64, 64, device=device, dtype=torch.float16)
        picture = torch.ones(1, 64, 8, 8, device=device, dtype=torch.float16)
        torch.nn.functional.conv2d(picture, torch.ones(64, 64, 3, 3, device=device, dtype=torch.float16))
        (square @ square).cpu()
    except (RuntimeError, AssertionError) as error:  # loading meets it too, and tells it
        log.debug("the GPU does not wake: %s", error)
