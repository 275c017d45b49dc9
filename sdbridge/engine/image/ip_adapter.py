"""Which pictures lend their style: an IP-Adapter with four style images, blended and live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor

from sdbridge.engine.image.beside import Beside
from sdbridge.engine.image.seams import ExtensionContext, RoleImages, Rows, StreamExtension, UnetCall
from sdbridge.engine.image.still_file import StillFile
from sdbridge.engine.image.style_files import StyleNetwork, cross_attention_layers, load_style, shrink
from sdbridge.engine.image.style_layers import StyleAttention, StyleRows, layer_factors
from sdbridge.engine.image.weight_file import mark_of, resolve
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

SLOTS = range(1, 5)


@dataclass
class _Slot:
    stills: StillFile  # a file's picture
    looks: Beside[Tensor]  # the tokens of the picture
    keeps: Beside[bytes]  # the grabbed picture, packed
    source: str = "off"
    file: str = ""
    weight: float = 1.0
    grab: bool = False
    picture: Tensor | None = None  # [1, 3, h, w] of the file
    grabbed: Tensor | None = None  # [1, 3, h, w] of the live input
    looked_at: Tensor | None = None  # the picture that ``tokens`` were made of, or are being made of
    tokens: Tensor | None = None  # [1, T, D]
    keepsake: bytes = b""  # the grabbed picture, for an engine in this one's place
    to_keep: Tensor | None = None  # grabbed and not packed yet
    missing: bool = False

    @property
    def rests(self) -> bool:
        """Whether it wants nothing, and nothing is on its way for it."""
        busy = self.stills.busy or self.looks.busy or self.keeps.busy or self.to_keep is not None
        return self.source == "off" and not (self.file or self.grab or busy)

    @property
    def still(self) -> Tensor | None:
        return {"file": self.picture, "grab": self.grabbed}.get(self.source)


class StyleImages(StreamExtension):
    """Lets cross-attention also look at style images.

    Several images are blended by the weighted mean of their tokens, so that a fade between two
    keeps every tensor's shape. The style reaches all rows at once: it belongs to the stream, not to
    a frame. Scale and type are written in place; at scale 0 the picture is the one without style.
    """

    name = "style"
    parameters = ("style_", "style.")

    def __init__(self, context: ExtensionContext) -> None:
        self._context = context
        self._networks: Beside[StyleNetwork] = Beside(context, "Style model")
        self._slots = {
            n: _Slot(
                StillFile(context, f"Style image {n}", _as_style),
                Beside(context, f"Style image {n}"),
                Beside(context, f"Style image {n}"),
            )
            for n in SLOTS
        }
        self._model = ""
        self._encoder = ""
        self._loaded = ("", "")
        self._refused = False  # the adapter or encoder that is set could not be used
        self._scale = 0.6
        self._type = "linear"
        self._network: StyleNetwork | None = None
        self._rows: StyleRows | None = None
        self._names: list[str] = []
        self._layers: list[StyleAttention] = []
        self._blend: tuple[tuple[Tensor, float], ...] = ()
        self._scales_stale = True
        self._rests = False  # nothing comes of it before something is set

    @property
    def loads(self) -> int:
        return self._networks.loads + sum(s.stills.loads for s in self._slots.values())

    @property
    def loading(self) -> bool:
        return self._networks.busy or any(s.stills.busy or s.looks.busy for s in self._slots.values())

    # --- between frames ---

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        for name, value in changes.items():
            if name == "style_scale":
                self._scale, self._scales_stale = float(value), True
            elif name == "style_type":
                self._type, self._scales_stale = str(value), True
            elif name.startswith("style."):
                _, number, field = name.split(".")
                self._set(self._slots[int(number)], field, value)
        model = str(changes.get("style_model", self._model)).strip()
        encoder = str(changes.get("style_encoder", self._encoder)).strip()
        again = self._refused and ("style_model" in changes or "style_encoder" in changes)
        if again:
            self._refused = False
        if (model, encoder) != (self._model, self._encoder) or again:
            self._model, self._encoder = model, encoder
            self._choose_network()
        slots = self._slots.values()
        idle = not (self._model or self._network or self._networks.busy)
        self._rests = idle and all(slot.rests for slot in slots)
        if self._rests:
            for slot in slots:
                slot.missing = False
        return ()

    def _set(self, slot: _Slot, name: str, value: Value) -> None:
        if name == "grab":
            slot.grab |= bool(value)
        elif name == "weight":
            slot.weight = float(value)
        elif name == "source":
            slot.source = str(value)
        elif name == "file" and (str(value).strip() != slot.file or slot.stills.failed):
            slot.file = str(value).strip()
            slot.stills.ask(slot.file)
            if not slot.file:
                slot.picture = None

    def _choose_network(self) -> None:
        self._networks.cancel()
        if not self._model:
            self._loaded = ("", self._encoder)
            self._detach()
            return
        if self._network is not None and (self._model, self._encoder) == self._loaded:
            return
        text, encoder, parts = self._model, self._encoder, self._context.model
        allow_pickle = bool(self._context.options.get("allow_pickle", False))

        def load() -> StyleNetwork:
            folder = resolve(encoder) if encoder else None
            return load_style(resolve(text), folder, parts, allow_pickle=allow_pickle)

        self._networks.start(load, lambda: mark_of(text, encoder))

    def frame_edge(self) -> bool:
        if self._rests:
            return False
        changed = False
        network = self._networks.poll()
        if network is not None and network.thing is None:
            self._refused = True
        elif network is not None and network.thing is not None:
            self._loaded, self._refused = (self._model, self._encoder), False
            self._attach(network.thing)
            changed = True
        for slot in self._slots.values():
            still = slot.stills.poll(watch=slot.source == "file")
            if still is not None and still.thing is not None:
                slot.picture, changed = still.thing, True
            tokens = slot.looks.poll()
            if tokens is not None:
                slot.tokens = tokens.thing
                changed = True
            self._look(slot)
            self._keep(slot)
        return changed

    def _look(self, slot: _Slot) -> None:
        """Have the slot's still picture encoded beside the loop, once."""
        network, still = self._network, slot.still
        if slot.source == "input" or still is slot.looked_at:
            return
        slot.looks.cancel()
        slot.looked_at = still if network is not None else None
        if still is None:
            slot.tokens = None
        elif network is not None:
            slot.looks.start(lambda: network.tokens(still))

    def _keep(self, slot: _Slot) -> None:
        """Have the grabbed picture packed beside the loop, and take what came of it."""
        picture, slot.to_keep = slot.to_keep, None
        if picture is not None:
            slot.keeps.start(lambda: _packed(picture))
        packed = slot.keeps.poll()
        if packed is not None and packed.thing is not None:
            slot.keepsake = packed.thing

    def _attach(self, network: StyleNetwork) -> None:
        self._detach()
        parts = self._context.model
        layers = cross_attention_layers(parts.unet)
        self._names = [name for name, _ in layers]
        self._rows = StyleRows(len(layers), parts.device, parts.dtype)
        self._network = network
        for index, ((_, module), (to_key, to_value)) in enumerate(zip(layers, network.layers, strict=True)):
            layer = StyleAttention(module.processor, self._rows, index, to_key, to_value)
            module.processor = layer
            self._layers.append(layer)
        self._scales_stale = True

    def _detach(self) -> None:
        """Put the former processors back: what is removed leaves nothing behind."""
        layers = cross_attention_layers(self._context.model.unet) if self._layers else []
        for (_, module), layer in zip(layers, self._layers, strict=True):
            if module.processor is layer:
                module.processor = layer.former
        self._layers, self._names, self._blend = [], [], ()
        self._network = self._rows = None
        for slot in self._slots.values():
            slot.looks.cancel()
            slot.tokens = slot.looked_at = None

    # --- one frame ---

    def enter(self, roles: RoleImages, latent: Tensor) -> Sequence[None]:
        if self._rests:
            return (None,) * int(latent.shape[0])
        for slot in self._slots.values():
            if slot.grab and "main" in roles:
                slot.grabbed = slot.to_keep = _in_bytes(shrink(roles["main"][-1:, :3]))
                slot.grab = False
            if slot.source == "input" and self._network is not None:
                slot.missing = "style" not in roles
                slot.looked_at = None
                slot.tokens = None if slot.missing else self._network.tokens(shrink(roles["style"][-1:, :3]))
            else:
                slot.missing = slot.source != "off" and slot.still is None
        self._mix()
        return (None,) * int(latent.shape[0])

    def _mix(self) -> None:
        """Blend the slots' tokens and hand them to the layers, if anything about them changed."""
        network, rows = self._network, self._rows
        if network is None or rows is None:
            return
        slots = [s for s in self._slots.values() if s.source != "off" and s.weight > 0]
        wanted = tuple((slot.tokens, slot.weight) for slot in slots if slot.tokens is not None)
        rows.active = bool(wanted)
        same = len(wanted) == len(self._blend) and all(
            a[0] is b[0] and a[1] == b[1] for a, b in zip(wanted, self._blend, strict=True)
        )
        if wanted and not same:
            total = sum(weight for _, weight in wanted)
            blended = torch.zeros_like(network.none)
            for tokens, weight in wanted:
                blended = blended + tokens * (weight / total)
            both = torch.cat((blended, network.none))
            for layer in self._layers:
                layer.take(both)
            rows.tokens = int(both.shape[1])
        self._blend = wanted

    @property
    def steers(self) -> bool:
        return self._rows is not None and self._rows.active

    def unet_inputs(self, rows: Rows, call: UnetCall) -> UnetCall:
        mine = self._rows
        if mine is None or not mine.active:
            return call
        mine.guidance_rows = rows.guidance_rows
        if self._scales_stale:
            factors = layer_factors(self._names, self._context.model.family, self._type)
            mine.set_scales([self._scale * factor for factor in factors])
            self._scales_stale = False
        # The UNet does not read this. Accelerations tell calls apart by it: which layers, which rows.
        return replace(call, added_cond={**call.added_cond, mine.mark: mine.scales})

    @property
    def foreseeable(self) -> bool:
        """Not while it paints: its layers know the running call's rows only, and a capture reads them."""
        return self._rows is None or not self._rows.active

    def unused(self) -> tuple[str, ...]:
        found = [f"style.{n}.source" for n, slot in self._slots.items() if slot.missing and self._network]
        found += [
            f"style.{n}.file"
            for n, slot in self._slots.items()
            if self._network and slot.source == "file" and slot.stills.failed
        ]
        if self._refused:
            found.append("style_model")
        if self._network is None and any(slot.source != "off" for slot in self._slots.values()):
            found.append("style_scale")
        return tuple(found)

    def keepsakes(self) -> Mapping[str, bytes]:
        return {_grabbed(n): slot.keepsake for n, slot in self._slots.items() if slot.keepsake}

    def remember(self, keepsakes: Mapping[str, bytes]) -> None:
        for n, slot in self._slots.items():
            if _grabbed(n) in keepsakes:
                slot.keepsake = keepsakes[_grabbed(n)]
                slot.grabbed = _unpacked(slot.keepsake, self._context.model.device)

    def unload(self) -> None:
        self._networks.cancel()
        self._detach()
        for slot in self._slots.values():
            slot.stills.cancel()
            slot.keeps.cancel()
            slot.picture = slot.grabbed = slot.to_keep = None


def _as_style(picture: Tensor) -> Tensor:
    return shrink(picture[:, :3])


def _grabbed(number: int) -> str:
    return f"style.{number}.grabbed"


def _in_bytes(picture: Tensor) -> Tensor:
    """A new tensor of numbers that a byte can hold, so that a keepsake is the very picture."""
    return (picture * 255).round_().div_(255)


def _packed(picture: Tensor) -> bytes:
    return pack({"picture": (picture * 255).round().to(torch.uint8).cpu().contiguous()})


def _unpacked(keepsake: bytes, device: torch.device) -> Tensor:
    return unpack(keepsake)["picture"].to(device).float().div_(255)
