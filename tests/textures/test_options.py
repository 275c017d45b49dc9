"""Options: coerced as a person means them, mistakes named; the manual lists each with its default."""

import ast
import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.textures.options import option, read_options
from sdbridge.textures.registry import RECEIVERS, SENDERS

DOC = (Path(__file__).resolve().parents[2] / "docs" / "textures.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Some:
    rate: float = option(30.0, low=1, high=60)
    count: int = option(2, low=0)
    on: bool = option(False)
    word: str = option("")
    kind: str = option("a", choices=("a", "b"))


def test_what_is_meant_well_is_taken() -> None:
    given = {"rate": "25", "count": 3.0, "on": 1, "word": 5, "kind": "b"}
    assert read_options(Some, given, "x") == Some(25.0, 3, True, "5", "b")
    assert read_options(Some, {}, "x") == Some()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rat": 3}, "x has no option rat; did you mean rate?"),
        ({"zzz": 3}, "known are: count, kind, on, rate, word"),
        ({"rate": 61}, "a number from 1 to 60, it is 61"),
        ({"count": -1}, "a whole number of at least 0, it is -1"),
        ({"on": "maybe"}, "true or false, it is 'maybe'"),
        ({"kind": "c"}, "one of a, b, it is 'c'"),
        ({"count": True}, "it is True"),
    ],
)
def test_a_mistake_is_named_with_what_is_wanted(given: dict, says: str) -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-OPTION") as caught:
        read_options(Some, given, "x")
    assert says in str(caught.value)


def options_of(place: str) -> tuple:
    """The fields of the dataclass that this class's ``open`` reads its options with."""
    module_name, _, name = place.partition(":")
    module = importlib.import_module(module_name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    calls = [node for node in ast.walk(kind) if isinstance(node, ast.Call)]
    (read,) = [call for call in calls if ast.unparse(call.func) == "read_options"]
    return dataclasses.fields(getattr(module, ast.unparse(read.args[0])))


@pytest.mark.parametrize(
    ("way", "backend", "place"),
    [
        *(("receive", backend, place) for backend, place in RECEIVERS.items()),
        *(("send", backend, place) for backend, place in SENDERS.items()),
    ],
)
def test_the_manual_lists_every_option_with_its_default(way: str, backend: str, place: str) -> None:
    assert f"### {backend}\n" in DOC
    section = DOC.partition(f"### {backend}\n")[2].partition("\n### ")[0]
    listed = [line for line in section.splitlines() if line.startswith(f"| {way} |")]
    fields = options_of(place)
    assert len(listed) == len(fields)
    for field in fields:
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default) or "-"
        assert any(line.startswith(f"| {way} | `{field.name}` | {default}") for line in listed), field.name
