"""TouchDesigner's memory layout against bytes written out by hand from the facts, not by our writer."""

import secrets
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import shared_memory

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import touchdesigner_layout as layout
from sdbridge.textures.test_card import TestCard, read_number
from sdbridge.textures.touchdesigner_memory import NamedMutex, Receiver, Sender, block_name, info_name

# 2 x 2 pixels. In memory the lower row comes first: blue, white; then the upper: red, green.
LOWER_THEN_UPPER = "0000FFFF FFFFFFFF FF0000FF 00FF0080"
TOP_FIRST = [[[255, 0, 0, 255], [0, 255, 0, 128]], [[0, 0, 255, 255], [255, 255, 255, 255]]]

# magic, version, width, height, aspect x and y (1.0), pixel format 37, padding
# size of the pixels (8 bytes), their offset, padding
HEADER_V1 = (
    "35F85ED9 01000000 02000000 02000000 0000803F 0000803F 25000000 00000000"
    "1000000000000000 30000000 00000000"
)
# the same, then gamut (2: Rec. 709), transfer (0: linear), padding
HEADER_V2 = (
    "35F85ED9 02000000 02000000 02000000 0000803F 0000803F 25000000 00000000"
    "1000000000000000 38000000 02000000 00000000 00000000"
)
# a BGRA picture written by version 1, its pixels 64 bytes in
HEADER_BGRA = (
    "35F85ED9 01000000 02000000 02000000 0000803F 0000803F 2C000000 00000000"
    "1000000000000000 40000000 00000000"
    "00000000 00000000 00000000 00000000"
)
BGRA_PIXELS = "FF0000FF FFFFFFFF 0000FFFF 00FF0080"
# magic, version 2, supported 0, padding, 32 wide letters "_2", detached 0, padding
INFO_ENDING_2 = "BA34ED56 02000000 00 00 5F00 3200" + "00" * 60 + "00 00"


@pytest.fixture
def name() -> str:
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def place() -> Iterator:
    """Puts hand-written bytes into shared memory of a name."""
    placed: list[shared_memory.SharedMemory] = []

    def put(where: str, content: bytes) -> shared_memory.SharedMemory:
        block = shared_memory.SharedMemory(where, create=True, size=len(content))
        block.buf[: len(content)] = content
        placed.append(block)
        return block

    yield put
    for block in placed:
        block.close()
        with suppress(FileNotFoundError):  # a sender that used it took it away
            block.unlink()


def opened(name: str) -> Receiver:
    receiver = Receiver(name, {"fps": 240})
    receiver.open()
    return receiver


@pytest.mark.parametrize(
    ("header", "pixels"),
    [(HEADER_V1, LOWER_THEN_UPPER), (HEADER_V2, LOWER_THEN_UPPER), (HEADER_BGRA, BGRA_PIXELS)],
    ids=["version 1", "version 2", "BGRA at an offset"],
)
def test_a_picture_written_by_hand_is_read_upright_and_in_its_colours(name, place, header, pixels) -> None:
    place(block_name(name), bytes.fromhex(header + pixels))
    with opened(name) as receiver:
        assert receiver.receive(1.0).tolist() == TOP_FIRST
        assert receiver.connected and "2x2" in receiver.describe()


@pytest.mark.parametrize(("version", "header"), [(1, HEADER_V1), (2, HEADER_V2)])
def test_what_we_write_is_byte_for_byte_what_was_written_by_hand(name, version, header) -> None:
    with Sender(name, {"version": version, "max_width": 16, "max_height": 16}) as sender:
        sender.send(Frame(np.array(TOP_FIRST, np.uint8), 1, 0), {})
        expected = bytes.fromhex(header + LOWER_THEN_UPPER)
        written = shared_memory.SharedMemory(block_name(name))
        assert bytes(written.buf[: len(expected)]).hex() == expected.hex()
        written.close()
        beside = shared_memory.SharedMemory(info_name(name))
        assert bytes(beside.buf[:76]).hex() == ("ba34ed5602000000" + "00" * 68)
        beside.close()


@pytest.mark.parametrize(
    ("pixel_format", "one_pixel", "expected"),
    [
        ("5B000000", "FFFF 0080 0000 FFFF", [255, 128, 0, 255]),  # 91: 16 bits
        ("61000000", "003C 0038 0000 003C", [255, 128, 0, 255]),  # 97: half floats 1, 0.5, 0, 1
        (
            "6D000000",
            "0000803F 0000003F 000080BF 0000C07F",
            [255, 128, 0, 0],
        ),  # 109: 1, 0.5, -1, not a number
        ("09000000", "80", [128, 128, 128, 255]),  # 9: one byte is grey
        ("10000000", "80 40", [128, 64, 0, 255]),  # 16: red and green
        ("64000000", "0000803F", [255, 255, 255, 255]),  # 100: one float
        ("2B000000", "01020304", [1, 2, 3, 4]),  # 43: sRGB bytes are left alone
        ("32000000", "03020104", [1, 2, 3, 4]),  # 50: the same in BGRA
    ],
)
def test_other_pixel_formats_become_rgba_bytes(name, place, pixel_format, one_pixel, expected) -> None:
    size = len(bytes.fromhex(one_pixel)).to_bytes(8, "little").hex()
    start = "35F85ED9 01000000 01000000 01000000 0000803F 0000803F"
    header = f"{start} {pixel_format} 00000000 {size} 30000000 00000000"
    place(block_name(name), bytes.fromhex(header + one_pixel))
    with opened(name) as receiver:
        assert receiver.receive(1.0).tolist() == [[expected]]


