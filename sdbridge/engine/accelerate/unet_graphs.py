"""The UNet's calls from graphs: which graph is for which call, and what each frame's call runs by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate import beside as beside_frames
from sdbridge.engine.accelerate import precompile
from sdbridge.engine.accelerate.attention import Attend
from sdbridge.engine.accelerate.cuda_graph import cut_anywhere
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.flat_calls import brought, flat, unflat, with_brought
from sdbridge.engine.accelerate.graphs import Graphs, shapes_of
from sdbridge.engine.accelerate.hoisted import PARTS, Hoisted, Hoisting, Part
from sdbridge.engine.accelerate.packed_unet import PackedUnet, obstacle
from sdbridge.engine.accelerate.replay import Key, Reading, TensorCall
from sdbridge.engine.accelerate.unet_ops import PlainOps, UnetOps
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.seams import UnetCall

_KEPT_GRAPHS = 12


class UnetGraphs:
    """Packed where that can be; what depends on the text or the timesteps alone has graphs of its own, since
    it changes with those and not with the frame.
    """

    def __init__(self, model: LoadedModel, eager: Eager, graphs: Graphs, attend: Attend) -> None:
        self._model = model
        self._eager = eager
        self._graphs = graphs
        #: Operations on our own kernels, for one graph; None: there are none.
        self.make_fast: Callable[[], UnetOps] | None = None
        self._denoise: Key | None = None
        self._ahead: frozenset[Key] = frozenset()  # what is to be run later
        self._attention = [
            (name, module) for name, module in model.unet.named_modules() if hasattr(module, "processor")
        ]
        why = obstacle(model.unet)
        self._packed = None if why else PackedUnet(model.unet, PlainOps(attend))
        self.hoisting = None if self._packed is None else Hoisting(self._packed.packed)
        if why:
            graphs.say(f"the UNet runs unpacked: it has {why}")

    @property
    def packed(self) -> bool:
        """Whether the network has the usual parts."""
        return self._packed is not None

    # --- getting ready ---

    def prepare(self, call: UnetCall) -> None:
        key = self._denoise = self.key_of(call)
        if key is None:
            return
        bank = call.bank
        if bank is not None:
            for other in [other for other in self._graphs.by_key if other[0] == "unet"]:
                if other[1] not in (0, bank.generation) and other not in self._ahead:
                    self._graphs.drop(other)  # its feature bank is no more
        self._provide(key, call, self._graphs.streams("unet"))

    def foresee(self, *calls: UnetCall) -> bool:
        """Whether they run at full speed or never will. With a feature bank only packed ones are foreseen."""
        known = [(self.key_of(call), call) for call in calls if call.bank is None or self._packs(call)]
        wanted = [(key, call) for key, call in known if key is not None]
        self._ahead = frozenset(key for key, _ in wanted)
        for key, call in wanted:
            self._provide(key, call, beside=True)
        packed = [call for _, call in wanted if self._packs(call)]
        needed = [key for key, _ in wanted]
        needed += [self._part_key(part, call) for part in PARTS for call in packed]
        return all(self._graphs.ready(key) for key in needed)

    def is_wanted(self, key: Key) -> bool:
        """Whether frames run with it, or are to."""
        if key[0] in PARTS:
            return True
        if self._denoise is not None and 0 != key[1] == self._denoise[1]:
            return True  # of the feature bank in use: it may be seeded anew at any frame
        return key == self._denoise or key in self._ahead

    def key_of(self, call: UnetCall) -> Key | None:
        """By what the graph for such calls is known; None where there can be none."""
        if call.bank is not None and call.bank.seeding and not self._packs(call):
            return None  # one frame only, and not to be captured beside the stream
        why = self._obstacle(call)
        if why:
            self._graphs.say(f"the UNet runs operation by operation: {why}")
            return None
        names, tensors = flat(call)
        generation, seeding = (0, False) if call.bank is None else call.bank.key
        return ("unet", generation, seeding, names, self._packs(call), *shapes_of(tensors))

    def _provide(self, key: Key, call: UnetCall, beside: bool) -> None:
        if self._graphs.is_there(key):
            return
        if self._packs(call):
            self._provide_packed(key, call, beside)
        else:  # with a feature bank never beside: the modules write into it, trying too
            names, tensors = flat(call)
            run = cut_anywhere(_on_tensors(self._eager.run_denoise, call, names))
            self._graphs.provide(key, run, tensors, beside and call.bank is None)
        self._graphs.drop_oldest("unet", _KEPT_GRAPHS)

    def _packs(self, call: UnetCall) -> bool:
        return self._packed is not None and not PackedUnet.fits(call)

    def _provide_packed(self, key: Key, call: UnetCall, beside: bool) -> None:
        names, tensors = brought(call)
        packed, hoisting, graphs = self._packed, self.hoisting, self._graphs
        assert packed is not None and hoisting is not None
        hoisted = hoisting.of(call)
        for part in PARTS:
            part_key = self._part_key(part, call)
            if not graphs.is_there(part_key):
                graphs.provide(part_key, hoisting.bound(part, hoisted), hoisting.inputs(part, call), beside)
                graphs.drop_oldest(part, _KEPT_GRAPHS, though_wanted=True)
                if not beside:
                    hoisted.made_from.pop(part, None)  # capturing has run what fills it

        rehearse = _rehearsal(call)

        def plainly(*given: Any) -> Tensor:
            *tensors, hoisted = given
            return packed.run(with_brought(rehearse(), names, tuple(tensors)), known=hoisted.known)

        first, faster, spec = Reading(plainly, hoisted), None, None
        if self.make_fast is not None:
            fast = self.make_fast()  # each graph has buffers of its own

            def faster_call(*given: Any) -> Tensor:
                *tensors, hoisted = given
                return packed.run(with_brought(rehearse(), names, tuple(tensors)), fast, hoisted.known)

            faster, spec = Reading(faster_call, hoisted), precompile.unet_spec(self._model.unet, call)
        graphs.provide(key, first, tensors, beside, faster, spec)

    def _obstacle(self, call: UnetCall) -> str:
        """Why this call cannot be a graph, or ''."""
        if call.cross_attention:
            return "attention processors take arguments"
        for name, module in self._attention:
            processor = module.processor
            if getattr(processor, "graph_safe", False):
                continue
            if not type(processor).__module__.startswith("diffusers."):
                return f"{name} has a {type(processor).__name__}"
        return ""

    # --- frames ---

    def run(self, call: UnetCall) -> Tensor:
        graph = self._graphs.by_key.get(self._denoise) if self._denoise is not None else None
        if graph is None:
            return self._eager.run_denoise(call)
        if self.hoisting is not None and self._packs(call):
            self.hoisting.refreshed(call, lambda *made: self._make(call, *made))
            answer: Tensor = graph.run(brought(call)[1])
        else:
            answer = graph.run(flat(call)[1])
        return answer

    def room_for_sample(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The recorded call's own, where the last frame's was of this shape."""
        graph = self._graphs.by_key.get(self._denoise) if self._denoise is not None else None
        given: tuple[Tensor, ...] | None = getattr(graph, "inputs", None)
        fits = given is not None and given[0].shape == shape and given[0].dtype == dtype
        return given[0] if given is not None and fits else None

    def _make(self, call: UnetCall, part: Part, hoisted: Hoisted, tensors: tuple[Tensor, ...]) -> None:
        """By its graph, which was captured for this very ``hoisted``: there is one for such calls."""
        assert self.hoisting is not None
        graph = self._graphs.by_key.get(self._part_key(part, call))
        if graph is None:
            self.hoisting.bound(part, hoisted)(*tensors)
        else:
            graph.run(tensors)

    def _part_key(self, part: Part, call: UnetCall) -> Key:
        assert self.hoisting is not None
        return (part, self.hoisting.key(call), *shapes_of(self.hoisting.inputs(part, call)))

    def weights_changed(self) -> None:
        """What was made with them is made again for the next frame."""
        if self.hoisting is not None:
            self.hoisting.weights_changed()

    def close(self) -> None:
        self._denoise = None


def _rehearsal(call: UnetCall) -> Callable[[], UnetCall]:
    """The call to make now. Beside the stream nothing may be written where frames are read, unless a
    capture only notes it down: what runs there until then has a feature bank of its own.
    """
    if call.bank is None:
        return lambda: call
    frames_thread, own = threading.get_ident(), [call]

    def now() -> UnetCall:
        in_stream = threading.get_ident() == frames_thread
        if in_stream or beside_frames.only_noted(call.sample):
            own[:] = [call]
            return call
        if own[0] is call:
            own[:] = [replace(call, bank=call.bank and call.bank.rehearsal())]
        return own[0]

    return now


def _on_tensors(run: Callable[[UnetCall], Tensor], call: UnetCall, names: tuple[str, ...]) -> TensorCall:
    def on_tensors(*given: Tensor) -> Tensor:
        with beside_frames.capturing_for(tuple(call.added_cond)):
            return run(unflat(call, names, given))

    return on_tensors
