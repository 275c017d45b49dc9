"""Packets against python-osc as an independent second opinion, and against bytes that are none."""

from __future__ import annotations

import contextlib
import math
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pythonosc.osc_bundle_builder import OscBundleBuilder
from pythonosc.osc_message import OscMessage as TheirMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from sdbridge.control.osc_decode import (
    LARGEST_DATAGRAM,
    OscDecodeError,
    OscMessage,
    decode,
    encode_bundles,
    encode_message,
)
from tests.control.osc_rig import read


def built(address: str, *args: tuple[str, object]) -> bytes:
    builder = OscMessageBuilder(address=address)
    for kind, value in args:
        builder.add_arg(value, kind)  # type: ignore[arg-type]  # their hints know fewer types
    return builder.build().dgram


def one(packet: bytes) -> OscMessage:
    (bundle,) = decode(packet)
    (message,) = bundle.messages
    return message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i", -5),
        ("f", 0.5),
        ("s", "ein Füchslein 夜"),
        ("d", 1e300),
        ("h", 2**40),
        ("T", True),
        ("F", False),
        ("N", None),
        ("b", b"abc"),
        ("s", ""),
        ("s", "abcd"),
        ("i", 2**31 - 1),
    ],
)
def test_every_type_that_python_osc_writes_is_read(kind: str, value: object) -> None:
    assert one(built("/a/b", (kind, value))) == OscMessage("/a/b", (value,))


def test_arrays_are_flattened_and_impulse_is_true() -> None:
    packet = b"/a\x00\x00,i[iI]\x00\x00" + struct.pack(">ii", 1, 2)
    assert one(packet).args == (1, 2, True)


def test_timetags_symbols_characters_midi_and_colours_are_read() -> None:
    packet = (
        b"/a\x00\x00,tScmr\x00\x00"
        + struct.pack(">Q", 7)
        + b"sym\x00"
        + struct.pack(">i", 65)
        + b"\x00\x90\x3c\x7f" * 2
    )
    assert one(packet).args == (7, "sym", "A", b"\x00\x90\x3c\x7f", b"\x00\x90\x3c\x7f")


def test_a_message_without_type_tags_has_no_arguments() -> None:
    assert one(b"/abc\x00\x00\x00\x00") == OscMessage("/abc")


def test_a_last_string_without_padding_is_taken() -> None:
    assert one(b"/a\x00\x00,s\x00\x00hello\x00").args == ("hello",)


def test_nested_bundles_keep_their_dates_and_order() -> None:
    inner = OscBundleBuilder(5.0)
    inner.add_content(OscMessageBuilder("/inner").build())
    outer = OscBundleBuilder(1)
    outer.add_content(OscMessageBuilder("/first").build())
    outer.add_content(inner.build())
    found = decode(outer.build().dgram)
    assert [[m.address for m in bundle.messages] for bundle in found] == [["/first"], ["/inner"]]
    assert found[0].timetag != found[1].timetag


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x00",
        b"abc",
        b"/a",
        b"/a\x00\x00i\x00\x00\x00",
        b"/a\x00\x00,i\x00\x00",
        b"/a\x00\x00,f\x00\x00\x00\x00",
        b"/a\x00\x00,s\x00\x00never ends",
        b"/a\x00\x00,Q\x00\x00",
        b"/\xff\xfe\x00,\x00\x00\x00",
        b"/a\x00\x00,s\x00\x00\xff\xff\x00\x00",
        b"/a\x00\x00,b\x00\x00\x7f\xff\xff\xff",
        b"/a\x00\x00,b\x00\x00\xff\xff\xff\xff",
        b"/a\x00\x00,c\x00\x00\x7f\xff\xff\xff",
        b"#bundle\x00",
        b"#bundle\x00" + b"\x00" * 8 + b"\x00\x00\x00",
        b"#bundle\x00" + b"\x00" * 8 + b"\x7f\xff\xff\xff",
        b"#bundle\x00" + b"\x00" * 8 + b"\x00\x00\x00\x00",
        b"#bundle\x00" + b"\x00" * 8 + b"\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_osc_are_one_narrow_error(packet: bytes) -> None:
    with pytest.raises(OscDecodeError):
        decode(packet)


