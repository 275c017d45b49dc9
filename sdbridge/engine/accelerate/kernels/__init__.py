"""May our own Triton kernels run here? (Nothing in this package but its modules imports triton.)"""

from __future__ import annotations

import importlib.util
import os


def available() -> tuple[bool, str]:
    """Whether Triton and a CUDA device it can compile for are here, and why not."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    if interpreted():
        return True, "Triton's interpreter"
    import torch

    if not torch.cuda.is_available():
        return False, "no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return False, f"compute capability {major}.{minor}; the kernels need 8.0"
    return True, f"Triton on {torch.cuda.get_device_name()}"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (tests on machines without a GPU)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
