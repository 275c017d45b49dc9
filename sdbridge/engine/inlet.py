"""The engine's side of the input slots: the newest frame of each role, gathered into chunks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sdbridge.frame import INPUT_ROLES, Chunk, Frame, Role
from sdbridge.slot import SharedSlot


class Inlet:
    """Takes frames as they come; main frames drive the ticks, other roles keep their newest frame."""

    def __init__(self, borrow: bool = False) -> None:
        self._borrow = borrow  # frames are looked at where they lie: only for engines that keep none
        self._slots: dict[Role, SharedSlot] = {}
        self._newest: dict[Role, Frame] = {}
        self._entries: list[Mapping[Role, Frame]] = []
        self._wanted = 1

    def attach(self, names: Mapping[str, str]) -> None:
        """Open the input slots in ``names`` that are new; one that is gone already has a successor."""
        for role in INPUT_ROLES:
            name = names.get(f"in:{role}")
            present = self._slots.get(role)
            if name is None or (present is not None and present.name.lstrip("/") == name.lstrip("/")):
                continue
            try:
                self._slots[role] = SharedSlot.attach(name)
            except FileNotFoundError:
                continue
            if present is not None:
                self._newest.pop(role, None)
                present.close()

    def want(self, frames: int) -> None:
        """How many main frames the next chunk takes."""
        self._wanted = max(1, frames)

    def take(self) -> Frame | None:
        """Look into every slot; the main frame that came, if one did."""
        fresh: Frame | None = None
        for role in INPUT_ROLES:
            slot = self._slots.get(role)
            frame = None
            if slot is not None:
                # A chunk of several keeps its first frames while the others come: those are copied.
                frame = slot.borrow() if self._borrow and self._wanted == 1 else slot.take()
            if frame is not None:
                self._newest[role] = frame
                fresh = frame if role == "main" else fresh
        return fresh

    def keep_only(self, width: int, height: int) -> None:
        """Forget frames of another size: they were on their way while the size changed."""
        self._newest = {r: f for r, f in self._newest.items() if (f.width, f.height) == (width, height)}
        self._entries = [e for e in self._entries if "main" in e and e["main"].width == width]

    def gather(self) -> Chunk | None:
        """Add the newest frames as an entry; the chunk, once it has all its entries."""
        self._entries.append(MappingProxyType(dict(self._newest)))
        if len(self._entries) < self._wanted:
            return None
        entries, self._entries = self._entries[-self._wanted :], []
        return Chunk(tuple(entries))

    def complete(self) -> Chunk | None:
        """The entries that wait for more, made a whole chunk by repeating the last; None if none wait."""
        if not self._entries:
            return None
        entries, self._entries = self._entries, []
        return Chunk(tuple(entries + [entries[-1]] * (self._wanted - len(entries))))

    def newest(self) -> Chunk | None:
        """The newest frames of all roles whether new or not, for engines that paint from the prompt."""
        return Chunk((MappingProxyType(dict(self._newest)),)) if "main" in self._newest else None

    def withdraw(self, role: Role) -> None:
        """Nothing comes in as ``role`` any more, and what came last is no longer there."""
        slot = self._slots.get(role)
        if slot is not None:
            slot.take()
        self._newest.pop(role, None)

    def forget(self) -> None:
        self._newest.clear()
        self._entries.clear()

    def close(self) -> None:
        self.forget()
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
