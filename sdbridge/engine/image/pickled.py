"""What weights a pickle holds, read without running any code that may be in it."""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch

#: What torch raises on a pickle that is damaged or holds more than weights.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
)
#: How torch names what is no weight; its text goes on to advise loading that too, which nobody should.
_STRANGER = re.compile(r"GLOBAL (?:GLOBAL )?([\w.]+)")


class PickleRefusedError(ValueError):
    """Nothing was taken from the file; the text says why, to follow its name."""


def unpickle(path: Path) -> Any:
    """What torch saved at ``path``, weights only. Raises PickleRefusedError, or OSError.

    By its bytes, whatever it is called: handed a name, torch takes ``x.safetensors`` for safetensors.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except _UNREADABLE as error:
            raise PickleRefusedError(_reason(path, str(error))) from None


def _reason(path: Path, said: str) -> str:
    stranger = _STRANGER.search(said)
    if stranger is not None:
        return f"holds more than weights: {stranger[1]}, which is not loaded"
    return f"is cut short, damaged or no pickle of weights ({path.stat().st_size} bytes)"
