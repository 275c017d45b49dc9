"""OSC 1.0 packets in the few types that the component and the daemon exchange, and nothing else.

Inside TouchDesigner there is no python-osc, and one UDP socket of our own makes sender and subscriber
one and the same place, so that the daemon knows whose change an echo would be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

Argument = bool | int | float | str | bytes | None
Message = tuple[str, tuple[Argument, ...]]

#: macOS refuses larger datagrams unless told otherwise, and 8 KB passes everywhere.
LARGEST_BUNDLE = 8_192
_BUNDLE = b"#bundle\x00"
_IMMEDIATELY = b"\x00\x00\x00\x00\x00\x00\x00\x01"
_DEEPEST = 8


class OscError(ValueError):
    """Bytes that are no OSC packet."""


def encode_message(address: str, args: Iterable[Argument] = ()) -> bytes:
    """One message; True and False go out as 1 and 0, which every receiver takes."""
    tags = ","
    body = b""
    for value in args:
        if isinstance(value, bool | int):
            wide = not -(2**31) <= value < 2**31
            tags += "h" if wide else "i"
            body += struct.pack(">q" if wide else ">i", value)
        elif isinstance(value, float):
            tags += "f"
            body += struct.pack(">f", value)
        elif isinstance(value, str):
            tags += "s"
            body += _padded(value.replace("\x00", "").encode("utf-8", "replace"))
        elif value is None:
            tags += "N"
        else:
            tags += "b"
            body += struct.pack(">i", len(value)) + value + b"\x00" * (-len(value) % 4)
    return _padded(address.encode("utf-8", "replace")) + _padded(tags.encode("ascii")) + body


def encode_bundles(messages: Sequence[bytes], largest: int = LARGEST_BUNDLE) -> list[bytes]:
    """As few bundles as hold all messages in order; a message too large for that gets its own."""
    bundles: list[bytes] = []
    body = b""
    for message in messages:
        part = struct.pack(">i", len(message)) + message
        if body and 16 + len(body) + len(part) > largest:
            bundles.append(_BUNDLE + _IMMEDIATELY + body)
            body = b""
        body += part
    if body:
        bundles.append(_BUNDLE + _IMMEDIATELY + body)
    return bundles


def decode(packet: bytes) -> list[Message]:
    """The messages of a packet in order. Raises OscError."""
    return list(_elements(packet, 0))


def _elements(packet: bytes, depth: int) -> Iterator[Message]:
    if not packet.startswith(_BUNDLE):
        yield _message(packet)
        return
    if depth >= _DEEPEST or len(packet) < 16:
        raise OscError("a bundle that is nested too deep or cut short")
    at = 16
    while at < len(packet):
        size = int(_number(">i", packet, at))
        at += 4
        if size <= 0 or at + size > len(packet):
            raise OscError("a bundle's element has a wrong length")
        yield from _elements(packet[at : at + size], depth + 1)
        at += size


def _message(packet: bytes) -> Message:
    address, at = _text(packet, 0)
    if not address.startswith("/"):
        raise OscError("an address begins with /")
    if at >= len(packet):
        return address, ()
    tags, at = _text(packet, at)
    args: list[Argument] = []
    for tag in tags[1:]:
        value: Argument
        if tag in "ihfd":
            kind = {"i": ">i", "h": ">q", "f": ">f", "d": ">d"}[tag]
            value = _number(kind, packet, at)
            at += struct.calcsize(kind)
        elif tag in "sS":
            value, at = _text(packet, at)
        elif tag == "b":
            size = int(_number(">i", packet, at))
            if size < 0 or at + 4 + size > len(packet):
                raise OscError("a blob has a wrong length")
            value = packet[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4
        elif tag in "TFNI":
            value = {"T": True, "F": False, "N": None, "I": True}[tag]
        else:
            raise OscError(f"no type {tag!r}")
        args.append(value)
    return address, tuple(args)


def _number(kind: str, packet: bytes, at: int) -> int | float:
    try:
        value: int | float = struct.unpack_from(kind, packet, at)[0]
    except struct.error:
        raise OscError("a message ends inside a number") from None
    return value


def _text(packet: bytes, at: int) -> tuple[str, int]:
    end = packet.find(b"\x00", at)
    if end < 0:
        raise OscError("a string has no end")
    try:
        return packet[at:end].decode("utf-8"), at + (end - at) // 4 * 4 + 4
    except UnicodeDecodeError:
        raise OscError("a string is not UTF-8") from None


def _padded(data: bytes) -> bytes:
    return data + b"\x00" * (4 - len(data) % 4)
