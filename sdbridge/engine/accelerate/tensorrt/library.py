"""Is TensorRT on this machine, and can it serve this device?"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

#: Kinds of torch device that TensorRT serves. Tests with a stand-in of its API add the CPU.
DEVICES = {"cuda"}
OLDEST = 10  # the names that we call are those of version 10


def find_tensorrt(device_type: str) -> tuple[ModuleType | None, str]:
    """The ``tensorrt`` module, and ''; or None, and why not."""
    if device_type not in DEVICES:
        return None, f"it needs an NVIDIA GPU and the model is on {device_type}"
    try:
        found = import_module("tensorrt")
        version = str(found.__version__)
        major = int(version.partition(".")[0])
    except (ImportError, OSError, AttributeError, ValueError) as error:
        return None, f"its library does not load: {error}"
    if major < OLDEST:
        return None, f"version {version} is here, {OLDEST} or later is needed"
    return found, ""
