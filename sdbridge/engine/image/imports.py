"""How the engine's libraries are imported in a third of their time: without what they would only look at.

CPU seconds on one core (torch 2.13, diffusers 0.42, transformers 5.23): 5.9 as they come, 4.4 with Python's
garbage collector asleep, 3.3 without the optional packages, 1.9 also without transformers (CLIP's encoders
and tokenizer are our own) and torch's compiler, which nothing of ours calls.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from sdbridge.engine.image.waking import call_weights, wake_gpu
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: Packages that diffusers and transformers import if they are installed, and that nothing of ours uses: LoRAs
#: go through our own reader and samplers through our own schedule. Both libraries run without them.
NEVER_USED = ("peft", "scipy", "sklearn", "torchvision")

#: Wanted for depth, and for files that we do not read ourselves: imported when it comes to that.
SELDOM_USED = ("transformers",)

#: Everything that loading a model and painting with it takes, in the order in which it is needed.
_NEEDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sdbridge.engine.image.engine", ()),
    ("diffusers", ("UNet2DConditionModel", "AutoencoderTiny")),
    ("sdbridge.engine.image.clip_text", ()),
    ("sdbridge.engine.image.clip_tokens", ()),
)


def import_sparingly(config: EngineConfig) -> None:
    """Import what the image engine needs. Only for a process that does nothing else, and before its threads.

    A library that is missing or broken is not told of here: whoever imports it next says it better.
    """
    began = time.perf_counter()
    call_weights(config)
    with ExitStack() as stack:
        stack.enter_context(collector_asleep())
        stack.enter_context(hidden((*NEVER_USED, *SELDOM_USED)))
        if not _import("sdbridge.engine.image.device"):
            return
        device = _device_of(config)
        stack.enter_context(compiler_postponed())
        if device.startswith("cuda"):
            wake_gpu(device)
        if not all(_import(module, *names) for module, names in _NEEDED):
            return
    log.info("libraries imported in %.2f s", time.perf_counter() - began)


def _import(module: str, *names: str) -> bool:
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        log.info("%s is imported when it is wanted, not at the start: %s", module, error)
        return False
    return True


def _device_of(config: EngineConfig) -> str:
    from sdbridge.engine.image.device import choose_placement

    try:
        return str(choose_placement(config.device, config.dtype).device)
    except SdbridgeError:
        return "cpu"  # loading will tell that, and soon is better


@contextmanager
def collector_asleep() -> Iterator[None]:
    """Imported code stays to the end: searched for garbage again and again, it would take a third longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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
