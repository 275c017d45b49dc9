"""OSC packets: bytes to messages and back, trusting nothing in them.

What goes out is built by python-osc. What comes in is read here, because everything on that path is
hostile until proven otherwise: a wrong length, type or nesting is one narrow error, never a traceback.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pythonosc.osc_message_builder import OscMessageBuilder

LARGEST_DATAGRAM = 65_507  # bytes that fit in one UDP datagram
IMMEDIATELY = 1  # the timetag that means now
_DEEPEST_BUNDLE = 8
_BUNDLE = b"#bundle\x00"
_INT = struct.Struct(">i")
_FLOAT = struct.Struct(">f")
_LONG = struct.Struct(">q")
_LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
_DOUBLE = struct.Struct(">d")
_TIMETAG = struct.Struct(">Q")

Argument = bool | int | float | str | bytes | None


class OscDecodeError(ValueError):
    """Bytes that are no OSC packet; the text says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class OscMessage:
    """One address with its arguments. ``I`` (impulse) arrives as True, arrays are flattened."""

    address: str
    args: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class OscBundle:
    """Messages that belong together, and the NTP timetag they are dated with."""

    messages: tuple[OscMessage, ...]
    timetag: int = IMMEDIATELY


def decode(packet: bytes) -> list[OscBundle]:
    """The bundles of a packet in order, inner ones after their outer's own messages.

    A lone message is a bundle dated "immediately". Raises OscDecodeError.
    """
    found: list[OscBundle] = []
    if packet.startswith(_BUNDLE):
        _decode_bundle(packet, 0, len(packet), 1, found)
    else:
        found.append(OscBundle((_decode_message(packet, 0, len(packet)),)))
    return found


def _decode_bundle(packet: bytes, start: int, end: int, depth: int, found: list[OscBundle]) -> None:
    if depth > _DEEPEST_BUNDLE:
        raise OscDecodeError(f"bundles are nested deeper than {_DEEPEST_BUNDLE}")
    if end - start < 16:
        raise OscDecodeError("a bundle ends before its timetag")
    (timetag,) = _TIMETAG.unpack_from(packet, start + 8)
    messages: list[OscMessage] = []
    inner: list[tuple[int, int]] = []
    at = start + 16
    while at < end:
        if end - at < 4:
            raise OscDecodeError("a bundle ends inside a length")
        (size,) = _INT.unpack_from(packet, at)
        at += 4
        if size <= 0 or size > end - at:
            raise OscDecodeError(f"a bundle's element of {size} bytes where {end - at} are left")
        if packet.startswith(_BUNDLE, at):
            inner.append((at, at + size))
        else:
            messages.append(_decode_message(packet, at, at + size))
        at += size
    if messages:
        found.append(OscBundle(tuple(messages), timetag))
    for first, last in inner:
        _decode_bundle(packet, first, last, depth + 1, found)


def _decode_message(packet: bytes, start: int, end: int) -> OscMessage:
    if start >= end or packet[start] != 0x2F:
        raise OscDecodeError("an address must begin with /")
    address, at = _text(packet, start, end)
    if at >= end:
        return OscMessage(address)
    if packet[at] != 0x2C:
        raise OscDecodeError("the type tags must begin with ,")
    tags, at = _text(packet, at, end)
    args: list[Argument] = []
    for tag in tags[1:]:
        if tag == "f":
            value: Argument = _shortest(_number(_FLOAT, packet, at, end))
            at += 4
        elif tag == "i":
            value = _number(_INT, packet, at, end)
            at += 4
        elif tag in "sS":
            value, at = _text(packet, at, end)
        elif tag in _PLAIN:
            value = _PLAIN[tag]
        elif tag in "[]":
            continue
        else:
            value, at = _rare(tag, packet, at, end)
        args.append(value)
    return OscMessage(address, tuple(args))


_PLAIN: dict[str, Argument] = {"T": True, "F": False, "N": None, "I": True}


