"""Every backend against the contract: its syntax tree on any machine, its behaviour where it runs."""

import ast
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.registry import RECEIVERS, SENDERS, receiver_class, sender_class
from sdbridge.textures.test_card import TestCard

ROOT = Path(__file__).resolve().parents[2]
#: Libraries that exist on some machines only, or are optional: never imported with the module.
OPTIONAL = {
    "SpoutGL",
    "OpenGL",
    "glfw",
    "syphon",
    "Metal",
    "Cocoa",
    "objc",
    "NDIlib",
    "pyvirtualcam",
    "aiortc",
}
#: What a backend need not say, since the stub's answer is right for it.
INHERITED = {"lend", "mounts", "receivers", "__enter__", "__exit__"}


def class_tree(place: str) -> tuple[ast.Module, ast.ClassDef]:
    module, _, name = place.partition(":")
    file = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return tree, next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def methods(tree: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def shape(method: ast.FunctionDef) -> tuple:
    """Name, arguments with their types, result and decorators: what a caller depends on."""
    return (
        method.name,
        ast.unparse(method.args).replace("stub.", ""),
        ast.unparse(method.returns).replace("stub.", "") if method.returns else None,
        [ast.unparse(decorator) for decorator in method.decorator_list],
    )


STUB = ast.parse((ROOT / "sdbridge/textures/stub.py").read_text(encoding="utf-8"))
CONTRACT = {node.name: methods(node) for node in STUB.body if isinstance(node, ast.ClassDef)}
BACKENDS = [
    *(pytest.param("Receiver", place, id=f"receive {name}") for name, place in RECEIVERS.items()),
    *(pytest.param("Sender", place, id=f"send {name}") for name, place in SENDERS.items()),
]


@pytest.mark.parametrize(("kind", "place"), BACKENDS)
def test_a_backend_has_exactly_the_contract_s_methods_and_arguments(kind: str, place: str) -> None:
    _, tree = class_tree(place)
    assert [ast.unparse(base) for base in tree.bases] == [f"stub.{kind}"]
    own, wanted = methods(tree), CONTRACT[kind]
    assert set(wanted) - INHERITED <= set(own), "a method of the contract is missing"
    for name in set(own) & set(wanted):
        assert shape(own[name]) == shape(wanted[name])
    extra = {name for name in set(own) - set(wanted) if not name.startswith("_")}
    for name in extra:
        decorators = [ast.unparse(decorator) for decorator in own[name].decorator_list]
        assert decorators == ["property"] or name == "rename", f"{name} is not in the contract"


@pytest.mark.parametrize(("kind", "place"), BACKENDS)
def test_a_backend_imports_no_optional_library_with_its_module(kind: str, place: str) -> None:
    tree, _ = class_tree(place)
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & OPTIONAL


@pytest.mark.parametrize(("kind", "place"), BACKENDS)
def test_a_constructor_only_keeps_its_arguments(kind: str, place: str) -> None:
    _, tree = class_tree(place)
    constructor = methods(tree).get("__init__")
    for node in ast.walk(constructor) if constructor else ():
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not called.endswith((".open", ".start", "open", "load", "_library")), called


def runnable(names, class_of) -> list:
    marked = []
    for name in names:
        able, why = class_of(name).available()
        marks = () if able else (pytest.mark.skip(reason=why),)
        marked.append(pytest.param(name, marks=marks))
    return marked


@pytest.fixture
def name() -> str:
    return f"contract-{secrets.token_hex(3)}"


@pytest.fixture
def receiver(request: pytest.FixtureRequest, name: str) -> Iterator[stub.Receiver]:
    made = receiver_class(request.param)("" if request.param == "screen" else name, {})
    yield made
    made.close()


@pytest.fixture
def sender(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> Iterator[stub.Sender]:
    given = str(tmp_path / "contract.mkv") if request.param == "recording" else name
    made = sender_class(request.param)(given, {})
    yield made
    made.close()


@pytest.mark.parametrize("receiver", runnable(RECEIVERS, receiver_class), indirect=True)
def test_a_receiver_behaves(receiver: stub.Receiver) -> None:
    assert receiver.receive(0.0) is None, "not open yet"
    assert receiver.describe() and "\n" not in receiver.describe()
    receiver.open()
    assert receiver.describe() and "\n" not in receiver.describe()
    frames = [receiver.receive(0.05) for _ in range(3)]
    for pixels in frames:
        if pixels is not None:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 4
            assert pixels.flags.c_contiguous and pixels.flags.writeable
            pixels[...] = 0
    assert isinstance(receiver.connected, bool)
    receiver.close()
    receiver.close()
    assert receiver.receive(0.0) is None and not receiver.connected
    receiver.open()
    receiver.receive(0.0)
    receiver.close()


@pytest.mark.parametrize("receiver", runnable(RECEIVERS, receiver_class), indirect=True)
def test_a_receiver_refuses_an_unknown_option_by_name(receiver: stub.Receiver) -> None:
    wrong = type(receiver)(receiver.name, {"no_such_option": 1})
    with pytest.raises(SdbridgeError, match=r"SDB-TEXTURE-OPTION.*no_such_option"):
        wrong.open()
    wrong.close()


@pytest.mark.parametrize("backend", RECEIVERS)
def test_listing_sources_never_raises(backend: str) -> None:
    for source in receiver_class(backend).list_sources():
        assert isinstance(source, stub.Source) and source.name


@pytest.mark.parametrize("sender", runnable(SENDERS, sender_class), indirect=True)
def test_a_sender_behaves(sender: stub.Sender) -> None:
    card = TestCard(64, 48).draw(1)
    sender.send(Frame(card, 0, 0), {})  # not open yet: nothing happens
    sender.open()
    for number, (width, height) in enumerate(((64, 48), (64, 48), (1, 1), (513, 511), (640, 360), (2, 2000))):
        pixels = TestCard(width, height).draw(number)
        before = pixels.copy()
        sender.send(Frame(pixels, number, 0, number), {"prompt": "a <b> & c"})
        assert (pixels == before).all(), "the frame is not the sender's to change"
        assert sender.describe() and "\n" not in sender.describe()
    assert sender.receivers >= -1 and all(path.startswith("/") for path in sender.mounts)
    sender.close()
    sender.close()
    sender.send(Frame(card, 9, 0), {})
    sender.open()
    sender.send(Frame(card, 10, 0), {})


@pytest.mark.parametrize("sender", runnable(SENDERS, sender_class), indirect=True)
def test_a_sender_refuses_an_unknown_option_by_name(sender: stub.Sender) -> None:
    wrong = type(sender)(sender.name, {"no_such_option": 1})
    with pytest.raises(SdbridgeError, match=r"SDB-TEXTURE-OPTION.*no_such_option"):
        wrong.open()
    wrong.close()