def test_bundles_nested_without_end_are_refused() -> None:
    packet = b"/a\x00\x00,\x00\x00\x00"
    for _ in range(3000):
        packet = b"#bundle\x00" + struct.pack(">Qi", 1, len(packet)) + packet
    with pytest.raises(OscDecodeError, match="deeper"):
        decode(packet)


@given(st.binary(max_size=400))
@example(b"#bundle\x00" + b"\x00" * 8 + b"\x00\x00\x00\x10#bundle\x00" + b"\x00" * 8)
def test_no_bytes_raise_anything_else(packet: bytes) -> None:
    with contextlib.suppress(OscDecodeError):
        decode(packet)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_raises_nothing_else(position: int, value: int) -> None:
    args = (("i", 3), ("s", "text"), ("f", 0.5), ("b", b"blob"), ("T", True), ("d", 2.0))
    packet = bytearray(built("/sdbridge/x", *args))
    packet[position % len(packet)] = value
    with contextlib.suppress(OscDecodeError):
        decode(bytes(packet))


scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=50),
    st.booleans(),
    st.binary(min_size=1, max_size=20),
)


@given(st.lists(scalars, max_size=6))
def test_what_is_encoded_is_read_back_by_us_and_by_python_osc(args: list[object]) -> None:
    packet = encode_message("/sdbridge/x", args, booleans=True)  # type: ignore[arg-type]
    assert [in_32_bits(value) for value in one(packet).args] == [in_32_bits(value) for value in args]
    assert TheirMessage(packet).params == args


def in_32_bits(value: object) -> object:
    return struct.pack(">f", value) if isinstance(value, float) else value


@pytest.mark.parametrize("sent", [0.3, 0.1, 1.4, 2.75, 1 / 3, 123456.789, 1e-30, 0.0])
def test_a_fader_s_number_is_read_as_the_shortest_decimal_of_its_32_bits(sent: float) -> None:
    (value,) = one(encode_message("/sdbridge/x", (sent,))).args
    assert len(repr(value)) <= max(len(repr(sent)), 13)
    assert in_32_bits(value) == in_32_bits(sent)


def test_an_empty_blob_goes_out_as_nothing_and_a_large_number_as_a_double() -> None:
    assert one(encode_message("/sdbridge/x", (b"", 1e300))).args == (None, 1e300)


def test_booleans_go_out_as_integers_for_receivers_that_know_no_t_and_f() -> None:
    assert one(encode_message("/x", (True, False))).args == (1, 0)
    assert not isinstance(one(encode_message("/x", (True,))).args[0], bool)


def test_infinity_and_nan_survive_decoding_so_that_the_table_can_refuse_them() -> None:
    args = one(built("/x", ("f", math.inf), ("d", math.nan))).args
    assert args[0] == math.inf and args[1] != args[1]


def test_bundles_are_split_at_the_size_and_lose_nothing() -> None:
    messages = [encode_message(f"/sdbridge/{n}", (float(n),)) for n in range(300)]
    packets = encode_bundles(messages, 1432)
    assert all(len(packet) <= 1432 for packet in packets) and len(packets) < 10
    assert [address for packet in packets for address, _ in read(packet)] == [
        f"/sdbridge/{n}" for n in range(300)
    ]


def test_a_message_too_large_for_a_bundle_of_its_own_goes_alone_or_not_at_all() -> None:
    large, too_large = encode_message("/a", ("x" * 20_000,)), encode_message("/b", ("x" * 70_000,))
    packets = encode_bundles([large, too_large, encode_message("/c")], 1432)
    assert [read(packet)[0][0] for packet in packets] == ["/a", "/c"]
    assert max(map(len, packets)) <= LARGEST_DATAGRAM
