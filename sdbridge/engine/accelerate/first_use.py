"""Which operation of PyTorch may load code onto the GPU: one that was never asked for in this form.

CUDA loads a library's kernel when it is first launched. It holds the driver's lock meanwhile and waits until
the GPU has done all that is queued, and nobody is asked before (Triton's kernels are the exception): a frame
that was to be fetched then came when the load was over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

#: Libraries choose their kernel by the shape; for everything else the dtype and the axes decide.
_BY_SHAPE = {
    "__matmul__",
    "addmm",
    "addmm_",
    "baddbmm",
    "bmm",
    "conv2d",
    "conv_transpose2d",
    "group_norm",
    "layer_norm",
    "linear",
    "matmul",
    "mm",
    "scaled_dot_product_attention",
}
#: They only look at a tensor another way.
_VIEWS = {
    "__get__",
    "__getitem__",
    "chunk",
    "detach",
    "dim",
    "expand",
    "expand_as",
    "flatten",
    "is_contiguous",
    "narrow",
    "numel",
    "permute",
    "size",
    "split",
    "squeeze",
    "stride",
    "transpose",
    "t",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
_MOST = 8192  # forms remembered; a process meets some hundreds

_met: set[tuple[object, ...]] = set()


def is_first(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether ``func`` on a GPU's tensors in this form is new to the process; from then on it is not."""
    name = getattr(func, "__name__", "")
    if name in _VIEWS:
        return False
    given = [each for each in args if isinstance(each, Tensor)]
    if not any(_on_gpu(tensor) for tensor in given):
        return False
    form: tuple[object, ...]
    if name in _BY_SHAPE:
        form = (func, *((tensor.dtype, tensor.shape, tensor.stride()) for tensor in given))
    else:
        form = (func, *((tensor.dtype, tensor.ndim) for tensor in given))
    if form in _met:
        return False
    if len(_met) >= _MOST:
        _met.clear()
    _met.add(form)
    return True


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda
