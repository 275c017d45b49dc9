"""Turns the Text DATs beside this one into a Python package, so that components carry their own code.

The package's name holds a hash of all its sources: two components of different versions in one project
never share a module, two of the same version share one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: DATs in the code COMP that are no modules.
NOT_MODULES = ("schema", "loader", "start", "component")


class _DatFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds ``package.module`` among the texts of one code COMP."""

    def __init__(self, package: str, texts: dict[str, str]) -> None:
        self.package = package
        self.texts = texts

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname == self.package:
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        head, _, tail = fullname.rpartition(".")
        if head == self.package and tail in self.texts:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def get_source(self, fullname: str) -> str:
        return self.texts.get(fullname.rpartition(".")[2], "") if fullname != self.package else ""

    def is_package(self, fullname: str) -> bool:
        return fullname == self.package


def module(code: Any, name: str) -> ModuleType:
    """One module of the package that the code COMP holds."""
    texts = {child.name: child.text for child in code.children if child.name not in NOT_MODULES}
    digest = hashlib.sha256(repr(sorted(texts.items())).encode("utf-8")).hexdigest()[:12]
    package = "sdbridge_td_" + digest
    if package not in sys.modules:
        # First of all, since TouchDesigner looks for DATs of any imported name itself.
        sys.meta_path.insert(0, _DatFinder(package, texts))
    return importlib.import_module(package + "." + name)


def extension(comp: Any) -> Any:
    """The extension object of a component; this is what its Extension parameter calls."""
    code = comp.op("code")
    return module(code, "build").extension(comp, code.op("component").text.strip())


def start(comp: Any) -> None:
    """Make or mend everything inside a component; called a frame after it was created or opened."""
    code = comp.op("code")
    module(code, "build").finish(comp, code.op("component").text.strip())
