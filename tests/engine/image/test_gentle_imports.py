"""What is imported beside the stream waits while a frame is being queued, and comes as it always does."""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbridge.engine.accelerate import courtesy
from sdbridge.engine.accelerate.courtesy import frame_begins, frame_waits
from sdbridge.engine.image import gentle_imports
from sdbridge.engine.image.gentle_imports import importing_gently

FILES = {
    "__init__.py": "from sdb_gentle.second import value",
    "second.py": "import sdb_gentle_says\nsdb_gentle_says.begun.set()\nsdb_gentle_says.go_on.wait(30)\n"
    "def made():\n    return 7\nvalue = made()\n",
    "broken.py": "raise ValueError('not this one')",
    "words.txt": "kept beside",
}
SAYS = "import threading\nbegun, go_on = threading.Event(), threading.Event()\n"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    frame_waits()
    (tmp_path / "sdb_gentle").mkdir()
    (tmp_path / "sdb_gentle_says.py").write_text(SAYS)
    for name, text in FILES.items():
        (tmp_path / "sdb_gentle" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    frame_waits()
    for name in [name for name in sys.modules if name.startswith("sdb_gentle")]:
        del sys.modules[name]


class Importing(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.imported = threading.Event()
        self.start()

    def run(self) -> None:
        with importing_gently():
            importlib.import_module("sdb_gentle")
        self.imported.set()


def test_nothing_is_imported_while_a_frame_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    says = importlib.import_module("sdb_gentle_says")
    says.go_on.set()
    monkeypatch.setattr(courtesy, "PATIENCE_S", 600.0)
    frame_begins()
    beside = Importing()
    assert not says.begun.wait(0.2)
    frame_waits()
    assert beside.imported.wait(30) and sys.modules["sdb_gentle"].value == 7


def test_a_module_that_works_for_long_stops_at_its_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    says = importlib.import_module("sdb_gentle_says")
    monkeypatch.setattr(courtesy, "PATIENCE_S", 600.0)
    beside = Importing()
    assert says.begun.wait(30)
    frame_begins()
    says.go_on.set()
    assert not beside.imported.wait(0.2) and not hasattr(sys.modules["sdb_gentle.second"], "value")
    frame_waits()
    assert beside.imported.wait(30)


def test_modules_are_as_they_would_be_and_nothing_stays_behind() -> None:
    importlib.import_module("sdb_gentle_says").go_on.set()
    finders, profile = list(sys.meta_path), sys.getprofile()
    with importing_gently():
        made = importlib.import_module("sdb_gentle.second")
        with pytest.raises(ValueError, match="not this one"):
            importlib.import_module("sdb_gentle.broken")
        with pytest.raises(ModuleNotFoundError, match=r"sdb_gentle\.none"):
            importlib.import_module("sdb_gentle.none")
        spec = importlib.util.find_spec("sdb_gentle.broken")
        assert spec is not None and spec.origin is not None and spec.origin.endswith("broken.py")
    assert sys.meta_path == finders and sys.getprofile() is profile
    assert made.value == 7 and "sdb_gentle.broken" not in sys.modules
    assert (
        type(made.__loader__)
        is type(made.__spec__.loader)
        is type(importlib.import_module("json").__loader__)
    )
    assert importlib.resources.files("sdb_gentle").joinpath("words.txt").read_text() == "kept beside"


def test_what_nobody_uses_is_out_of_sight_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gentle_imports, "NEVER_USED", ("sdb_gentle_says",))
    with importing_gently():
        assert importlib.util.find_spec("sdb_gentle_says") is None
        with pytest.raises(ImportError):
            importlib.import_module("sdb_gentle_says")
    assert importlib.import_module("sdb_gentle_says").begun


def test_other_threads_import_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("sdb_gentle_says").go_on.set()
    asked: set[int] = set()
    monkeypatch.setattr(gentle_imports, "give_way", lambda: asked.add(threading.get_ident()))
    with importing_gently():
        other = threading.Thread(target=importlib.import_module, args=("sdb_gentle",))
        other.start()
        other.join(30)
    assert sys.modules["sdb_gentle"].value == 7
    assert asked == {threading.get_ident()}
