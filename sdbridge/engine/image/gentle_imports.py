"""How a library is imported beside the stream: a step at a time, and none while a frame is being queued.

For transformers' depth networks Python imports nine hundred modules, seconds of work that would take turns
with the frames at the interpreter. With giving way at modules and at calls it takes half as long again, and a
frame's median stays what it is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, FrameType, ModuleType
from typing import Any

from sdbridge.engine.accelerate.courtesy import give_way
from sdbridge.engine.image.imports import collector_asleep
from sdbridge.engine.image.postponed import (
    NEVER_USED,
    compiler_postponed,
    hidden,
    installed_packages_unread,
)


@contextmanager
def importing_gently() -> Iterator[None]:
    """Imports of this thread give way to frames meanwhile, and find nothing of what nobody uses here."""
    finder = _GentleFinder()
    with ExitStack() as stack:
        stack.enter_context(collector_asleep())  # a search stops everybody for 40 ms
        stack.enter_context(hidden(NEVER_USED))
        stack.enter_context(installed_packages_unread())
        stack.enter_context(compiler_postponed())
        # Always a new list: another thread may be going through the one that is there.
        sys.meta_path = [finder, *sys.meta_path]
        stack.callback(finder.leave)
        if sys.getprofile() is None:
            sys.setprofile(_give_way_at_calls)
            stack.callback(sys.setprofile, None)
        yield


def _give_way_at_calls(frame: FrameType, event: str, argument: object) -> None:
    """Of this thread alone: a module may work for tens of milliseconds without importing another.

    (From Python 3.12 on the frames' thread pays for it too, with 50 ns a call.)
    """
    give_way()


class _GentleFinder:
    """Stands before all finders there are and finds what they find."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if threading.get_ident() != self._thread:
            return None
        for other in sys.meta_path:
            find = None if other is self else getattr(other, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _GentleLoader(spec.loader)
                return spec
        return None

    def leave(self) -> None:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


class _GentleLoader(Loader):
    """Does what ``real`` does, in two steps; the module never sees it."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        give_way()
        made: ModuleType | None = self.real.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        real = self.real
        if module.__spec__ is not None:
            module.__spec__.loader = real
        module.__loader__ = real
        give_way()
        if type(real) is not SourceFileLoader:
            real.exec_module(module)
            return
        code: CodeType | None = real.get_code(module.__name__)
        if code is None:
            raise ImportError(f"there is no code for {module.__name__}", name=module.__name__)
        give_way()
        exec(code, module.__dict__)
