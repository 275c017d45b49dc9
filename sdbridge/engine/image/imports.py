"""How the engine's libraries are imported in a third of their time: without what they would only look at.

CPU seconds on one core (torch 2.13, diffusers 0.42, transformers 5.23): 5.9 as they come, 4.4 with Python's
garbage collector asleep, 3.3 without the optional packages, 1.8 also without transformers (CLIP's encoders
and tokenizer are our own) and torch's compiler, which nothing of ours calls, 1.2 without the networks of
diffusers that are not ours and without reading what else is installed. 0.8 of that is torch.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sdbridge.engine.image.postponed import (
    NEVER_USED,
    compiler_postponed,
    hidden,
    installed_packages_unread,
    packages_late,
)
from sdbridge.engine.image.waking import call_weights, wake_driver, wake_gpu
from sdbridge.engine.interface import EngineConfig
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: Wanted for depth, and for files that we do not read ourselves: imported when it comes to that.
SELDOM_USED = ("transformers",)

#: Everything that loading a model and painting with it takes, in the order in which it is needed.
_NEEDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sdbridge.engine.image.engine", ()),
    (
        "diffusers",
        ("UNet2DConditionModel", "AutoencoderTiny", "AutoencoderKL", "ControlNetModel", "T2IAdapter"),
    ),
    ("sdbridge.engine.image.clip_text", ()),
    ("sdbridge.engine.image.clip_tokens", ()),
)
#: And for painting with our own kernels, while the GPU wakes.
_FOR_KERNELS = tuple(
    (f"sdbridge.engine.accelerate.{name}", ())
    for name in ("compile", "measured", "kernels.linear", "kernels.unet", "kernels.tiny_vae")
)


def import_sparingly(config: EngineConfig) -> None:
    """Import what the image engine needs. Only for a process that does nothing else, and before its threads.

    A library that is missing or broken is not told of here: whoever imports it next says it better.
    """
    began = time.perf_counter()
    call_weights(config)
    wake_driver(config)
    with ExitStack() as stack:
        stack.enter_context(collector_asleep())
        stack.enter_context(hidden((*NEVER_USED, *SELDOM_USED)))
        stack.enter_context(installed_packages_unread())
        stack.enter_context(packages_late())
        if not _import("sdbridge.engine.image.device"):
            return
        device = _device_of(config)
        stack.enter_context(compiler_postponed())
        if device.startswith("cuda"):
            wake_gpu(device)
        needed = _NEEDED
        if device.startswith("cuda") and config.acceleration in ("auto", "compile") and _has_triton():
            needed += _FOR_KERNELS
        if not all(_import(module, *names) for module, names in needed):
            return
    log.info("libraries imported in %.2f s", time.perf_counter() - began)


def _has_triton() -> bool:
    """Whether it is there; then it knows from here on where its kernels are kept."""
    if importlib.util.find_spec("triton") is None:
        return False
    from sdbridge.engine.accelerate.precompile import use_own_cache

    use_own_cache()
    return True


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
