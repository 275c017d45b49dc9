"""What of a network depends on the text or the timesteps alone: made when those change, read by every frame.

The keys and values of the text in all cross-attention layers, and the time projections of all ResNets. They
lie in buffers, one of each for a number of rows and a length of text, which all graphs of such calls read
where they are, as they read weights: a frame in which nothing changed neither makes nor copies them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sdbridge.engine.accelerate import beside
from sdbridge.engine.accelerate.packed_weights import Known, Packed
from sdbridge.engine.accelerate.replay import Key, Reading
from sdbridge.engine.image.seams import UnetCall

Part = Literal["times", "text"]
PARTS: tuple[Part, ...] = ("times", "text")


@dataclass(frozen=True, eq=False)
class _Source:
    """What something was made from. ``things`` are held, so that the same object means the same thing."""

    values: tuple[object, ...]
    things: tuple[object, ...]

    def same(self, other: _Source | None) -> bool:
        return (
            other is not None
            and self.values == other.values
            and len(self.things) == len(other.things)
            and all(mine is theirs for mine, theirs in zip(self.things, other.things, strict=True))
        )


class Hoisted:
    """Both, for one number of rows and length of text, and what they were made from last."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.made_from: dict[Part, _Source | None] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Where they lie: these tensors never move."""
        return self.known.times, self.known.text


class Hoisting:
    """A packed network's. All of it belongs to the frames' thread, but for what ``writing`` gives."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        #: Those that a graph reads, or will read: while one does, there is no second for such calls.
        self._hoisted: WeakValueDictionary[Key, Hoisted] = WeakValueDictionary()
        self._written = 0  # times that weights were
        self.made: Counter[Part] = Counter()  # how often each was, for tests

    def of(self, call: UnetCall) -> Hoisted:
        """Where they are for calls like this one. Lives as long as somebody holds it: what reads it does."""
        key = self.key(call)
        hoisted = self._hoisted.get(key)
        if hoisted is None:
            hoisted = self._hoisted[key] = Hoisted(self._packed.room(call))
        return hoisted

    @staticmethod
    def key(call: UnetCall) -> Key:
        """What calls have in common that share them."""
        return (*call.encoder_hidden_states.shape, call.sample.dtype)

    def inputs(self, part: Part, call: UnetCall) -> tuple[Tensor, ...]:
        """What ``writing`` is given for this call."""
        return (call.encoder_hidden_states,) if part == "text" else self._packed.times_from(call)

    def writing(self, part: Part) -> Callable[..., Tensor]:
        """The call, on its ``inputs`` and a ``Hoisted``, that fills that one's part."""
        packed, text = self._packed, part == "text"  # nothing of ours, which a recorded call would keep

        def write(*given: Any) -> Tensor:
            *tensors, hoisted = given
            lying = hoisted.known.text if text else hoisted.known.times
            # Beside the stream nothing is written where frames read, unless a capture only notes it down.
            tried = beside.works_beside() and not beside.only_noted(lying)
            into = torch.empty_like(lying) if tried else lying
            (packed.write_text if text else packed.write_times)(into, *tensors)
            return into

        return write

    def bound(self, part: Part, hoisted: Hoisted) -> Reading:
        """The same for this ``hoisted``, as a call on its ``inputs`` alone."""
        return Reading(self.writing(part), hoisted)

    def refreshed(self, call: UnetCall, make: Callable[[Part, Hoisted, tuple[Tensor, ...]], Any]) -> Hoisted:
        """As this call wants it: ``make`` has each part written, from its inputs, that may have changed."""
        hoisted = self.of(call)
        for part in PARTS:
            source = self._source(part, call)
            if source is None or not source.same(hoisted.made_from.get(part)):
                hoisted.made_from[part] = None  # until it is made
                make(part, hoisted, self.inputs(part, call))
                hoisted.made_from[part] = source
                self.made[part] += 1
        return hoisted

    def weights_changed(self) -> None:
        """All of it is made again when it is asked for next."""
        self._written += 1

    def _source(self, part: Part, call: UnetCall) -> _Source | None:
        """What this call's part hangs on; None where nobody can tell whether it is as it was."""
        if part == "text":
            known = call.text_of is not None
            return _Source((self._written,), (call.text_of, call.encoder_hidden_states)) if known else None
        if not call.timesteps_host:
            return None
        return _Source((self._written, call.timesteps_host), self._packed.times_from(call)[1:])
