"""Which kernels were measured to be the fastest on this card? For cards whose numbers we do not ship.

``sdbridge build`` measures what the configuration's calls asked for, with the card to itself; every start
afterwards takes what it found. Until then, and for shapes that were not measured, the defaults hold. What is
kept is bound to card, driver, torch, Triton and the kernels' sources; a damaged file is never trusted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sdbridge.engine.accelerate.kernels.linear_tuning import LinearTuning, MeasuredWays
from sdbridge.engine.accelerate.kernels.tuning import Progress as Tuned
from sdbridge.engine.accelerate.kernels.tuning import Tunable, Tuner, identity_of
from sdbridge.engine.accelerate.kernels.unet_conv_tuning import ConvTuning, MeasuredConvs
from sdbridge.engine.interface import Progress


class MeasuredKernels:
    """The picks for linear layers and convolutions: measured ones, else the defaults."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self.linear = MeasuredWays(tuner)
        self.conv = MeasuredConvs(tuner)

    @property
    def digest(self) -> str:
        """Tells one set of measured choices from another; '' while there are none."""
        choices = self._tuner.choices
        return (
            hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:16] if choices else ""
        )

    def missing(self) -> list[Tunable]:
        """What was asked for and never measured."""
        asked: list[Tunable] = [LinearTuning(problem) for problem in self.linear.asked]
        asked += [ConvTuning(problem) for problem in self.conv.asked]
        return [problem for problem in asked if self._tuner.choice(problem) is None]

    def measure(
        self,
        device: torch.device,
        tell: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> int:
        """Time what is missing, with the card to itself; gives how many problems that were."""
        missing = self.missing()
        began = clock()

        def on_tuned(tuned: Tuned) -> None:
            left_s = (clock() - began) / tuned.done * (tuned.total - tuned.done)
            best = f": {tuned.best.candidate}" if tuned.best is not None else ""
            tell(Progress("measure", tuned.done, tuned.total, f"{tuned.key}{best}", left_s))

        if missing:
            tell(Progress("measure", 0, len(missing), "Timing kernels on this card"))
            self._tuner.tune(missing, device, on_tuned)
        return len(missing)


def measured_on(device: torch.device, cache: Path) -> MeasuredKernels | None:
    """What was measured on this card; None on Hopper, whose table is shipped, and without CUDA."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) == (9, 0):
        return None
    identity = identity_of(device)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return MeasuredKernels(Tuner(cache / f"measured-{name}.json", identity))
