"""OSC over TCP: packets cut out of a byte stream, by length (OSC 1.0) or by SLIP (OSC 1.1)."""

from __future__ import annotations

import logging
import selectors
import socket
import struct
from collections.abc import Callable

from sdbridge.control.subscriptions import Address

log = logging.getLogger(__name__)

LARGEST_PACKET = 1_000_000
MOST_CONNECTIONS = 32
_END, _ESC, _ESC_END, _ESC_ESC = 0xC0, 0xDB, 0xDC, 0xDD
_LENGTH = struct.Struct(">I")


class OscFramingError(ValueError):
    """A stream that is no OSC; the connection is closed."""


class Unframer:
    """Takes bytes as they come, gives whole packets. The first byte tells which framing it is.

    A length below 16 MiB begins with a zero byte, SLIP with END or the packet itself (``/`` or ``#``).
    """

    def __init__(self) -> None:
        self.slip: bool | None = None
        self._buffer = bytearray()

    def feed(self, received: bytes) -> list[bytes]:
        """The packets that are complete now. Raises OscFramingError."""
        self._buffer += received
        if self.slip is None and self._buffer:
            first = self._buffer[0]
            if first not in (0, _END, 0x2F, 0x23):
                raise OscFramingError(f"a stream that begins with byte {first} is no OSC")
            self.slip = first != 0
        packets = self._cut_slip() if self.slip else self._cut_lengths()
        if len(self._buffer) > LARGEST_PACKET + 4:
            raise OscFramingError(f"a packet of more than {LARGEST_PACKET} bytes")
        return packets

    def _cut_lengths(self) -> list[bytes]:
        packets: list[bytes] = []
        at = 0
        while len(self._buffer) - at >= 4:
            (size,) = _LENGTH.unpack_from(self._buffer, at)
            if size > LARGEST_PACKET:
                raise OscFramingError(f"a packet of {size} bytes; {LARGEST_PACKET} are the most")
            if len(self._buffer) - at - 4 < size:
                break
            if size:
                packets.append(bytes(self._buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        del self._buffer[:at]
        return packets

    def _cut_slip(self) -> list[bytes]:
        *whole, rest = bytes(self._buffer).split(bytes((_END,)))
        self._buffer = bytearray(rest)
        return [_unescaped(part) for part in whole if part]


def frame(packet: bytes, slip: bool) -> bytes:
    """A packet as it goes onto the stream."""
    if not slip:
        return _LENGTH.pack(len(packet)) + packet
    escaped = packet.replace(bytes((_ESC,)), bytes((_ESC, _ESC_ESC)))
    escaped = escaped.replace(bytes((_END,)), bytes((_ESC, _ESC_END)))
    return bytes((_END,)) + escaped + bytes((_END,))


def _unescaped(part: bytes) -> bytes:
    return part.replace(bytes((_ESC, _ESC_END)), bytes((_END,))).replace(
        bytes((_ESC, _ESC_ESC)), bytes((_ESC,))
    )


class OscTcp:
    """Listens for OSC connections in the server's own selector; sending never waits."""

    def __init__(
        self, host: str, port: int, selector: selectors.BaseSelector, take: Callable[[bytes, Address], None]
    ) -> None:
        self._selector = selector
        self._take = take
        self._connections: dict[Address, tuple[socket.socket, Unframer]] = {}
        self._listener = socket.create_server((host, port), backlog=16)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for peer in list(self._connections):
            self._drop(peer)
        self._selector.unregister(self._listener)
        self._listener.close()

    def send(self, packet: bytes, peer: Address) -> bool:
        """Send to a connected peer; False if there is none of that address."""
        connection = self._connections.get(peer)
        if connection is None:
            return False
        framed = frame(packet, bool(connection[1].slip))
        try:
            sent = connection[0].send(framed)
        except OSError as error:
            log.info("OSC over TCP: %s:%d is gone: %s", *peer, error)
            self._drop(peer)
            return True
        if sent < len(framed):  # a peer that does not read would hold everyone else up
            log.warning("OSC over TCP: %s:%d does not keep up and was disconnected", *peer)
            self._drop(peer)
        return True

    def _accept(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except OSError:
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            log.warning("OSC over TCP: %s:%d refused, %d are connected", *peer, MOST_CONNECTIONS)
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[peer] = (connection, Unframer())
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))

    def _read(self, peer: Address) -> None:
        connection, unframer = self._connections[peer]
        try:
            received = connection.recv(65_536)
            packets = unframer.feed(received)
        except BlockingIOError:
            return
        except (OSError, OscFramingError) as error:
            log.warning("OSC over TCP: %s:%d was disconnected: %s", *peer, error)
            self._drop(peer)
            return
        for packet in packets:
            self._take(packet, peer)
        if not received:
            self._drop(peer)

    def _drop(self, peer: Address) -> None:
        connection = self._connections.pop(peer, None)
        if connection is not None:
            self._selector.unregister(connection[0])
            connection[0].close()