def _rare(tag: str, packet: bytes, at: int, end: int) -> tuple[Argument, int]:
    if tag == "d":
        return _number(_DOUBLE, packet, at, end), at + 8
    if tag == "h":
        return _number(_LONG, packet, at, end), at + 8
    if tag == "t":
        return _number(_TIMETAG, packet, at, end), at + 8
    if tag == "c":
        code = int(_number(_INT, packet, at, end))
        if not 0 <= code < 0xD800:
            raise OscDecodeError(f"{code} is no character")
        return chr(code), at + 4
    if tag in "rm":
        if end - at < 4:
            raise OscDecodeError(f"the message ends inside an argument of type {tag}")
        return bytes(packet[at : at + 4]), at + 4
    if tag == "b":
        size = int(_number(_INT, packet, at, end))
        at += 4
        if size < 0 or size > end - at:
            raise OscDecodeError(f"a blob of {size} bytes where {end - at} are left")
        return bytes(packet[at : at + size]), min(at + (size + 3) // 4 * 4, end)
    raise OscDecodeError(f"there is no type {tag!r}")


def _number(kind: struct.Struct, packet: bytes, at: int, end: int) -> int | float:
    if end - at < kind.size:
        raise OscDecodeError("the message ends inside a number")
    value: int | float = kind.unpack_from(packet, at)[0]
    return value


def _shortest(value: float) -> float:
    """What the sender meant: 0.3 arrives as 0.30000001192, and the shortest text for these 32 bits is 0.3."""
    if not math.isfinite(value):
        return value
    bits = _FLOAT.pack(value)
    tried = (float(f"{value:.{digits}g}") for digits in (7, 8))
    return next(
        (short for short in tried if abs(short) <= _LARGEST_FLOAT and _FLOAT.pack(short) == bits), value
    )


def _text(packet: bytes, at: int, end: int) -> tuple[str, int]:
    """UTF-8 up to the zero byte. Some senders forget the padding of the last string, so it may be short."""
    zero = packet.find(b"\x00", at, end)
    if zero < 0:
        raise OscDecodeError("a string has no end")
    try:
        text = packet[at:zero].decode("utf-8")
    except UnicodeDecodeError:
        raise OscDecodeError("a string is not UTF-8") from None
    return text, min(at + (zero - at) // 4 * 4 + 4, end)


def encode_message(address: str, args: Iterable[Argument] = (), booleans: bool = False) -> bytes:
    """One message, built by python-osc. Without ``booleans`` True and False go out as the integers 1 and 0.

    Many receivers (TouchDesigner's OSC In CHOP, older Max) take no T and F, all take integers.
    """
    builder = OscMessageBuilder(_sendable(address))
    for value in args:
        if isinstance(value, bool) and booleans:
            builder.add_arg(value, "T" if value else "F")
        elif isinstance(value, bool | int):
            wide = not -(2**31) <= value < 2**31
            builder.add_arg(int(value), "h" if wide else "i")
        elif isinstance(value, str):
            builder.add_arg(_sendable(value), "s")
        elif isinstance(value, float):
            builder.add_arg(value, "f" if abs(value) <= _LARGEST_FLOAT or not math.isfinite(value) else "d")
        elif not value:  # nothing, or an empty blob, which python-osc does not build
            builder.add_arg(None, "N")
        else:
            builder.add_arg(value, "b")
    return bytes(builder.build().dgram)


def encode_bundles(messages: Sequence[bytes], largest: int) -> list[bytes]:
    """As few bundles as hold all messages within ``largest`` bytes each.

    A message too large for that gets a datagram to itself, one too large for any is left out.
    """
    head = _BUNDLE + _TIMETAG.pack(IMMEDIATELY)
    result: list[bytes] = []
    parts: list[bytes] = []
    size = len(head)
    for message in messages:
        if len(message) > LARGEST_DATAGRAM - len(head) - 4:
            continue
        if parts and size + 4 + len(message) > largest:
            result.append(head + b"".join(parts))
            parts, size = [], len(head)
        parts.append(_INT.pack(len(message)) + message)
        size += 4 + len(message)
    if parts:
        result.append(head + b"".join(parts))
    return result


def _sendable(text: str) -> str:
    """Without what OSC strings cannot carry: zero bytes and halves of surrogate pairs."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
