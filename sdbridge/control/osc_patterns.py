"""Which addresses an OSC pattern means, in time bounded by the lengths, whatever the pattern.

Regular expressions made from the wire can run for minutes (``*`` twelve times and a letter did, with
every thread of the process stopped). Here a pattern is run as a set of positions, one bit each:
a name of n letters costs n steps, never more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SPECIAL = frozenset("*?[]{}")
LONGEST_PATTERN = 256
LARGEST_SEGMENT = 64  # elements between two slashes
MOST_ALTERNATIVES = 32  # what the braces of one segment may multiply to
_REMEMBERED = 256


class OscPatternError(ValueError):
    """A pattern that is not one, or one beyond the bounds."""


def is_pattern(address: str) -> bool:
    return not SPECIAL.isdisjoint(address)


@dataclass
class _Node:
    below: dict[str, _Node] = field(default_factory=dict)
    address: str = ""


class AddressTree:
    """Known addresses, searched by pattern segment by segment."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._root = _Node()
        self._remembered: dict[str, tuple[str, ...]] = {}
        for address in addresses:
            node = self._root
            for part in address.strip("/").split("/"):
                node = node.below.setdefault(part, _Node())
            node.address = address

    def matches(self, pattern: str) -> tuple[str, ...]:
        """Every known address that ``pattern`` means, in their own order. Raises OscPatternError."""
        known = self._remembered.get(pattern)
        if known is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            known = self._remembered[pattern] = self._search(pattern)
        return known

    def _search(self, pattern: str) -> tuple[str, ...]:
        if len(pattern) > LONGEST_PATTERN:
            raise OscPatternError(f"a pattern of {len(pattern)} characters; {LONGEST_PATTERN} are the most")
        nodes = [self._root]
        for segment in pattern.strip("/").split("/"):
            if is_pattern(segment):
                globs = compile_segment(segment)
                nodes = [
                    child
                    for node in nodes
                    for name, child in node.below.items()
                    if any(glob.matches(name) for glob in globs)
                ]
            else:
                nodes = [node.below[segment] for node in nodes if segment in node.below]
            if not nodes:
                return ()
        return tuple(node.address for node in nodes if node.address)


@dataclass(frozen=True)
class _OneOf:
    """``?`` (anything) or ``[a-z]`` / ``[!a-z]``: one character."""

    ranges: tuple[tuple[str, str], ...] = ()
    inverted: bool = True

    def takes(self, letter: str) -> bool:
        return any(low <= letter <= high for low, high in self.ranges) != self.inverted


class Glob:
    """One segment without braces: characters, ``_OneOf``, and stars."""

    def __init__(self, elements: list[str | _OneOf]) -> None:
        self._units: list[str | _OneOf] = []  # everything but stars
        self._stars = 0  # bit i: any number of characters may stand before unit i
        for element in elements:
            if element == "*":
                self._stars |= 1 << len(self._units)
            else:
                self._units.append(element)
        self._masks: dict[str, int] = {}

    def matches(self, name: str) -> bool:
        """Positions reached so far are bits; each letter moves all of them at once."""
        reached = 1
        for letter in name:
            reached = ((reached & self._mask(letter)) << 1) | (reached & self._stars)
            if not reached:
                return False
        return bool(reached >> len(self._units) & 1)

    def _mask(self, letter: str) -> int:
        mask = self._masks.get(letter)
        if mask is None:
            mask = 0
            for bit, unit in enumerate(self._units):
                if unit.takes(letter) if isinstance(unit, _OneOf) else unit == letter:
                    mask |= 1 << bit
            self._masks[letter] = mask
        return mask


def compile_segment(segment: str) -> list[Glob]:
    """The globs that a segment stands for: one, or one per combination of its braces."""
    variants: list[list[str | _OneOf]] = [[]]
    at = 0
    while at < len(segment):
        letter = segment[at]
        if letter == "{":
            close = segment.find("}", at)
            if close < 0:
                raise OscPatternError("{ without }")
            words = segment[at + 1 : close].split(",")
            if any(not SPECIAL.isdisjoint(word) for word in words):
                raise OscPatternError("braces hold plain words only")
            variants = [[*variant, *word] for variant in variants for word in words]
            if len(variants) > MOST_ALTERNATIVES:
                raise OscPatternError(f"more than {MOST_ALTERNATIVES} alternatives in one segment")
            at = close + 1
            continue
        if letter == "[":
            close = segment.find("]", at + 1)
            if close < 0:
                raise OscPatternError("[ without ]")
            element: str | _OneOf = _one_of(segment[at + 1 : close])
            at = close
        elif letter in "}]":
            raise OscPatternError(f"{letter} without its opening")
        else:
            element = _OneOf() if letter == "?" else letter
        for variant in variants:
            variant.append(element)
        at += 1
    if any(len(variant) > LARGEST_SEGMENT for variant in variants):
        raise OscPatternError(f"more than {LARGEST_SEGMENT} elements in one segment")
    return [Glob(variant) for variant in variants]


def _one_of(text: str) -> _OneOf:
    inverted = text.startswith("!")
    letters = text[1:] if inverted else text
    if not letters:
        raise OscPatternError("[] holds nothing")
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(letters):
        if at + 2 < len(letters) and letters[at + 1] == "-":
            ranges.append((min(letters[at], letters[at + 2]), max(letters[at], letters[at + 2])))
            at += 3
        else:
            ranges.append((letters[at], letters[at]))
            at += 1
    return _OneOf(tuple(ranges), inverted)
