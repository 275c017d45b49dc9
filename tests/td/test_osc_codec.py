"""The component's small OSC codec against the daemon's, both ways, and against anything at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbridge.control import osc_decode
from sdbridge_td.osc_codec import OscError, decode, encode_bundles, encode_message

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), max_size=60)
ARGUMENT = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    TEXT,
    st.binary(
        min_size=1, max_size=40
    ),  # python-osc, which builds what the daemon sends, builds no empty blob
    st.none(),
)


@given(TEXT, st.lists(ARGUMENT, max_size=6))
def test_the_daemon_reads_what_we_write(tail: str, args: list[object]) -> None:
    packet = encode_message("/sdbridge/" + tail, args)  # type: ignore[arg-type]
    assert len(packet) % 4 == 0
    (bundle,) = osc_decode.decode(packet)
    assert bundle.messages[0].address == "/sdbridge/" + tail
    # The daemon reads 0.3 as 0.3, not as the nearest 32 bits; the bits are the same.
    assert [_in_32_bits(value) for value in bundle.messages[0].args] == [_in_32_bits(value) for value in args]


def _in_32_bits(value: object) -> object:
    return struct.pack(">f", value) if isinstance(value, float) else value


@given(st.lists(st.tuples(TEXT, st.lists(ARGUMENT, max_size=3)), min_size=1, max_size=8))
def test_we_read_what_the_daemon_writes(messages: list[tuple[str, list[object]]]) -> None:
    encoded = [osc_decode.encode_message("/" + a, args) for a, args in messages]  # type: ignore[arg-type]
    found = [m for packet in osc_decode.encode_bundles(encoded, 8192) for m in decode(packet)]
    assert found == [("/" + a, tuple(args)) for a, args in messages]


def test_bundles_hold_all_messages_in_order_within_their_size() -> None:
    messages = [encode_message(f"/sdbridge/a/{i}", (float(i),)) for i in range(1000)]
    bundles = encode_bundles(messages, 8192)
    assert all(len(b) <= 8192 for b in bundles)
    assert [a for b in bundles for a, _ in decode(b)] == [f"/sdbridge/a/{i}" for i in range(1000)]
    assert len(encode_bundles(messages[:60])) == 1
    large = encode_message("/sdbridge/prompt/1/text", ("x" * 20_000,))
    assert len(encode_bundles([messages[0], large, messages[1]])) == 3


def test_python_osc_reads_what_we_write() -> None:
    """A third opinion, of the library that most controllers in Python use."""
    from pythonosc.osc_packet import OscPacket

    messages = [encode_message("/sdbridge/strength", (0.5,)), encode_message("/sdbridge/prompt", ("森 🌲",))]
    (bundle,) = encode_bundles([*messages, encode_message("/sdbridge/panic", (True,))])
    found = [(m.message.address, m.message.params) for m in OscPacket(bundle).messages]
    assert found == [
        ("/sdbridge/strength", [0.5]), ("/sdbridge/prompt", ["森 🌲"]), ("/sdbridge/panic", [1]),
    ]  # fmt: skip


@given(st.binary(max_size=200))
def test_hostile_bytes_are_one_narrow_error(packet: bytes) -> None:
    for data in (packet, b"#bundle\x00" + packet, b"/a\x00\x00,ifsbT" + packet):
        try:
            decode(data)
        except OscError:
            continue


def test_nesting_ends() -> None:
    packet = encode_message("/a")
    for _ in range(20):
        packet = b"#bundle\x00" + bytes(8) + struct.pack(">i", len(packet)) + packet
    with pytest.raises(OscError, match="deep"):
        decode(packet)
