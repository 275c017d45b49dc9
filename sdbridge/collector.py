"""How the interpreter is kept from stopping the frames: its garbage collector and its one lock."""

from __future__ import annotations

import gc
import sys

#: How long another thread, such as one that loads a LoRA, may keep a frame waiting for the interpreter.
SWITCH_S = 0.0005


def spare_the_collector() -> None:
    """What is here once the model is warm stays to the end, so it need not be searched for garbage.

    PyTorch and diffusers alone are 440,000 objects: a full search stops the frames for half a second.
    """
    gc.collect()
    gc.freeze()


def spare_the_frames() -> None:
    """Both, once the model is warm: for who drives an engine in a process that is not the engine's own."""
    sys.setswitchinterval(SWITCH_S)
    spare_the_collector()
