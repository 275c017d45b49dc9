"""What the test card looks like: it says TOP, LEFT and R G B, moves, and carries a readable number."""

from __future__ import annotations

import math

import numpy as np

# 5 x 7 dots a letter, one number a row, the highest bit at the left.
_GLYPHS: dict[str, tuple[int, ...]] = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 15),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "T": (31, 4, 4, 4, 4, 4, 4),
    " ": (0, 0, 0, 0, 0, 0, 0),
}
_WHITE = (255, 255, 255)
_BARS = (
    _WHITE,
    (255, 255, 0),
    (0, 255, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 255),
    (0, 0, 0),
)
_ORANGE = np.array([255, 160, 32, 255], np.uint8).view(np.uint32)[0]

# The strip at the bottom: a white and a black cell, the number with its check, a black and a white cell.
_NUMBER_BITS = 20
_CHECK_BITS = 4
_CELLS = 2 + _NUMBER_BITS + _CHECK_BITS + 2
_MODULUS = 1 << _NUMBER_BITS

_FRAMES_A_ROUND = 300  # after so many frames the disc is where it was


class TestCard:
    """The card in one size. What never moves is drawn once."""

    __test__ = False  # a picture, not a test case, whatever pytest reads into the name

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        strip, bars = _strip_rows(height), max(1, height // 5)
        self._scene_height = max(1, height - strip - bars)
        self._dot = max(1, min(width, height) // 80)
        self._still = self._draw_still(bars)
        diameter = max(2, min(width, self._scene_height) // 3)
        distance = np.hypot(*np.ogrid[0.5 - diameter / 2 : diameter / 2, 0.5 - diameter / 2 : diameter / 2])
        self._disc = distance < diameter / 2

    def draw(self, number: int) -> np.ndarray:
        """The card as it is at frame ``number``: a new uint8 RGBA array ``[height, width, 4]``."""
        card = self._still.copy()
        self._draw_disc(card, number)
        digits = f"{number % _MODULUS:07d}"
        left, top = self.width - self._text_width(digits) - 2 * self._dot, self._scene_height - 9 * self._dot
        self._write(card, digits, left, top, _WHITE)
        strip = card[self.height - _strip_rows(self.height) :]
        for cell, bit in enumerate(_cells_of(number)):
            strip[:, _cell_edge(cell, self.width) : _cell_edge(cell + 1, self.width), :3] = 255 if bit else 0
        return card

    def _draw_still(self, bars: int) -> np.ndarray:
        card = np.empty((self.height, self.width, 4), np.uint8)
        card[..., 3] = 255
        card[..., 0] = np.linspace(24, 96, self.width).astype(np.uint8)[None, :]
        card[..., 1] = np.linspace(40, 90, self.height).astype(np.uint8)[:, None]
        card[..., 2] = np.linspace(120, 48, self.width).astype(np.uint8)[None, :]
        for index, colour in enumerate(_BARS):
            left, right = index * self.width // 8, (index + 1) * self.width // 8
            card[self._scene_height : self._scene_height + bars, left:right, :3] = colour
        dot = self._dot
        self._write(card, "TOP", (self.width - self._text_width("TOP")) // 2, 2 * dot, _WHITE)
        self._write(card, "LEFT", 2 * dot, self._scene_height // 2, _WHITE)
        card[: 11 * dot, : 26 * dot, :3] = 0  # blue letters are seen on black
        for index, (letter, colour) in enumerate(
            (("R", (255, 0, 0)), ("G", (0, 255, 0)), ("B", (0, 0, 255)))
        ):
            self._write(card, letter, (2 + 8 * index) * dot, 2 * dot, colour)
        return card

    def _draw_disc(self, card: np.ndarray, number: int) -> None:
        turn = 2 * math.pi * (number % _FRAMES_A_ROUND) / _FRAMES_A_ROUND
        diameter = self._disc.shape[0]
        left = round((self.width - diameter) * (0.5 + 0.45 * math.sin(3 * turn)))
        top = round((self._scene_height - diameter) * (0.6 + 0.4 * math.cos(2 * turn)))
        left, top = max(0, left), max(0, top)
        under = card[top : top + diameter, left : left + diameter]
        shown = self._disc[: under.shape[0], : under.shape[1]]
        # Whole pixels as one number each: four times cheaper.
        np.copyto(under.view(np.uint32)[..., 0], _ORANGE, where=shown)

    def _text_width(self, text: str) -> int:
        return 6 * self._dot * len(text)

    def _write(self, card: np.ndarray, text: str, left: int, top: int, colour: tuple[int, int, int]) -> None:
        """Letters from ``left``, ``top`` on, cut off where the card ends."""
        rows = np.array([_GLYPHS[letter] for letter in text], np.uint8).T  # [7, letters]
        dots = (rows[:, :, None] >> np.array([4, 3, 2, 1, 0], np.uint8)) & 1
        dots = np.pad(dots, ((0, 0), (0, 0), (0, 1)))  # the gap between letters
        shown = np.kron(dots.reshape(7, -1), np.ones((self._dot, self._dot), np.uint8)).astype(bool)
        left, top = max(0, left), max(0, top)
        under = card[top : top + shown.shape[0], left : left + shown.shape[1]]
        under[shown[: under.shape[0], : under.shape[1]]] = (*colour, 255)


def read_number(pixels: np.ndarray) -> int | None:
    """The number a card carries, read from its strip; None if there is no card or it is damaged.

    Works on pictures that were scaled or went through a lossy transport.
    """
    height, width = pixels.shape[:2]
    row = pixels[height - 1 - _strip_rows(height) // 2, :, 1]
    bits = []
    for cell in range(_CELLS):
        left, right = _cell_edge(cell, width), _cell_edge(cell + 1, width)
        bits.append(int(row[min(width - 1, (left + right) // 2)] > 127))
    number = sum(bit << place for place, bit in enumerate(reversed(bits[2 : 2 + _NUMBER_BITS])))
    return number if bits == _cells_of(number) else None


def _cells_of(number: int) -> list[int]:
    number %= _MODULUS
    check = 0b1010
    for place in range(0, _NUMBER_BITS, _CHECK_BITS):
        check ^= (number >> place) & 0xF
    word = number << _CHECK_BITS | check
    bits = [(word >> place) & 1 for place in reversed(range(_NUMBER_BITS + _CHECK_BITS))]
    return [1, 0, *bits, 0, 1]


def _cell_edge(cell: int, width: int) -> int:
    return cell * width // _CELLS


def _strip_rows(height: int) -> int:
    return max(1, height // 16)
