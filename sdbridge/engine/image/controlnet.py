"""Which control images bind the picture, how strongly and when: eight slots of networks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.image.beside import Beside
from sdbridge.engine.image.control_files import load_network
from sdbridge.engine.image.control_networks import Hint
from sdbridge.engine.image.control_practice import ControlPractice
from sdbridge.engine.image.control_slot import ControlMap, ControlSlot, Luggage, SharedNetworks
from sdbridge.engine.image.seams import ExtensionContext, RoleImages, Rows, StreamExtension, UnetCall
from sdbridge.engine.image.still_file import StillFile
from sdbridge.engine.image.stills import fill
from sdbridge.engine.image.weight_file import mark_of, resolve
from sdbridge.engine.interface import ResetKind
from sdbridge.engine.preprocess.base import Preprocessor, Settings
from sdbridge.engine.preprocess.canny import Canny
from sdbridge.engine.preprocess.registry import PREPROCESSORS, make_preprocessor
from sdbridge.frame import Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

SLOTS = range(1, 9)
_RESTS = "The slot rests, since another control image would mean something else; the output goes on."


class ControlNets(StreamExtension):
    """Adds the residuals of every enabled slot, each row with the control image of its own frame.

    ``control_alignment`` newest gives every row the latest control image instead. A slot at scale 0,
    disabled, or outside its start and end in every row costs nothing and changes nothing.

    Where calls are captured, a network is taken up, exchanged or let go of only when the calls that follow
    from it are; until then one that is no longer wanted runs on with nothing said.
    """

    name = "controlnet"
    parameters = ("controlnet.", "control_alignment", "control_output", "depth_model", "softedge_model")

    def __init__(self, context: ExtensionContext) -> None:
        self._context = context
        self._slots = {
            n: ControlSlot(
                n,
                Beside(context, f"ControlNet {n}"),
                Beside(context, f"ControlNet {n}'s preprocessor", meanwhile=_RESTS),
                StillFile(context, f"ControlNet {n}'s file"),
            )
            for n in SLOTS
        }
        self._live = tuple(self._slots.values())  # that a frame has to ask about anything
        self._shared = SharedNetworks()
        self._aligned = True
        self._output = 0
        self._network_of = {"depth": "", "softedge": ""}
        self._newest: tuple[Luggage, ...] = ()
        self._scales: dict[tuple[float, ...], Tensor] = {}
        self._image: Tensor | None = None  # black, for asking what is ready
        for slot in self._slots.values():
            self._choose_preprocessor(slot)
        self.take_up()

    @property
    def loads(self) -> int:
        """How often a file was asked for: no fader and no switch adds to it."""
        places = [place for s in self._slots.values() for place in (s.models, s.preprocessors, s.stills)]
        return sum(place.loads for place in places)

    @property
    def loading(self) -> bool:
        busy = (s.models.busy or s.preprocessors.busy or s.stills.busy for s in self._slots.values())
        return any(busy) or self.awaits is not None

    # --- between frames ---

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        # Held until the end, so that two slots can swap their networks without loading.
        held = [(slot, slot.kept or (slot.network, slot.make_map)) for slot in self._slots.values()]
        renewed: set[str] = set()
        for name, value in changes.items():
            if name == "control_alignment":
                self._aligned = value == "aligned"
            elif name == "control_output":
                self._output = int(value)
            elif name in ("depth_model", "softedge_model"):
                kind = name.removesuffix("_model")
                if self._network_of[kind] != value:
                    self._network_of[kind] = str(value)
                    renewed.add(kind)
            else:
                _, number, field_name = name.split(".")
                self._set(self._slots[int(number)], field_name, value)
        for slot in self._slots.values():
            if PREPROCESSORS[slot.preprocessor].network in renewed:
                self._choose_preprocessor(slot)
        for slot, (network, make_map) in held:
            if slot.models.busy and network is not None and make_map is not None:
                slot.kept = network, make_map
        del held
        self._live = tuple(self._slots.values())
        self._take_up_unseen()
        self._live = tuple(slot for slot in self._live if not slot.rests or self._shows(slot))
        return ()

    def _set(self, slot: ControlSlot, name: str, value: Value) -> None:
        if name in ("model", "file"):
            value = str(value).strip()
        again = (name == "file" and slot.stills.failed) or (name == "model" and slot.refused)
        if getattr(slot, name) == value and not again:
            return
        if name == "model":
            slot.refused = False
        setattr(slot, name, value)
        if name == "model":
            self._choose_network(slot)
        elif name == "preprocessor":
            if slot.refused:  # another one for the network that is there
                slot.kept = None
            self._choose_preprocessor(slot)
        elif name == "file":
            self._choose_still(slot)

    def _choose_network(self, slot: ControlSlot) -> None:
        slot.models.cancel()
        slot.kept = None
        if not slot.model:
            slot.network, slot.loaded, slot.still_maps = None, "", None
            return
        known = self._shared.networks.get(slot.model)
        if known is not None:
            slot.network, slot.loaded = known, slot.model
            return
        text, parts = slot.model, self._context.model
        slot.models.start(
            lambda: load_network(
                resolve(text), parts, accelerate=self._context.accelerate, allow_pickle=self._allow_pickle
            ),
            lambda: mark_of(text),
        )

    def _choose_preprocessor(self, slot: ControlSlot) -> None:
        slot.preprocessors.cancel()
        name = slot.preprocessor
        kind = PREPROCESSORS[name].network
        text = self._network_of.get(kind, "")
        if not kind or (kind == "softedge" and not text):
            slot.make_map = make_preprocessor(name, None, self._device, self._context.model.dtype)
            if isinstance(slot.make_map, Canny):
                slot.make_map.accelerate(self._context.accelerate)
            return
        known = self._shared.preprocessors.get(f"{name}:{text}")
        if known is not None:
            slot.make_map = known
            return
        device, dtype = self._device, self._context.model.dtype

        def load() -> Preprocessor:
            path: Path | None = resolve(text) if text else None
            return make_preprocessor(name, path, device, dtype, allow_pickle=self._allow_pickle)

        slot.make_map = None  # the former preprocessor's map would mean something else
        slot.preprocessors.start(load, lambda: mark_of(text))

    def _choose_still(self, slot: ControlSlot) -> None:
        slot.stills.ask(slot.file)
        slot.still_maps = None
        if not slot.file:
            slot.still = None

    @property
    def _device(self) -> torch.device:
        return self._context.model.device

    @property
    def _allow_pickle(self) -> bool:
        return bool(self._context.options.get("allow_pickle", False))

    def frame_edge(self) -> bool:
        changed = False
        for slot in self._live:
            network = slot.models.poll()
            if network is not None and network.thing is None:
                slot.refused = True
            elif network is not None and network.thing is not None:
                # Another slot may have loaded the same model meanwhile: one copy is enough.
                slot.network = self._shared.networks.setdefault(slot.model, network.thing)
                slot.loaded, slot.refused = slot.model, False
                changed = True
            made = slot.preprocessors.poll()
            if made is not None and made.thing is not None:
                kind = PREPROCESSORS[slot.preprocessor].network
                key = f"{slot.preprocessor}:{self._network_of.get(kind, '')}"
                slot.make_map = self._shared.preprocessors.setdefault(key, made.thing)
                changed = True
            still = slot.stills.poll(watch=slot.source == "file")
            if still is not None and still.thing is not None:
                slot.still, slot.still_maps = still.thing, None
                changed = True
            if slot.kept and not (slot.models.busy or slot.preprocessors.busy or slot.refused):
                slot.kept = None
        self._take_up_unseen()
        return changed

    @property
    def awaits(self) -> Hashable:
        found = tuple((s.number, *map(id, s.wanted)) for s in self._live if s.wanted != s.taken_up)
        return found or None

    def take_up(self) -> None:
        for slot in self._live:
            slot.taken_up = slot.wanted

    def _take_up_unseen(self) -> None:
        """What no frame shows needs no waiting; where nobody else waits, nothing does."""
        for slot in self._live:
            network, _ = slot.wanted
            shown = network is not None or slot.taken_up[0] is not None or self._shows(slot)
            if not (shown and self._context.foresees):
                slot.taken_up = slot.wanted

    def _shows(self, slot: ControlSlot) -> bool:
        return slot.enabled and self._output == slot.number

    def practise(self, picture: Tensor, rows: int) -> None:
        image = picture[:, :3]
        for name, entry in PREPROCESSORS.items():
            if not entry.network and name != "canny":  # which is foreseen
                make_preprocessor(name, None, self._device, self._context.model.dtype)(image, Settings())
        control = ControlPractice(self._context.model.unet, rows)
        self._context.accelerate(control, "a ControlNet to come")(image)  # also where graphs are made

    def foresee(self, rows: Rows, call: UnetCall) -> UnetCall | None:
        per = self._context.model.pixels_per_latent
        shape = (rows.frames, 3, rows.source.shape[-2] * per, rows.source.shape[-1] * per)
        if self._image is None or self._image.shape != shape:
            rgba = torch.zeros(shape[0], 4, *shape[2:], device=self._device)  # laid out as pictures are
            self._image = rgba.contiguous(memory_format=torch.channels_last)[:, :3]
        ready = True
        for slot in self._live:
            network, make = slot.wanted
            if make is not None and (network is not None or self._shows(slot)):
                ask = getattr(make, "foresee", None)
                ready = (ask is None or ask(self._image, slot.settings)) and ready
            if network is not None:
                seen = network.foresee(call, self._image)
                ready, call = seen is not None and ready, seen or call
        return call if ready else None

    # --- one frame ---

    def enter(self, roles: RoleImages, latent: Tensor) -> Sequence[Luggage]:
        made: dict[tuple[Any, ...], Tensor] = {}
        frames = int(latent.shape[0])
        per = self._context.model.pixels_per_latent
        size = (int(latent.shape[-2]) * per, int(latent.shape[-1]) * per)
        luggage: list[dict[int, ControlMap]] = [{} for _ in range(frames)]
        for slot in self._live:
            if slot.taken_up[0] is not None or self._shows(slot):
                maps = self._maps(slot, roles, frames, size, made)
                for frame, one in enumerate(maps):
                    luggage[frame][slot.number] = one
        self._newest = tuple(luggage)
        return self._newest

    def _maps(
        self,
        slot: ControlSlot,
        roles: RoleImages,
        frames: int,
        size: tuple[int, int],
        made: dict[tuple[Any, ...], Tensor],
    ) -> tuple[ControlMap, ...]:
        """The slot's control image of each entering frame; none where its source is missing."""
        _, make = slot.taken_up
        if make is None:
            return ()
        if slot.source == "file":
            return self._still_maps(slot, make, frames, size)
        source: Role = "control" if slot.source == "control" else "main"
        slot.missing_source = source not in roles
        if slot.missing_source:
            return ()
        key = (source, id(make), slot.settings)
        if key not in made:
            made[key] = make(roles[source][:, :3], slot.settings)
        return self._with_hints(slot, made[key])

    def _still_maps(
        self, slot: ControlSlot, make: Preprocessor, frames: int, size: tuple[int, int]
    ) -> tuple[ControlMap, ...]:
        """A still needs its map only once, until something about it changes."""
        slot.missing_source = slot.still is None
        if slot.still is None:
            return ()
        key = (size, make, slot.settings, slot.taken_up[0])
        if slot.still_maps is None or slot.still_maps[0] != key:
            image = make(fill(slot.still[:, :3], *size), slot.settings)
            slot.still_maps = (key, self._with_hints(slot, image))
        return slot.still_maps[1] * frames

    def _with_hints(self, slot: ControlSlot, image: Tensor) -> tuple[ControlMap, ...]:
        network, _ = slot.taken_up
        if network is None:
            return tuple(ControlMap(one, None, ()) for one in image)
        hints = network.hint(image)
        return tuple(ControlMap(one, network, hint) for one, hint in zip(image, hints, strict=True))

    @property
    def steers(self) -> bool:
        return any(slot.taken_up[0] is not None for slot in self._live)

    def unet_inputs(self, rows: Rows, call: UnetCall) -> UnetCall:
        for slot in self._live:
            network, _ = slot.taken_up
            if network is None:
                continue
            leaving = slot.wanted[0] is None  # it says nothing more, but the calls keep their shape
            found = [self._hint(slot, rows, row) for row in range(rows.count)]
            scales = tuple(
                slot.scale if hint is not None and _within(slot, rows.fraction[row]) and not leaving else 0.0
                for row, hint in enumerate(found)
            )
            slot.misses = "" if any(scales) else _missed(slot, rows)
            present = next((hint for hint in found if hint is not None), None)
            if present is None or not (any(scales) or leaving):
                continue
            hints = [found[row] or present for row in rows.mirrors]
            scale = self._scale_of(tuple(scales[row] for row in rows.mirrors), call.sample.dtype)
            call = network.add(call, hints, scale)
        return call

    def _hint(self, slot: ControlSlot, rows: Rows, row: int) -> Hint | None:
        """What the slot's network made of the row's frame; None if that frame came before the network."""
        luggage: Luggage | None = rows.luggage[row]
        if not self._aligned and self._newest:
            luggage = self._newest[row % rows.frames]
        one = luggage.get(slot.number) if luggage else None
        return one.hint if one is not None and one.network is slot.taken_up[0] else None

    def _scale_of(self, scales: tuple[float, ...], dtype: torch.dtype) -> Tensor:
        """``[B, 1, 1, 1]`` on the device; kept, so that a fader that rests sends nothing."""
        known = self._scales.get(scales)
        if known is None or known.dtype != dtype:
            if len(self._scales) >= 64:
                self._scales.clear()
            host = torch.tensor(scales, dtype=dtype).view(-1, 1, 1, 1)
            pinned = host.pin_memory() if self._device.type == "cuda" else host
            known = self._scales[scales] = pinned.to(self._device, non_blocking=True)
        return known

    def outputs(self, luggage: Sequence[Any]) -> Mapping[Role, Tensor]:
        chosen = [one.get(self._output) if one else None for one in luggage]
        maps = [one.image for one in chosen if one is not None]
        return {"control": torch.stack(maps)} if maps and len(maps) == len(luggage) else {}

    def unused(self) -> tuple[str, ...]:
        slots = self._slots.values()
        refused = (f"controlnet.{s.number}.model" for s in slots if s.refused)
        steer = [s for s in slots if s.steers]
        blind = (
            f"controlnet.{s.number}.preprocessor"
            for s in steer
            if s.make_map is None or (s.refused and s.kept and s.kept[1] is not s.make_map)
        )
        missing = (f"controlnet.{s.number}.source" for s in steer if s.missing_source)
        unread = (f"controlnet.{s.number}.file" for s in steer if s.source == "file" and s.stills.failed)
        outside = (f"controlnet.{s.number}.{s.misses}" for s in steer if s.misses)
        shown = any(self._output in maps for maps in self._newest)
        none = ("control_output",) if self._output and not shown else ()
        return (*refused, *blind, *missing, *unread, *outside, *none)

    def reset(self, how: ResetKind) -> None:
        self._newest = ()

    def unload(self) -> None:
        for slot in self._slots.values():
            for place in (slot.models, slot.preprocessors, slot.stills):
                place.cancel()
            slot.network = slot.make_map = slot.still = slot.still_maps = None
            slot.taken_up, slot.kept = (None, None), None
        self._image = None
        self._newest = ()
        self._scales.clear()


def _within(slot: ControlSlot, fraction: float) -> bool:
    """start and end are shares of the denoising; an end of 1 includes the last step."""
    return slot.start <= fraction and (fraction < slot.end or slot.end >= 1.0)


def _missed(slot: ControlSlot, rows: Rows) -> str:
    """Which of start and end no row comes to; neither where something else silences the slot."""
    fractions = rows.fraction[: rows.count]
    if any(_within(slot, fraction) for fraction in fractions):
        return ""
    return "start" if all(fraction < slot.start for fraction in fractions) else "end"
