"""Address patterns: what they mean, and that no pattern costs more than its length allows."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbridge.control.osc_patterns import AddressTree, OscPatternError, compile_segment
from sdbridge.parameters.table import TABLE


def matches(pattern: str, name: str) -> bool:
    return any(glob.matches(name) for glob in compile_segment(pattern))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["", "a", "abc"], []),
        ("a*", ["a", "ab"], ["", "ba"]),
        ("*a", ["a", "ba"], ["ab"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc"], ["acb", "ab"]),
        ("?", ["a"], ["", "ab"]),
        ("a?c", ["abc"], ["ac", "abbc"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "x"]),
        ("[!a-c]x", ["dx"], ["ax", "x"]),
        ("[c-a]", ["b"], ["d"]),
        ("[ab-]", ["-", "a"], ["c"]),
        ("{one,two}", ["one", "two"], ["three", "", "onetwo"]),
        ("p{1,2}{a,b}", ["p1a", "p2b"], ["p1", "p3a"]),
        ("{}x", ["x"], ["ax"]),
        ("**", ["", "abc"], []),
        ("*?", ["a", "ab"], [""]),
        ("a.c", ["a.c"], ["abc"]),
        ("夕*", ["夕焼け"], ["朝"]),
    ],
)
def test_what_patterns_mean(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes if not matches(pattern, name)] == []
    assert [name for name in no if matches(pattern, name)] == []


@pytest.mark.parametrize(
    "pattern", ["{a", "a}", "[a", "a]", "[]", "[!]", "{a*,b}", "{a,{b,c}}", "x" * 65, "{a,b}" * 6]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(OscPatternError):
        compile_segment(pattern + ("*" if "x" in pattern else ""))


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_stars_and_questions_agree_with_a_regular_expression(pattern: str, name: str) -> None:
    wanted = re.fullmatch(pattern.replace("*", ".*").replace("?", "."), name) is not None
    assert matches(pattern, name) == wanted


@pytest.mark.timeout(30)
@pytest.mark.parametrize("stars", [10, 12, 60])
def test_the_star_patterns_that_froze_every_thread_are_harmless(stars: int) -> None:
    """Made into a regular expression, twelve stars took 46 s, sixty would outlast the universe."""
    tree = AddressTree([row.address for row in TABLE] + ["/sdbridge/" + "a" * 200])
    for _ in range(20):
        assert tree._search("/sdbridge/" + "*" * stars + "!") == ()
        assert tree._search("/sdbridge/" + "a*" * (stars // 2) + "!") == ()


@given(st.text(st.sampled_from("*?[]{}!,-/ab"), max_size=300))
def test_no_pattern_raises_anything_else(pattern: str) -> None:
    tree = AddressTree(["/a/b", "/a/ab", "/b/" + "ab" * 30])
    with contextlib.suppress(OscPatternError):
        tree.matches(pattern)


def test_matching_goes_segment_by_segment() -> None:
    tree = AddressTree(row.address for row in TABLE)
    assert tree.matches("/sdbridge/controlnet/[1-3]/scale") == tuple(
        f"/sdbridge/controlnet/{n}/scale" for n in (1, 2, 3)
    )
    assert tree.matches("/sdbridge/{strength,delta}") == ("/sdbridge/strength", "/sdbridge/delta")
    assert len(tree.matches("/sdbridge/prompt/*/weight")) == 8
    assert tree.matches("/*") == ()
    assert tree.matches("/sdbridge/nothing*") == ()


def test_the_memory_of_patterns_is_bounded() -> None:
    tree = AddressTree(["/a/b"])
    for n in range(5000):
        tree.matches(f"/a/{n}*")
    assert len(tree._remembered) <= 256
