"""Which engine kinds there are: a name in the config, an import string here."""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable

from sdbridge.engine.interface import Engine, EngineConfig
from sdbridge.errors import SdbridgeError

#: kind -> "module:Class". The class is called with one EngineConfig; it does no work before ``load``.
ENGINES: dict[str, str] = {
    "image": "sdbridge.engine.image.engine:ImageEngine",
    "passthrough": "sdbridge.engine.passthrough:PassthroughEngine",
    "fake": "sdbridge.testing:FakeEngine",
    "fake_chunks": "sdbridge.testing:FakeChunkEngine",
    "fake_overlap": "sdbridge.testing:FakeOverlapEngine",
    "faulty": "sdbridge.testing:FaultyEngine",
}

#: kind -> "module:function", called with the config, first in a process that runs nothing but this engine.
PREPARE: dict[str, str] = {"image": "sdbridge.engine.image.imports:import_sparingly"}


def prepare_process(config: EngineConfig) -> float:
    """Make this process ready for the engine of ``config``, which would only start later without it.

    Returns the seconds that took.
    """
    began = time.perf_counter()
    module_name, _, function = PREPARE.get(config.kind, "").partition(":")
    if module_name:
        prepare: Callable[[EngineConfig], None] = getattr(importlib.import_module(module_name), function)
        prepare(config)
    return time.perf_counter() - began


def make_engine(config: EngineConfig) -> Engine:
    """The engine of ``config.kind``, which may also be an import string of one's own.

    Raises SdbridgeError SDB-ENGINE-KIND for a name that is not known.
    """
    target = ENGINES.get(config.kind, config.kind)
    module_name, separator, attribute = target.partition(":")
    if not separator:
        near = difflib.get_close_matches(config.kind, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(ENGINES))}"
        raise SdbridgeError("SDB-ENGINE-KIND", f"there is no engine kind {config.kind!r}{hint}")
    try:
        make: Callable[[EngineConfig], Engine] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SdbridgeError(
            "SDB-ENGINE-KIND", f"engine kind {config.kind!r} cannot be imported: {error}"
        ) from error
    return make(config)
