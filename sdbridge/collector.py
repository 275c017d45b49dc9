"""How the garbage collector is kept from stopping the frames."""

from __future__ import annotations

import gc


def spare_the_collector() -> None:
    """What is here once the model is warm stays to the end, so it need not be searched for garbage.

    PyTorch and diffusers alone are 440,000 objects: a full search stops the frames for half a second.
    """
    gc.collect()
    gc.freeze()
