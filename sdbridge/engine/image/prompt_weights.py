"""The weighting syntax of prompts: ``(word:1.2)`` is stronger, ``[word]`` weaker, ``\\(`` a bracket."""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND = 1.1  # what one pair of round brackets multiplies by
SQUARE = 1 / 1.1
LEAST, MOST = -2.0, 4.0

_TOKEN = re.compile(
    r"\\[()\[\]\\]|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:|\\", re.DOTALL
)


@dataclass(frozen=True)
class Fragment:
    """A piece of a prompt and how much it counts (1 is plain)."""

    text: str
    weight: float


def parse_weights(prompt: str) -> tuple[Fragment, ...]:
    """Cut a prompt into fragments of equal weight. Unclosed brackets close at the end; nothing is refused.

    >>> parse_weights("a (red:1.5) fox")
    (Fragment(text='a ', weight=1.0), Fragment(text='red', weight=1.5), Fragment(text=' fox', weight=1.0))
    """
    pieces: list[tuple[str, float]] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def multiply(first: int, factor: float) -> None:
        for index in range(first, len(pieces)):
            text, weight = pieces[index]
            pieces[index] = (text, weight * factor)

    for found in _TOKEN.finditer(prompt):
        token = found.group(0)
        if token.startswith("\\") and len(token) == 2:
            pieces.append((token[1], 1.0))
        elif token == "(":
            open_round.append(len(pieces))
        elif token == "[":
            open_square.append(len(pieces))
        elif found.group(1) is not None and open_round:
            multiply(open_round.pop(), float(found.group(1)))
        elif token == ")" and open_round:
            multiply(open_round.pop(), ROUND)
        elif token == "]" and open_square:
            multiply(open_square.pop(), SQUARE)
        else:
            pieces.append((token, 1.0))
    for first in open_round:
        multiply(first, ROUND)
    for first in open_square:
        multiply(first, SQUARE)
    return _joined(pieces)


def _joined(pieces: list[tuple[str, float]]) -> tuple[Fragment, ...]:
    """Neighbours of equal weight as one fragment, weights within reason."""
    joined: list[Fragment] = []
    for text, weight in pieces:
        weight = min(MOST, max(LEAST, weight))
        if joined and abs(joined[-1].weight - weight) < 1e-9:
            joined[-1] = Fragment(joined[-1].text + text, joined[-1].weight)
        else:
            joined.append(Fragment(text, weight))
    return tuple(joined)
