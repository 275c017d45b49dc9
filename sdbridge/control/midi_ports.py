"""The system's MIDI devices: what a surface needs of them, and how mido gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sdbridge.control.midi_controls import MidiMessage


class MidiPorts(Protocol):
    """The system's MIDI devices, by name."""

    def names(self) -> Sequence[str]: ...
    def open(self, name: str, heard: Callable[[MidiMessage], None]) -> MidiPort: ...


class MidiPort(Protocol):
    """An open device, both ways where it has both."""

    def send(self, message: MidiMessage) -> None: ...
    def close(self) -> None: ...


class MidoPorts:
    """Devices through mido and python-rtmidi."""

    def names(self) -> Sequence[str]:
        import mido

        # Our own and the system's pass-through ports would send everything back to us.
        return [n for n in mido.get_input_names() if "through" not in n.lower() and "rtmidi" not in n.lower()]

    def open(self, name: str, heard: Callable[[MidiMessage], None]) -> MidiPort:
        import mido

        def on_message(message: Any) -> None:
            known = from_mido(message)
            if known is not None:
                heard(known)

        incoming = mido.open_input(name, callback=on_message)
        try:
            outgoing = mido.open_output(name) if name in mido.get_output_names() else None
        except (OSError, RuntimeError):
            outgoing = None
        return _MidoPort(incoming, outgoing)


class _MidoPort:
    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, message: MidiMessage) -> None:
        if self._outgoing is not None:
            self._outgoing.send(to_mido(message))

    def close(self) -> None:
        self._incoming.close()
        if self._outgoing is not None:
            self._outgoing.close()


def from_mido(message: Any) -> MidiMessage | None:
    if message.type == "control_change":
        return MidiMessage("cc", message.channel + 1, message.control, message.value)
    if message.type in ("note_on", "note_off"):
        value = message.velocity if message.type == "note_on" else 0
        return MidiMessage("note", message.channel + 1, message.note, value)
    if message.type == "pitchwheel":
        return MidiMessage("bend", message.channel + 1, 0, message.pitch + 8192)
    return None


def to_mido(message: MidiMessage) -> Any:
    import mido

    channel = message.channel - 1
    if message.kind == "cc":
        return mido.Message("control_change", channel=channel, control=message.number, value=message.value)
    if message.kind == "note":
        return mido.Message("note_on", channel=channel, note=message.number, velocity=message.value)
    return mido.Message("pitchwheel", channel=channel, pitch=message.value - 8192)
