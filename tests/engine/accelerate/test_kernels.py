"""Kernels' sources are read before anything calls them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from sdbridge.engine.accelerate import kernels


class Function:
    """As Triton's: parsed when its key is first asked for."""

    read = 0

    @property
    def cache_key(self) -> str:
        type(self).read += 1
        return "a key"


def test_every_kernel_that_is_imported_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"{kernels.__name__}."
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        monkeypatch.delitem(sys.modules, name)
    for name, count in (("canny", 2), ("norm", 3)):
        module = ModuleType(prefix + name)
        for number in range(count):
            setattr(module, f"kernel_{number}", Function())
        module.TILE = 64  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, prefix + name, module)
    Function.read = 0
    assert kernels.read_sources() == 5
    assert Function.read == 5


@pytest.mark.gpu
def test_triton_has_read_ours() -> None:
    assert kernels.importable()[0]
    assert kernels.read_sources() >= 20
    from sdbridge.engine.accelerate.kernels import canny

    known = [each.hash for each in vars(canny).values() if hasattr(type(each), "cache_key")]
    assert len(known) > 5 and all(known)
