"""What libraries look at, mention or bring along as they are imported: what of it comes later or never."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: Packages that diffusers and transformers import if they are installed, and that nothing of ours uses: LoRAs
#: go through our own reader and samplers through our own schedule. Both libraries run without them.
NEVER_USED = ("accelerate", "peft", "scipy", "sklearn", "torchvision")

#: Packages that somebody imports long before anybody uses them, if ever. Those of diffusers import every
#: network of their kind, for video, sound and text; ours are few, and asked for by the modules they are in.
LATE = (
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "requests",
)


@contextmanager
def hidden(names: tuple[str, ...]) -> Iterator[None]:
    """``names`` cannot be imported meanwhile, as if they were not installed; those imported already can.

    None in ``sys.modules`` is Python's own way to say so. Afterwards they are to be had again, though
    libraries that asked meanwhile remember the answer.
    """
    gone = [name for name in names if name not in sys.modules]
    for name in gone:
        sys.modules[name] = None  # type: ignore[assignment]  # documented: the import is refused
    try:
        yield
    finally:
        for name in gone:
            if name in sys.modules and sys.modules[name] is None:
                del sys.modules[name]


@contextmanager
def packages_late(names: tuple[str, ...] = LATE) -> Iterator[None]:
    """A package of these that is imported meanwhile runs its ``__init__`` when something in it is asked for.

    Its modules can be imported at once, and it stays what it is: nobody sees a difference, except in time.
    """
    finder = _LateFinder(names)
    sys.meta_path = [finder, *sys.meta_path]  # a new list: another thread may be going through the former
    try:
        yield
    finally:
        sys.meta_path = [other for other in sys.meta_path if other is not finder]


@contextmanager
def installed_packages_unread() -> Iterator[None]:
    """Who asks which package brings which module has to wait for the answer only when it is looked at.

    diffusers and transformers ask as they are imported: the lists of files of all that is installed are read
    for it. They look at the answer for packages with other names than their modules, of which few have one.
    """
    real = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: _Unread(real)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = real


@contextmanager
def compiler_postponed() -> Iterator[None]:
    """torch._dynamo, a fifth of all that is imported, comes when it is used and not when it is mentioned.

    diffusers only marks functions with it ("compile around this one"), which means nothing while nobody
    compiles. Anything else that is asked of it brings the real one.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_ins: dict[str, ModuleType] = {name: _Postponed(name)}
    stand_ins |= {f"{name}.{part}": _PostponedPart(f"{name}.{part}") for part in _PARTS}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for asked, stand_in in stand_ins.items():
            if sys.modules.get(asked) is stand_in:
                del sys.modules[asked]


#: Its parts that libraries name as they are imported: transformers, for masks that it may trace, and
#: torchvision, which asks at a call whether anything compiles.
_PARTS = ("_trace_wrapped_higher_order_op", "utils")


def _step_aside() -> None:
    """Make way for the real ones, all at once: it would not do with a stand-in for a part."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Postponed | _PostponedPart):
            del sys.modules[name]


class _PostponedPart(ModuleType):
    """Stands for such a part: what is taken from it brings the real one when it is called."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        part = self.__name__

        def called(*given: Any, **named: Any) -> Any:
            _step_aside()
            return getattr(importlib.import_module(part), attribute)(*given, **named)

        return called


class _Postponed(ModuleType):
    """Stands for torch._dynamo until more is asked of it than to mark a function."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)
        self.__path__: list[str] = []  # "from torch._dynamo import ..." asks for that

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **about: Any) -> Any:
        return fn if fn is not None else lambda function: function

    @staticmethod
    def allow_in_graph(fn: Any) -> Any:
        return fn

    @staticmethod
    def assume_constant_result(fn: Any) -> Any:
        return fn

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # as those ask who look at every module there is
            raise AttributeError(attribute)
        _step_aside()
        return getattr(importlib.import_module(self.__name__), attribute)


class _Unread(Mapping[str, list[str]]):
    def __init__(self, read: Any) -> None:
        self._read = read

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        found: Mapping[str, list[str]] = self._read()
        return found

    def __getitem__(self, module: str) -> list[str]:
        return self._found[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class _LateFinder:
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LateLoader(spec.loader)
        return spec


class _LateLoader(Loader):
    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LatePackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self.real


class _LatePackage(ModuleType):
    """A package whose ``__init__`` has not run; an ordinary module from the first question on."""

    _running = threading.RLock()

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":  # as those ask who look at every module
            raise AttributeError(attribute)
        with _LatePackage._running:
            if type(self) is _LatePackage:
                self.__class__ = ModuleType  # type: ignore[assignment]  # allowed for modules, and meant
                loader: Any = self.__loader__
                loader.exec_module(self)
        return getattr(self, attribute)
