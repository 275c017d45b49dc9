"""How a network is made without its weights, and given them where they lie."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdbridge.engine.image.stored import Source
from sdbridge.engine.image.upload import PAUSE_S, Upload

_FEW = 16


@contextmanager
def skeleton(gentle: bool = False) -> Iterator[None]:
    """Modules are made here without memory for their weights, and without values.

    Beside the stream ``gentle`` leaves the interpreter to the frames after each step of the making, so
    that they do not wait for it.
    """
    with torch.device("meta"), _Unfilled(), _Gently() if gentle else nullcontext():
        yield


class _Unfilled(TorchFunctionMode):
    """The values that modules begin with are not worked out; for some torch would import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


class _Gently(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        time.sleep(PAUSE_S)
        return func(*args, **(kwargs or {}))


def give_weights(
    module: Any,
    sources: Mapping[str, Source],
    upload: Upload,
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
    make: Callable[[], Any] | None = None,
) -> None:
    """Bring ``sources`` to the device and make them the weights of ``module``, whose keys they must be.

    ``make`` makes the module once more, with values: asked only where a buffer that no file holds is of
    an unknown kind. Raises BrokenFileError or OSError where a file does not give what its header promised.
    """
    together = read_together(module, upload.device)
    upload.pause()
    brought = upload.bring(sources, dtype, channels_last=channels_last, side_by_side=together)
    _assign(module, brought, upload)
    _give_buffers(module, upload.device, dtype, make)
    _no_longer_trains(module, upload)


def differing(wanted: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """The keys that only one of them has, or both with another shape, in order."""
    return sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    """The keys that a file of its weights has, with their shapes; without the work of ``state_dict``."""
    shapes = {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    for path, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                shapes[f"{path}.{name}" if path else name] = tuple(buffer.shape)
    return shapes


def move(module: Any, upload: Upload, dtype: torch.dtype) -> Any:
    """``module`` with its weights, which are on the CPU, brought to the device."""
    values = dict(module.named_parameters()) | dict(module.named_buffers())
    sources = {name: tensor.detach() for name, tensor in values.items()}
    _assign(module, upload.bring(sources, dtype), upload)
    _no_longer_trains(module, upload)
    return module


def _assign(module: Any, tensors: Mapping[str, Tensor], upload: Upload) -> None:
    """Make ``tensors`` the module's parameters and buffers, a few at a time."""
    owners = dict(module.named_modules())
    upload.pause()
    for number, (name, tensor) in enumerate(tensors.items()):
        path, _, last = name.rpartition(".")
        owner = owners[path]
        if last in owner._buffers:
            owner._buffers[last] = tensor
        else:
            owner._parameters[last] = torch.nn.Parameter(tensor, requires_grad=False)
        if number % _FEW == 0:
            upload.pause()


def _no_longer_trains(module: Any, upload: Upload) -> None:
    """``eval``, a few modules at a time."""
    upload.pause()
    for number, part in enumerate(module.modules()):
        part.training = False
        if number % _FEW == 0:
            upload.pause()


def read_together(module: Any, device: torch.device) -> tuple[tuple[str, ...], ...]:
    """Names of the weights that this device's acceleration will read as one tensor."""
    if device.type != "cuda":
        return ()
    from sdbridge.engine.accelerate.packed_weights import together

    return together(module)


def _give_buffers(
    module: Any, device: torch.device, dtype: torch.dtype, make: Callable[[], Any] | None
) -> None:
    """Buffers that are in no file: positions count up; others are as a newly made module has them."""
    made: Mapping[str, Tensor] | None = None
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        path, _, last = name.rpartition(".")
        if last == "position_ids":
            value = torch.arange(buffer.shape[-1], dtype=buffer.dtype).expand(buffer.shape)
        else:
            if made is None:
                assert make is not None, f"nothing says what the buffer {name} holds"
                made = dict(make().named_buffers())
            value = made[name]
        kind = dtype if value.is_floating_point() else value.dtype
        module.get_submodule(path)._buffers[last] = value.to(device=device, dtype=kind)
