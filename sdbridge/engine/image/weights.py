"""Who may write into a loaded model's tensors: the one WeightStore, in place, and back again bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: How long a reader beside the loop waits for a write under way, which takes a millisecond or two.
_PAUSE_S = 0.0005
#: Name of a tensor: the part and its parameter, as in ``unet.conv_in.weight`` or ``text_encoder.1....``.
Name = str


@dataclass(frozen=True)
class Layer:
    """What one weighted sum adds to: ``products`` by tensor name, times ``weight``.

    ``rooms`` is memory for bases that are not kept yet, made beside the loop; a write takes what it needs.
    """

    products: Mapping[Name, Tensor]
    weight: float
    rooms: dict[Name, Tensor] = field(default_factory=dict)


class WeightStore:
    """Owns the device tensors of a loaded model. Addresses never change: graphs and compiled code live on.

    ``write`` sets every touched tensor to ``base + sum of weight * product``. The base of a tensor is
    kept from the first time it is touched until nothing touches it any more; then it is copied back
    and let go. Copies that others derived from the tensors (hoisted, fused, quantised) are made anew
    after each write through what they registered. Call it from the engine thread only; ``like`` and
    ``base`` also beside the loop.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._tensors: dict[Name, Tensor] = {
            f"{part}.{name}": parameter.data
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }
        self._bases: dict[Name, Tensor] = {}
        self._sums: dict[Name, list[tuple[Tensor, float]]] = {}  # what each touched tensor now holds
        self._begun = self._ended = 0  # writes, so that a reader beside the loop knows of one under way
        self._let_go = 0  # bases that were copied back
        self._written: Any = None  # the device's mark of the last write's end
        self._derived: list[tuple[frozenset[Name] | None, Callable[[frozenset[Name]], None]]] = []
        self.version = 0  # grows with every write
        self.part_versions: dict[str, int] = dict.fromkeys(parts, 0)

    def __contains__(self, name: Name) -> bool:
        return name in self._tensors

    def names(self) -> Iterable[Name]:
        return self._tensors.keys()

    def tensor(self, name: Name) -> Tensor:
        """The live tensor: read it, never write it."""
        return self._tensors[name]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((tensor.device for tensor in self._tensors.values()), torch.device("cpu"))

    def like(self, name: Name, product: Tensor) -> Tensor:
        """``product`` on the device, in the tensor's dtype, shape and memory layout: ready for ``write``."""
        target = self._tensors[name]
        ready = torch.empty_like(target)
        ready.copy_(product.reshape(target.shape))
        return ready

    def base(self, name: Name) -> Tensor:
        """The tensor as the checkpoint has it, whatever is mixed in now: a float32 copy on its device.

        Meant for the loading thread, on whose stream it is copied. It waits for writes, never they for it.
        """
        while True:
            kept, let_go = self._bases.get(name), self._let_go
            if self._begun == self._ended:  # then what is kept was whole before the mark
                copy = self._copied(self._tensors[name] if kept is None else kept)
                # What is kept never changes; the tensor itself has not, if no base of it came meanwhile.
                if kept is not None or (name not in self._bases and let_go == self._let_go):
                    return copy
            time.sleep(_PAUSE_S)

    def _copied(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor.to(torch.float32, copy=True)
        stream = torch.cuda.current_stream(tensor.device)
        if self._written is not None:
            stream.wait_event(self._written)
        copy = tensor.to(torch.float32, copy=True)
        stream.synchronize()  # what is asked next, whether a write began meanwhile, must be true of the copy
        return copy

    def derive(
        self, refresh: Callable[[frozenset[Name]], None], sources: Iterable[Name] | None = None
    ) -> Callable[[], None]:
        """Call ``refresh`` with the names just written whenever one of ``sources`` (None: any) was.

        Returns the function that ends it.
        """
        entry = (None if sources is None else frozenset(sources), refresh)
        self._derived.append(entry)

        def end() -> None:
            if entry in self._derived:
                self._derived.remove(entry)

        return end

    @torch.no_grad()
    def write(self, layers: Iterable[Layer]) -> frozenset[Name]:
        """Make the model ``base + sum(weight * product)``; returns the names written.

        Only tensors whose sum differs from the last write are touched. A layer of weight 0 adds
        nothing at all, so that a fader at 0 is the base bit for bit.
        """
        self._begun += 1
        try:
            return self._write(layers)
        finally:
            self._ended = self._begun

    def _write(self, layers: Iterable[Layer]) -> frozenset[Name]:
        wanted: dict[Name, list[tuple[Tensor, float]]] = {}
        rooms: dict[Name, Tensor] = {}
        for layer in layers:
            rooms |= layer.rooms
            layer.rooms.clear()
            for name, product in layer.products.items():
                wanted.setdefault(name, []).append((product, layer.weight))
        changed = [
            name for name in wanted.keys() | self._sums.keys() if not self._holds(name, wanted.get(name))
        ]
        if not changed:
            return frozenset()
        self._keep_bases([name for name in changed if name not in self._bases], rooms)
        alone = {name: terms[0] for name, terms in wanted.items() if len(terms) == 1 and terms[0][1]}
        for name in changed:
            if name in alone:  # read once, written once: the fader of one LoRA, which moves with every frame
                product, weight = alone[name]
                torch.add(self._bases[name], product, alpha=weight, out=self._tensors[name])
        rest = [name for name in changed if name not in alone]
        if rest:
            torch._foreach_copy_([self._tensors[n] for n in rest], [self._bases[n] for n in rest])
            self._add({name: wanted.get(name, []) for name in rest})
        for name in changed:
            if name in wanted:
                self._sums[name] = wanted[name]
            else:
                self._let_go += 1
                del self._sums[name], self._bases[name]
        touched = frozenset(changed)
        self._mark(self._tensors[changed[0]])
        self.version += 1
        for part in {name.partition(".")[0] for name in touched}:
            self.part_versions[part] += 1
        for sources, refresh in tuple(self._derived):
            if sources is None or sources & touched:
                refresh(touched)
        return touched

    def _keep_bases(self, names: list[Name], rooms: Mapping[Name, Tensor]) -> None:
        """Allocating for hundreds of tensors takes the time of several frames; with room it is one copy."""
        roomy = [name for name in names if name in rooms]
        if roomy:
            torch._foreach_copy_([rooms[name] for name in roomy], [self._tensors[name] for name in roomy])
        for name in names:
            self._bases[name] = rooms[name] if name in rooms else self._tensors[name].clone()

    def keeps(self, name: Name) -> bool:
        """Whether the base is kept now, because something is mixed in; asked also beside the loop."""
        return name in self._bases

    def _mark(self, tensor: Tensor) -> None:
        if not tensor.is_cuda:
            return
        if self._written is None:
            self._written = torch.cuda.Event()
        self._written.record(torch.cuda.current_stream(tensor.device))

    def _holds(self, name: Name, wanted: list[tuple[Tensor, float]] | None) -> bool:
        """Whether the tensor already is this very sum."""
        present = self._sums.get(name)
        if present is None or wanted is None:
            return present is wanted
        return len(present) == len(wanted) and all(
            old[0] is new[0] and old[1] == new[1] for old, new in zip(present, wanted, strict=True)
        )

    def _add(self, sums: Mapping[Name, list[tuple[Tensor, float]]]) -> None:
        """Add the products, those of one weight together: few launches for hundreds of tensors."""
        for place in range(max((len(terms) for terms in sums.values()), default=0)):
            by_weight: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
            for name, terms in sums.items():
                if place < len(terms) and terms[place][1]:
                    targets, products = by_weight.setdefault(terms[place][1], ([], []))
                    targets.append(self._tensors[name])
                    products.append(terms[place][0])
            for weight, (targets, products) in by_weight.items():
                torch._foreach_add_(targets, products, alpha=weight)

    @property
    def bytes_of_bases(self) -> int:
        """Device memory that the kept bases take."""
        return sum(base.nbytes for base in self._bases.values())


def store_of(model: Any) -> WeightStore:
    """A store over the UNet and the text encoders of a loaded model: parts unet, text_encoder_1, ..."""
    parts = {"unet": model.unet}
    for index, encoder in enumerate(model.text_encoders, start=1):
        parts[f"text_encoder_{index}"] = encoder
    return WeightStore(parts)
