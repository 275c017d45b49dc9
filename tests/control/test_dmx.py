"""Art-Net and sACN in: packets by foreign senders, mapping, priorities, and bytes that are neither."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbridge.clock import SystemClock
from sdbridge.config import Config, DmxChannel, DmxSection
from sdbridge.control.dmx import DmxFrame, DmxInput, DmxPatch, read_artnet, read_sacn
from sdbridge.parameters.table import TABLE
from tests.control.fake_view import FakeView, ManualClock


def artnet(levels: bytes, universe: int = 1) -> bytes:
    head = b"Art-Net\x00" + struct.pack("<H", 0x5000) + struct.pack(">H", 14) + b"\x00\x00"
    return head + struct.pack("<H", universe) + struct.pack(">H", len(levels)) + levels


def a_patch(*channels: DmxChannel) -> tuple[DmxPatch, ManualClock]:
    clock = ManualClock()
    return DmxPatch(channels, 1, TABLE, clock), clock


def test_an_artdmx_packet_is_read_and_polls_are_let_pass() -> None:
    assert read_artnet(artnet(b"\x01\x02\x03\x04", 7)) == DmxFrame(7, b"\x01\x02\x03\x04")
    assert read_artnet(b"Art-Net\x00\x00\x20\x00\x0e" + b"\x00" * 20) is None


def test_the_packets_of_another_library_are_read_as_sacn() -> None:
    sacn = pytest.importorskip("sacn.messages.data_packet", reason="the extra dmx is not installed")
    packet = sacn.DataPacket(
        cid=tuple(range(16)), sourceName="desk", universe=3, dmxData=(9, 8, 7), sequence=1, priority=150
    )
    frame = read_sacn(bytes(packet.getBytes()))
    assert frame is not None
    assert (frame.universe, frame.levels[:3], frame.priority, frame.sender) == (
        3,
        b"\x09\x08\x07",
        150,
        bytes(range(16)),
    )
    assert len(frame.levels) == 512 and not frame.ends
    packet.option_StreamTerminated = True
    ended = read_sacn(bytes(packet.getBytes()))
    assert ended is not None and ended.ends
    packet.option_StreamTerminated = False
    packet.option_PreviewData = True
    assert read_sacn(bytes(packet.getBytes())) is None


@given(st.binary(max_size=700))
def test_no_bytes_raise_anything(packet: bytes) -> None:
    assert read_artnet(packet) is None or packet.startswith(b"Art-Net")
    assert read_sacn(packet) is None
    read_artnet(b"Art-Net\x00\x00\x50" + packet)
    read_sacn(b"\x00\x10\x00\x00ASC-E1.17\x00\x00\x00" + packet)


def test_channels_of_8_and_16_bits_span_the_range() -> None:
    patch, _ = a_patch(
        DmxChannel(channel=1, parameter="guidance_scale"),
        DmxChannel(channel=2, parameter="strength", fine=True),
        DmxChannel(channel=4, parameter="output.freeze"),
        DmxChannel(channel=5, parameter="guidance_mode"),
    )
    values = dict(patch.values_in(DmxFrame(1, b"\xff\x80\x00\xff\xff")))
    assert values == {
        "guidance_scale": 12.0,
        "strength": pytest.approx(0x8000 / 65535),
        "output.freeze": True,
        "guidance_mode": "initialize",
    }


def test_only_what_moves_is_set_and_short_or_foreign_frames_set_nothing() -> None:
    patch, _ = a_patch(
        DmxChannel(channel=1, parameter="strength"), DmxChannel(channel=512, parameter="delta")
    )
    assert dict(patch.values_in(DmxFrame(1, b"\x33"))) == {"strength": pytest.approx(0.2)}
    assert patch.values_in(DmxFrame(1, b"\x33")) == []
    assert patch.values_in(DmxFrame(2, b"\xff")) == []
    assert dict(patch.values_in(DmxFrame(1, b"\x33" + b"\x00" * 510 + b"\xff"))) == {"delta": 2.0}


def test_a_trigger_fires_when_its_channel_rises_past_half_and_not_at_the_first_frame() -> None:
    patch, _ = a_patch(DmxChannel(channel=1, parameter="panic"))
    fired = [bool(patch.values_in(DmxFrame(1, bytes((level,))))) for level in (255, 0, 127, 128, 200, 0, 255)]
    assert fired == [False, False, False, True, False, False, True]


def test_the_source_of_highest_priority_counts_until_it_is_silent() -> None:
    patch, clock = a_patch(DmxChannel(channel=1, parameter="strength"))
    assert patch.values_in(DmxFrame(1, b"\x10", b"main", 100))
    assert patch.values_in(DmxFrame(1, b"\x20", b"other", 100)) == []
    assert patch.values_in(DmxFrame(1, b"\x30", b"boss", 150))
    assert patch.values_in(DmxFrame(1, b"\x40", b"main", 100)) == []
    clock.advance(2.6)
    assert patch.values_in(DmxFrame(1, b"\x50", b"main", 100))
    assert patch.values_in(DmxFrame(1, b"\x60", b"main", 100, ends=True)) == []
    assert patch.values_in(DmxFrame(1, b"\x70", b"other", 1))


def test_through_the_socket(tmp_path: Path) -> None:
    section = DmxSection(
        protocol="artnet", universe=1, channels=(DmxChannel(channel=1, parameter="/sdbridge/strength"),)
    )
    view = FakeView(tmp_path, Config(port=0, dmx=section), SystemClock())  # type: ignore[arg-type]
    dmx = DmxInput(view)
    dmx.start()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as desk:
            desk.sendto(b"rubbish", ("127.0.0.1", dmx.port))
            desk.sendto(artnet(b"\xff\x00"), ("127.0.0.1", dmx.port))
        for _ in range(1000):
            if view.store.get("strength") == 1.0:
                break
            time.sleep(0.01)
        assert view.store.get("strength") == 1.0
    finally:
        dmx.close()
        dmx.close()


def test_the_config_knows_the_parameters_it_maps() -> None:
    with pytest.raises(ValueError, match="nearest"):
        DmxChannel(channel=1, parameter="strenght")
