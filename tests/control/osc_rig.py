"""An OSC input without sockets: say a message, look at the store, the log and what was sent."""

from __future__ import annotations

from pathlib import Path

from pythonosc.osc_bundle import OscBundle as TheirBundle
from pythonosc.osc_message import OscMessage as TheirMessage
from pythonosc.osc_packet import OscPacket

from sdbridge.config import Config, CueConfig
from sdbridge.control.osc_decode import Argument, encode_message
from sdbridge.control.osc_input import OscInput
from sdbridge.control.osc_log import OscLogEntry
from sdbridge.control.osc_schedule import OscSchedule
from sdbridge.control.subscriptions import Address, Subscriptions
from tests.control.fake_view import FakeView

PAD: Address = ("127.0.0.1", 50001)
OTHER: Address = ("127.0.0.1", 50002)
WALL_S = 1_800_000_000.0


class Rig:
    """Everything behind the OSC socket, with time that stands until ``wait`` is called."""

    def __init__(self, folder: Path, config: Config | None = None, cues: tuple[CueConfig, ...] = ()) -> None:
        self.view = FakeView(folder, config, cues=cues)
        self.store, self.clock, self.show = self.view.store, self.view.clock, self.view.show
        self.sent: list[tuple[bytes, Address]] = []
        self.subscriptions = Subscriptions(self.store, self.clock, self.view.status, self._send)
        began = self.clock.now_ns()
        schedule = OscSchedule(self.clock, lambda: WALL_S + (self.clock.now_ns() - began) / 1e9)
        self.input = OscInput(self.view, self.subscriptions, self._send, schedule)

    def _send(self, packet: bytes, target: Address) -> None:
        self.sent.append((packet, target))

    def packet(self, packet: bytes, sender: Address = PAD) -> None:
        self.input.take(packet, sender)
        self.input.apply()

    def say(self, address: str, *args: Argument, sender: Address = PAD) -> OscLogEntry:
        """Send one message; what comes back is the log's line about it."""
        self.packet(encode_message(address, args, booleans=True), sender)
        return self.input.log.entries()[-1]

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.input.take_due()
        self.input.apply()
        self.show.tick()
        self.subscriptions.flush()

    def heard(self, target: Address) -> list[tuple[str, object]]:
        """What was sent to ``target`` since the last look, read by python-osc, an independent decoder."""
        mine = [packet for packet, to in self.sent if to == target]
        self.sent = [(packet, to) for packet, to in self.sent if to != target]
        return [pair for packet in mine for pair in read(packet)]

    def heard_values(self, target: Address) -> dict[str, object]:
        """As ``heard``, without the status topics."""
        return {a: v for a, v in self.heard(target) if not a.startswith("/sdbridge/status/")}


def read(packet: bytes) -> list[tuple[str, object]]:
    if TheirBundle.dgram_is_bundle(packet):
        messages = [timed.message for timed in OscPacket(packet).messages]
    else:
        messages = [TheirMessage(packet)]
    return [(m.address, m.params[0] if len(m.params) == 1 else tuple(m.params)) for m in messages]
