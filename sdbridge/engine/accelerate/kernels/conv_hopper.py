"""How the Hopper convolutions get rows of pixels into shared memory: the bulk copy engine and its maps."""

from __future__ import annotations

from functools import lru_cache

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

#: Pixels of the second copy of a row: the halo's two, rounded up to the period of the swizzle.
EDGE = gl.constexpr(8)
#: All threads of a program meet; Triton 3.7 gave it another name.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
#: A box of a tensor into shared memory by the bulk copy engine; Triton 3.8 gave it another name.
copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def fetch(rows, edges, space, bar, slot, batch, y, x, C: gl.constexpr, BW: gl.constexpr, wide: gl.constexpr):
    """Input row ``y`` from column ``x - 1`` on into ``slot``."""
    mbarrier.expect(bar, (BW + EDGE) * C * 2)
    at = slot * (BW // EDGE + 1)
    body = space.index(at)._reinterpret(gl.float16, [1, 1, BW, C], wide)
    copy_in(rows, [batch, y, x - 1, 0], bar, body)
    rest = space.index(at + BW // EDGE)._reinterpret(gl.float16, [1, 1, EDGE, C], wide)
    copy_in(edges, [batch, y, x - 1 + BW, 0], bar, rest)


@lru_cache(maxsize=512)
def described(pointer: int, shape: tuple[int, ...], block: tuple[int, ...]) -> TensorDescriptor:
    """How the copy engine sees an fp16 tensor; made once for each address."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    layout = gl.NVMMASharedLayout(block[-1] * 2, 16, rank=len(shape))
    return TensorDescriptor(_Address(pointer), list(shape), strides, list(block), layout)


class _Address:
    """An fp16 tensor's address, so that remembering a descriptor does not keep the tensor."""

    dtype = torch.float16

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def data_ptr(self) -> int:
        return self._pointer
