"""DMX in: one universe by Art-Net or sACN, its channels mapped to parameters in the config."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from dataclasses import dataclass

from sdbridge.clock import Clock
from sdbridge.config import DmxChannel, DmxSection
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.normalized import from_normalized
from sdbridge.parameters.table import ParameterTable

log = logging.getLogger(__name__)

ARTNET_PORT, SACN_PORT = 6454, 5568
_SOURCE_LOST_NS = 2_500_000_000  # E1.31: a source that is silent for so long is gone
_ACN = b"\x00\x10\x00\x00ASC-E1.17\x00\x00\x00"


@dataclass(frozen=True)
class DmxFrame:
    """The channels of one universe, first channel first, and who sent them with which priority."""

    universe: int
    levels: bytes
    sender: bytes = b""
    priority: int = 100
    ends: bool = False


def read_artnet(packet: bytes) -> DmxFrame | None:
    """An ArtDmx packet, or None for everything else that Art-Net sends."""
    if len(packet) < 20 or not packet.startswith(b"Art-Net\x00") or packet[8:10] != b"\x00\x50":
        return None
    (universe,) = struct.unpack_from("<H", packet, 14)
    (length,) = struct.unpack_from(">H", packet, 16)
    return DmxFrame(universe & 0x7FFF, packet[18 : 18 + min(length, 512)])


def read_sacn(packet: bytes) -> DmxFrame | None:
    """An E1.31 data packet with DMX levels, or None for everything else."""
    if len(packet) < 126 or not packet.startswith(_ACN):
        return None
    root, framing = struct.unpack_from(">I", packet, 18)[0], struct.unpack_from(">I", packet, 40)[0]
    if (root, framing, packet[117], packet[125]) != (4, 2, 2, 0):  # the last: start code 0, plain levels
        return None
    options = packet[112]
    if options & 0x80:  # preview: not meant for the stage
        return None
    (universe,) = struct.unpack_from(">H", packet, 113)
    (count,) = struct.unpack_from(">H", packet, 123)
    levels = packet[126 : 126 + min(max(count - 1, 0), 512)]
    return DmxFrame(universe, levels, packet[22:38], packet[108], bool(options & 0x40))


class DmxPatch:
    """Turns frames into parameter values. Only what moves is set, so that DMX shares with others."""

    def __init__(self, channels: tuple[DmxChannel, ...], universe: int, table: ParameterTable, clock: Clock):
        self._channels = channels
        self._universe = universe
        self._table = table
        self._clock = clock
        self._before: dict[DmxChannel, int] = {}
        self._sender = b""
        self._priority = 0
        self._heard_ns = -_SOURCE_LOST_NS

    def values_in(self, frame: DmxFrame) -> list[tuple[str, object]]:
        """The parameters that this frame moves."""
        if frame.universe != self._universe or not self._is_ours(frame):
            return []
        pairs: list[tuple[str, object]] = []
        for channel in self._channels:
            level = _level(channel, frame.levels)
            before = self._before.get(channel)
            if level is None or level == before:
                continue
            self._before[channel] = level
            row = self._table.find(channel.parameter)
            share = level / (65535 if channel.fine else 255)
            if row.kind == "trigger":
                half = 32768 if channel.fine else 128
                if level >= half and before is not None and before < half:
                    pairs.append((row.name, True))
            elif row.kind == "bool":
                pairs.append((row.name, share >= 0.5))
            else:
                pairs.append((row.name, from_normalized(row, share)))
        return pairs

    def _is_ours(self, frame: DmxFrame) -> bool:
        """Of several sACN sources the one with the highest priority counts, until it falls silent."""
        now = self._clock.now_ns()
        lost = now - self._heard_ns >= _SOURCE_LOST_NS
        if frame.sender != self._sender and not lost and frame.priority <= self._priority:
            return False
        if frame.ends:
            self._heard_ns = now - _SOURCE_LOST_NS
            return False
        self._sender, self._priority, self._heard_ns = frame.sender, frame.priority, now
        return True


class DmxInput:
    """Listens for the configured universe from ``start`` to ``close``."""

    def __init__(self, view: BridgeView) -> None:
        self._view = view
        self._config: DmxSection = view.config.dmx
        self._read = read_artnet if self._config.protocol == "artnet" else read_sacn
        self._patch = DmxPatch(self._config.channels, self._config.universe, view.store.table, view.clock)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def port(self) -> int:
        return 0 if self._socket is None else int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Bind and begin. Raises SDB-DMX-PORT."""
        port = ARTNET_PORT if self._config.protocol == "artnet" else SACN_PORT
        self._socket = _bind(self._view.config.lan, port, self._config)
        self._thread = threading.Thread(target=self._run, name="dmx", daemon=True)
        self._thread.start()
        log.info("DMX universe %d by %s", self._config.universe, self._config.protocol)

    def close(self) -> None:
        """May be called twice."""
        self._closing = True
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def take(self, packet: bytes, sender: str) -> None:
        """One datagram from the network."""
        frame = self._read(packet)
        pairs = self._patch.values_in(frame) if frame is not None else []
        if pairs:
            self._view.store.set_sequence(pairs, f"dmx:{sender}")

    def _run(self) -> None:
        assert self._socket is not None
        self._socket.settimeout(0.5)
        while not self._closing:
            try:
                packet, sender = self._socket.recvfrom(2048)
                self.take(packet, str(sender[0]))
            except OSError:
                continue  # the wait is over, or Windows reports an earlier answer that found nobody
            except Exception:  # edge: control; a fault in a subscriber must not end DMX
                log.exception("DMX goes on after a fault")


def _level(channel: DmxChannel, levels: bytes) -> int | None:
    """The level of a channel, None where the frame is too short for it."""
    last = channel.channel + (1 if channel.fine else 0)
    if last > len(levels):
        return None
    coarse = levels[channel.channel - 1]
    return coarse << 8 | levels[channel.channel] if channel.fine else coarse


def _bind(lan: bool, port: int, config: DmxSection) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lighting programs share this port
        udp.bind(("0.0.0.0" if lan else "127.0.0.1", port))
        if lan and config.protocol == "sacn":
            group = socket.inet_aton(f"239.255.{config.universe >> 8}.{config.universe & 255}")
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton("0.0.0.0"))
    except OSError as error:
        udp.close()
        raise SdbridgeError("SDB-DMX-PORT", f"UDP port {port} for {config.protocol}: {error}") from error
    return udp
