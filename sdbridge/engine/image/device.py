"""On which device and in which precision the model runs, and why."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sdbridge.engine.accelerate.cuda_graph import let_go
from sdbridge.errors import SdbridgeError

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Placement:
    """Device and dtype, with the sentence for the log. ``tiny_vae_dtype`` None: as the rest.

    ``trouble`` says why it is not the device that was asked for, or that is there; '' where it is.
    """

    device: torch.device
    dtype: torch.dtype
    why: str
    tiny_vae_dtype: torch.dtype | None = None
    trouble: str = ""

    @property
    def channels_last(self) -> bool:
        """Whether convolutions are faster with their channels innermost (not on Apple GPUs)."""
        return self.device.type != "mps"


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve ``auto``: CUDA before MPS before CPU; half precision on a GPU, float32 on the CPU.

    A GPU that cannot be used, asked for or not, is a line and a slower stream. Raises SDB-ENGINE-DEVICE for
    a device of another kind, SDB-ENGINE-DTYPE for an unknown dtype.
    """
    kind = device.split(":")[0]
    if kind not in ("auto", "cuda", "mps", "cpu"):
        raise SdbridgeError(
            "SDB-ENGINE-DEVICE", f"device {device!r} is not usable with torch {torch.__version__}"
        )
    there: dict[str, Callable[[], bool]] = {
        "cuda": _cuda_is_there,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    name, why, trouble = device, f"the configuration asks for {device}", ""
    if kind == "auto" or not there[kind]():
        kind = name = next(each for each, is_there in there.items() if is_there())
        why, trouble = _WHY[kind], _trouble(device, kind)
        if kind == "cuda":
            why += f" ({torch.cuda.get_device_name()})"
    if dtype != "auto" and dtype not in _DTYPES:
        raise SdbridgeError("SDB-ENGINE-DTYPE", f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    if dtype == "auto":
        chosen = torch.float32 if kind == "cpu" else torch.float16
    else:
        chosen = _DTYPES[dtype]
    # The tiny VAE is most of a small model's work; matrix units run it four times as fast in bfloat16,
    # half a step of an 8-bit picture away. The UNet stays exact.
    quick = kind == "cpu" and dtype == "auto" and _has_matrix_units()
    return Placement(torch.device(name), chosen, why, torch.bfloat16 if quick else None, trouble)


_WHY = {
    "cuda": "a CUDA GPU is there",
    "mps": "an Apple GPU is there",
    "cpu": "there is no CUDA or Apple GPU that torch can use",
}


def _trouble(asked: str, kind: str) -> str:
    """Why a model runs on ``kind``, where something else was asked for or a GPU is out of use; else ''."""
    said = _CUDA_SAYS[0] if _CUDA_SAYS and kind != "cuda" else ""
    if asked != "auto":
        what = f"device {asked} cannot be used with torch {torch.__version__}{f' ({said})' if said else ''}"
    elif said:
        what = f"a CUDA GPU cannot be used: {said}"
    else:
        return ""
    return f"{what}; the model runs on {kind} instead"


#: What torch said when it was first asked for CUDA, such as that the driver is too old: it says so once.
_CUDA_SAYS: list[str] = []


def _cuda_is_there() -> bool:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        able = torch.cuda.is_available()
    _CUDA_SAYS.extend(" ".join(str(each.message).split())[:200] for each in said[:1])
    return able


_ON_CUDA: weakref.WeakSet[Any] = weakref.WeakSet()


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both name one device: without a number the first is meant, while its tensors say the number."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def take_device(engine: object, device: torch.device) -> None:
    """``engine`` runs there from now on, until ``give_back_memory``."""
    if device.type == "cuda":
        _ON_CUDA.add(engine)


def give_back_memory(engine: object) -> None:
    """Let go what PyTorch keeps of an engine that let go of its own: freed blocks, and cuBLAS's workspaces.

    PyTorch has one workspace (8 to 36 MB) for each stream that ever multiplied, and keeps it for ever; every
    load has new streams. Captured graphs have its address, so it goes with the last engine of the process.
    """
    _ON_CUDA.discard(engine)
    let_go()
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # there since 1.13, but no public name
    if clear is not None and not _ON_CUDA:
        clear()
    torch.cuda.empty_cache()


def _has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (Intel AMX)."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported()) if supported is not None else False


def gpu_load(device: torch.device) -> float:
    """How busy the card was lately, 0 to 1, as its driver says (NVML); 0 where that cannot be asked."""
    try:
        return torch.cuda.utilization(device) / 100.0
    except (ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or a driver without NVML
        return 0.0
