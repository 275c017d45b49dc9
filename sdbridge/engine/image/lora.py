"""How much of which LoRA is in the model: eight slots, each a fader over products made beforehand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from sdbridge.engine.image.beside import Beside
from sdbridge.engine.image.lora_files import LoraProducts, load_lora
from sdbridge.engine.image.lora_names import TensorNames
from sdbridge.engine.image.seams import ExtensionContext, StreamExtension
from sdbridge.engine.image.weight_file import mark_of, resolve
from sdbridge.engine.image.weights import Layer, WeightStore
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

log = logging.getLogger(__name__)
SLOTS = range(1, 9)
#: So many names of keys without a place are said on the page; all of them are in the log.
NAMED_KEYS = 8


@dataclass(eq=False)
class _Slot:
    beside: Beside[LoraProducts]
    file: str = ""  # what was asked for last
    loaded: str = ""  # what ``lora`` came from
    refused: bool = False  # the file that is set could not be used
    weight: float = 1.0
    lora: LoraProducts | None = None


class LoraSlots(StreamExtension):
    """Writes ``base + sum(weight * product)`` through the WeightStore whenever a fader moves.

    Moves of one frame are one write. A new file replaces the former only when its products are ready.
    """

    name = "lora"
    parameters = ("lora.",)

    def __init__(self, context: ExtensionContext, store: WeightStore) -> None:
        self._context = context
        self._store = store
        self._names = TensorNames(store, context.model.unet.config)
        self._slots = {slot: _Slot(Beside(context, f"LoRA {slot}")) for slot in SLOTS}
        self._coming: list[_Slot] = []  # whose file is being read, or failed and is looked after
        self._stale = False

    @property
    def loads(self) -> int:
        """How often a file was read."""
        return sum(slot.beside.loads for slot in self._slots.values())

    @property
    def loading(self) -> bool:
        return any(slot.beside.busy for slot in self._slots.values())

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        for name, value in changes.items():
            _, number, field = name.split(".")
            slot = self._slots[int(number)]
            if field == "weight":
                self._stale |= slot.lora is not None and slot.weight != value
                slot.weight = float(value)
            elif field == "file":
                file = str(value).strip()
                if file != slot.file or slot.refused:
                    slot.file, slot.refused = file, False
                    self._change_file(slot)
        return ()

    def _change_file(self, slot: _Slot) -> None:
        slot.beside.cancel()
        self._coming = [other for other in self._coming if other is not slot]
        if not slot.file:
            self._stale |= slot.lora is not None
            slot.lora, slot.loaded = None, ""
            return
        if slot.lora is not None and slot.file == slot.loaded:
            return
        file, store, names = slot.file, self._store, self._names
        allow_pickle = bool(self._context.options.get("allow_pickle", False))
        slot.beside.start(
            lambda: load_lora(resolve(file), store, names, allow_pickle=allow_pickle), lambda: mark_of(file)
        )
        self._coming.append(slot)

    def frame_edge(self) -> bool:
        for slot in self._coming[:]:
            arrived = slot.beside.poll()
            if not slot.beside.waits:
                self._coming.remove(slot)
            if arrived is None:
                continue
            if arrived.thing is None:
                slot.refused = True
                continue
            slot.lora, slot.loaded, slot.refused = arrived.thing, slot.file, False
            self._stale = True
            self._tell_unapplied(slot, arrived.thing)
        if not self._stale:
            return False
        self._stale = False
        self._write()
        return True

    def _write(self) -> None:
        layers = [
            Layer(slot.lora.products, slot.weight, slot.lora.rooms)
            for slot in self._slots.values()
            if slot.lora
        ]
        hints = [slot.lora.scheduler_hint for slot in self._slots.values() if slot.lora and slot.weight]
        self.scheduler_hint = next((hint for hint in hints if hint), "")
        written = self._store.write(layers)
        if not written:
            return
        self._context.weights_changed()
        if any(name.startswith("text_encoder") for name in written):
            self._context.prompts_changed()

    def _tell_unapplied(self, slot: _Slot, lora: LoraProducts) -> None:
        if not lora.unapplied:
            return
        names = ", ".join(lora.unapplied[:NAMED_KEYS])
        more = len(lora.unapplied) - NAMED_KEYS
        whose = f"{slot.beside.what}: {lora.path}"
        text = f"{whose} has {len(lora.unapplied)} keys without a place in this model: {names}"
        if more > 0:
            text += f" and {more} more, all of them in the log"
            for key in lora.unapplied:
                log.info("%s: not applied: %s", lora.path.name, key)
        partly = SdbridgeError(
            "SDB-LORA-KEYS", text, "Nothing to do if it looks right.", f"{lora.applied} layers were applied."
        )
        self._context.report(partly)

    def unused(self) -> tuple[str, ...]:
        slots = self._slots.items()
        refused = (f"lora.{n}.file" for n, slot in slots if slot.refused)
        empty = ((n, slot) for n, slot in slots if slot.lora is None and not slot.beside.busy)
        idle = (f"lora.{n}.weight" for n, slot in empty if slot.weight != 1)
        return (*refused, *idle)

    def unload(self) -> None:
        for slot in self._slots.values():
            slot.beside.cancel()
            slot.lora = None
        self._store.write(())
