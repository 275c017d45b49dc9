"""The card says what it should to eyes and programs, and comes at its rate."""

import numpy as np
import pytest

from sdbridge.config import TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.textures.geometry import fit_frame
from sdbridge.textures.test_card import TestCard, read_number
from sdbridge.textures.test_pattern import Receiver


class StepClock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.ns = 5_000_000_000
        self.slept: list[float] = []

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.ns += max(0, round(seconds * 1e9))


def opened(**options: object) -> tuple[Receiver, StepClock]:
    receiver = Receiver("", options)
    receiver.clock = clock = StepClock()
    receiver.open()
    return receiver, clock


def test_the_number_is_read_back_from_the_picture_even_scaled_and_dimmed() -> None:
    card = TestCard(512, 384)
    for number in (0, 1, 2, 1000, 0xFFFFF, 1 << 20, 123_456_789):
        drawn = card.draw(number)
        assert read_number(drawn) == number % (1 << 20)
        assert read_number(fit_frame(drawn, 320, 200, TextureConfig(fit="stretch"))) == number % (1 << 20)
        assert read_number((drawn * 0.8 + 20).astype(np.uint8)) == number % (1 << 20)


def test_a_picture_without_a_card_has_no_number() -> None:
    assert read_number(np.zeros((64, 64, 4), np.uint8)) is None
    assert read_number(np.full((64, 64, 4), 255, np.uint8)) is None
    assert read_number(TestCard(512, 512).draw(5)[:, ::-1]) is None, "mirrored"
    assert read_number(TestCard(512, 512).draw(5)[::-1]) is None, "upside down"


def test_the_card_tells_top_left_and_the_order_of_colours() -> None:
    card = TestCard(512, 512).draw(0)
    letters = {name: card[:55, left : left + 45, :3].reshape(-1, 3).max(0).tolist() for name, left in
               (("R", 5), ("G", 55), ("B", 105))}  # fmt: skip
    assert letters == {"R": [255, 0, 0], "G": [0, 255, 0], "B": [0, 0, 255]}
    assert (card[:55, 200:310, :3] == 255).all(axis=2).sum() > 500, "TOP is written at the top"
    assert (card[180:240, 5:150, :3] == 255).all(axis=2).sum() > 500, "LEFT is written at the left"
    bars = card[420, [32, 96, 160, 224, 288, 352, 416, 480], :3].tolist()
    assert bars[0] == [255, 255, 255] and bars[5] == [255, 0, 0] and bars[6] == [0, 0, 255]
    assert (card[..., 3] == 255).all()


def test_the_card_moves_and_is_the_same_for_the_same_number() -> None:
    card = TestCard(128, 128)
    assert (card.draw(4) == card.draw(4)).all()
    scene = slice(20, 90)
    assert not (card.draw(4)[scene] == card.draw(14)[scene]).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 1), (1, 90), (513, 511)])
def test_no_size_is_too_small_or_too_odd(size: tuple[int, int]) -> None:
    assert TestCard(*size).draw(1).shape == (size[1], size[0], 4)


def test_frames_come_at_the_rate_and_late_ones_are_left_out() -> None:
    receiver, clock = opened(width=512, height=64, fps=10)
    numbers = [read_number(receiver.receive(1.0)) for _ in range(4)]
    assert numbers == [0, 1, 2, 3]
    assert sum(clock.slept) == pytest.approx(0.3)
    clock.ns += 1_000_000_000
    assert read_number(receiver.receive(1.0)) == 13, "a second of frames was missed and is not made up for"
    assert receiver.receive(0.05) is None, "not due within the timeout"
    assert read_number(receiver.receive(0.06)) == 14


def test_it_says_what_it_shows_and_after_close_gives_nothing() -> None:
    receiver, _ = opened(width=320, height=200, fps=25)
    assert receiver.connected
    assert receiver.describe() == "test pattern 320x200 at 25 fps"
    receiver.close()
    receiver.close()
    assert not receiver.connected and receiver.receive(0.0) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widht": 5}, "did you mean width"),
        ({"fps": 0}, "from 0.1 to 240"),
        ({"fps": "fast"}, "'fast'"),
        ({"width": 3.5}, "a whole number"),
        ({"height": True}, "True"),
        ({"fps": float("nan")}, "nan"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_wanted(options: dict, says: str) -> None:
    with pytest.raises(SdbridgeError, match=r"SDB-TEXTURE-OPTION") as caught:
        opened(**options)
    assert says in str(caught.value)