@pytest.mark.parametrize(
    ("at", "bytes_", "says"),
    [
        (0, "00000000", "begins with 0x00000000"),
        (4, "03000000", "version 3"),
        (8, "FFFFFF7F", "size is 2147483647x2"),
        (8, "FFFFFFFF", "size is -1x2"),
        (12, "00000000", "size is 2x0"),
        (24, "58805000", "pixel format"),  # GL_RGBA8 of the layout before 2022
        (32, "0F00000000000000", "do not fit"),
        (40, "FF000000", "do not fit"),
        (40, "00000000", "do not fit"),
    ],
)
def test_a_block_that_lies_gives_none_and_is_said(name, place, at: int, bytes_: str, says: str) -> None:
    content = bytearray(bytes.fromhex(HEADER_V1 + LOWER_THEN_UPPER))
    content[at : at + len(bytes_) // 2] = bytes.fromhex(bytes_)
    # Shared memory comes in whole pages; what is beyond the picture must not be reached either.
    with pytest.raises(ValueError, match=says):
        layout.read_header(memoryview(bytes(content)))
    place(block_name(name), bytes(content))
    with opened(name) as receiver:
        receiver.receive(0.1)


def test_a_tiny_block_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 48"):
        layout.read_header(memoryview(b"\x35\xf8\x5e\xd9"))


def test_nobody_there_gives_none_and_a_late_writer_is_found(name, place, monkeypatch) -> None:
    monkeypatch.setattr("sdbridge.textures.touchdesigner_memory._LOOK_EVERY_S", 0.0)
    with opened(name) as receiver:
        assert receiver.receive(0.05) is None and not receiver.connected
        assert "no such block" in receiver.describe()
        place(block_name(name), bytes.fromhex(HEADER_V1 + LOWER_THEN_UPPER))
        assert receiver.receive(1.0).tolist() == TOP_FIRST


def test_a_writer_that_ends_is_noticed(name, monkeypatch) -> None:
    monkeypatch.setattr("sdbridge.textures.touchdesigner_memory._LOOK_EVERY_S", 0.0)
    with opened(name) as receiver:
        with Sender(name, {"max_width": 64, "max_height": 64}) as sender:
            sender.send(Frame(TestCard(64, 64).draw(1), 1, 0), {})
            assert receiver.receive(1.0) is not None
        assert receiver.receive(1.0) is None and not receiver.connected


def test_the_name_ending_of_the_info_block_is_followed(name, place) -> None:
    place(info_name(name), bytes.fromhex(INFO_ENDING_2))
    place(block_name(name) + "_2", bytes.fromhex(HEADER_V1 + LOWER_THEN_UPPER))
    with opened(name) as receiver:
        assert receiver.receive(1.0).tolist() == TOP_FIRST


def test_the_size_may_change_and_a_frame_too_large_is_made_smaller(name) -> None:
    with Sender(name, {"max_width": 128, "max_height": 128}) as sender, opened(name) as receiver:
        for width, height, seen in ((128, 128, (128, 128)), (60, 32, (60, 32)), (512, 256, (128, 64))):
            sender.send(Frame(TestCard(width, height).draw(9), 9, 0), {})
            pixels = receiver.receive(1.0)
            assert pixels.shape == (seen[1], seen[0], 4) and read_number(pixels) == 9


def test_a_block_that_a_reader_kept_over_our_restart_is_used_again(name, place) -> None:
    place(block_name(name), bytes(56 + 16 * 16 * 4))
    with Sender(name, {"max_width": 16, "max_height": 16}) as sender:
        sender.send(Frame(np.array(TOP_FIRST, np.uint8), 1, 0), {})
        with opened(name) as receiver:
            assert receiver.receive(1.0).tolist() == TOP_FIRST


class Kernel:
    """Windows' kernel as far as it is documented; any other name raises."""

    def __init__(self, waits: list[int], handle: int = 7) -> None:
        self.calls: list[tuple] = []
        self._waits = waits
        self._handle = handle

    def CreateMutexW(self, security, owned, name):  # noqa: N802
        self.calls.append(("create", security, owned, name))
        return self._handle

    def WaitForSingleObject(self, handle, milliseconds):  # noqa: N802
        self.calls.append(("wait", handle))
        return self._waits.pop(0)

    def ReleaseMutex(self, handle):  # noqa: N802
        self.calls.append(("release", handle))

    def CloseHandle(self, handle):  # noqa: N802
        self.calls.append(("close", handle))


def test_the_lock_is_taken_given_back_and_not_waited_for_long() -> None:
    free, abandoned, busy = 0x00, 0x80, 0x102
    kernel = Kernel([free, abandoned, busy])
    mutex = NamedMutex("TouchSHMxMutex", kernel)
    mutex.open()
    got = []
    for _ in range(3):
        with mutex.held() as held:
            got.append(held)
    mutex.close()
    mutex.close()
    assert got == [True, True, False]
    assert [call[0] for call in kernel.calls] == [
        "create", "wait", "release", "wait", "release", "wait", "close",
    ]  # fmt: skip
    assert kernel.calls[0] == ("create", None, False, "TouchSHMxMutex")


def test_a_lock_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
        NamedMutex("TouchSHMxMutex", Kernel([], handle=0)).open()
