"""A ControlNet replayed from graphs: what a frame brings apart from what hangs on text or timesteps alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdbridge.engine.accelerate.graphs import shapes_of
from sdbridge.engine.accelerate.hoisted import PARTS, Hoisted, Hoisting, Part
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet, Residuals
from sdbridge.engine.accelerate.replay import Key, Replayed, TensorCall
from sdbridge.engine.accelerate.unet_ops import UnetOps
from sdbridge.engine.image.control_networks import ControlCall
from sdbridge.engine.image.seams import UnetCall

#: Makes a ``Replayed`` of a call, what it is called in a log, and the same call on kernels of our own if any.
Replay = Callable[[TensorCall, str, TensorCall | None], Replayed]


class PlainControl:
    """One that runs as it is: a call on tensors, no matter whose they are."""

    def __init__(self, run: Replayed) -> None:
        self._run = run

    def __call__(self, *tensors: Tensor, of: UnetCall | None = None) -> Any:
        return self._run(*tensors)

    def foresee(self, *tensors: Tensor) -> bool:
        """See ``Replayed``."""
        return self._run.foresee(*tensors)

    @property
    def captured(self) -> bool:
        """Whether calls of the last one's shape come from a graph."""
        return self._run.captured


class PackedControl:
    """One that runs packed: the way of sample and control image in one graph, the rest in others."""

    def __init__(
        self, packed: PackedControlNet, name: str, replay: Replay, make_fast: Callable[[], UnetOps] | None
    ) -> None:
        """``make_fast`` gives operations on our own kernels, for one graph; None: there are none."""
        self.hoisting = hoisting = Hoisting(packed.packed)
        ops_of: dict[Key, UnetOps] = {}

        def plainly(sample: Tensor, hint: Tensor, hoisted: Hoisted) -> Residuals:
            return packed.run(_only(sample), hint, known=hoisted.known)

        def faster(sample: Tensor, hint: Tensor, hoisted: Hoisted) -> Residuals:
            """With buffers for each shape: one is captured while the graph of another runs."""
            assert make_fast is not None
            shapes = shapes_of((sample, hint, *hoisted.tensors))
            if shapes not in ops_of:
                ops_of[shapes] = make_fast()
            return packed.run(_only(sample), hint, ops_of[shapes], hoisted.known)

        self._run = replay(plainly, name, None if make_fast is None else faster)
        self._parts: dict[Part, Replayed] = {
            part: replay(hoisting.writing(part), f"{name} ({part})", None) for part in PARTS
        }

    def __call__(self, *tensors: Tensor, of: UnetCall | None = None) -> Residuals:
        """Residuals at scale 1, overwritten by the next call. ``of`` as in ``ControlCall``."""
        call = ControlCall.unet_call(*tensors, of=of)
        hoisted = self.hoisting.refreshed(call, self._make)
        made: Residuals = self._run(call.sample, tensors[3], reads=hoisted)
        return made

    def _make(self, part: Part, hoisted: Hoisted, tensors: tuple[Tensor, ...]) -> None:
        self._parts[part](*tensors, reads=hoisted)

    def foresee(self, *tensors: Tensor) -> bool:
        """See ``Replayed``."""
        call = ControlCall.unet_call(*tensors)
        hoisted = self.hoisting.of(call)
        ready = [
            replayed.foresee(*self.hoisting.inputs(part, call), reads=hoisted)
            for part, replayed in self._parts.items()
        ]
        return all([*ready, self._run.foresee(call.sample, tensors[3], reads=hoisted)])

    @property
    def captured(self) -> bool:
        """Whether calls of the last one's shape come from a graph."""
        return self._run.captured


def _only(sample: Tensor) -> UnetCall:
    """A call of which nothing else is read."""
    return UnetCall(sample, sample[:0], sample[:0])
