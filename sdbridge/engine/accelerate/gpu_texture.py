"""A tensor on an NVIDIA GPU becomes an OpenGL texture there, never passing the CPU, for Spout's GPU sender.

The tensor is copied on the device into a pixel buffer that CUDA and OpenGL share, and from there by
OpenGL into the texture: two copies on the GPU, none over the bus. OpenGL may not read a buffer while
CUDA has it mapped, so there are two in turn: while OpenGL reads one, the other is mapped already
(``prepare``), and a frame that comes finds its address ready. CUDA's functions are called in the
runtime library that torch itself has loaded, so that nothing else need be installed; OpenGL goes
through moderngl, in the context that is current in the calling thread.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

GL_TEXTURE_2D = 0x0DE1
_WRITE_DISCARD = 2  # cudaGraphicsRegisterFlagsWriteDiscard: CUDA overwrites all of it
_DEVICE_TO_DEVICE = 3
_BUFFERS = 2  # one that OpenGL reads, one that CUDA may write


def available() -> tuple[bool, str]:
    """Whether a tensor can become a texture on this machine, and why. The GL context is tried in ``open``."""
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    if importlib.util.find_spec("moderngl") is None:
        return False, 'moderngl is not installed; pip install "sdbridge[gpu-texture]"'
    try:
        CudaRuntime()
    except SdbridgeError as error:
        return False, error.what
    return True, f"CUDA and OpenGL share memory on {torch.cuda.get_device_name()}"


class TensorTexture:
    """One texture of one size. All calls from the thread whose OpenGL context is current.

    ``context`` is moderngl's for that thread; without it moderngl's default one is taken.
    """

    def __init__(
        self, width: int, height: int, runtime: CudaRuntime | None = None, context: Any = None
    ) -> None:
        self.width, self.height = width, height
        self._runtime = runtime
        self._context = context
        self._texture: Any = None
        self._buffers: list[Any] = []
        self._resources: list[int] = []
        self._turn = 0
        self._mapped: tuple[int, int] | None = None  # address on the device, stream it was mapped on

    @property
    def name(self) -> int:
        """OpenGL's name of the texture, which Spout's ``sendTexture`` takes."""
        return int(self._texture.glo)

    def open(self) -> None:
        """Make texture and buffers in the current context. Raises SDB-ENGINE-TEXTURE."""
        if self._context is None:
            moderngl = importlib.import_module("moderngl")
            try:
                self._context = moderngl.get_context()
            except ValueError as error:
                raise SdbridgeError("SDB-ENGINE-TEXTURE", f"no OpenGL context is current: {error}") from error
        self._runtime = self._runtime or CudaRuntime()
        try:
            self._texture = self._context.texture((self.width, self.height), 4)
            for _ in range(_BUFFERS):
                self._buffers.append(self._context.buffer(reserve=self.width * self.height * 4))
                self._resources.append(self._runtime.register(self._buffers[-1].glo))
        except SdbridgeError:
            self.close()
            raise

    def write(self, tensor: torch.Tensor) -> None:
        """Copy uint8 ``[H, W, 4]``, contiguous and on the GPU, into the texture.

        Ordered after the work of torch's current stream; nothing waits on the CPU for it.
        """
        self._check(tensor)
        assert self._runtime is not None and self._resources, "open comes first"
        stream = self._runtime.current_stream()
        if self._mapped is not None and self._mapped[1] != stream:
            self._unmap()
        if self._mapped is None:
            self._map(stream)
        assert self._mapped is not None
        self._runtime.copy(self._mapped[0], tensor.data_ptr(), tensor.numel(), stream)
        # Unmapping orders OpenGL's copy after CUDA's.
        self._unmap()
        self._texture.write(self._buffers[self._turn])
        self._turn = (self._turn + 1) % _BUFFERS

    def prepare(self) -> None:
        """Map the buffer whose turn is next, so that the next ``write`` need not."""
        assert self._runtime is not None, "open comes first"
        if self._mapped is None:
            self._map(self._runtime.current_stream())

    def read(self) -> np.ndarray:
        """The texture as it is, for tests: uint8 ``[H, W, 4]``. Waits for the GPU."""
        content = np.frombuffer(self._texture.read(), np.uint8)
        return content.reshape(self.height, self.width, 4)

    def close(self) -> None:
        """Unregister before the buffers go: CUDA must not hold what OpenGL has freed."""
        runtime = self._runtime
        if runtime is not None:
            if self._mapped is not None:
                self._unmap()
            for resource in self._resources:
                runtime.unregister(resource)
        for held in (*self._buffers, self._texture):
            if held is not None:
                held.release()
        self._buffers, self._resources, self._texture = [], [], None
        self._turn = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _map(self, stream: int) -> None:
        assert self._runtime is not None
        self._mapped = (self._runtime.map(self._resources[self._turn], stream), stream)

    def _unmap(self) -> None:
        assert self._runtime is not None and self._mapped is not None
        (_, stream), self._mapped = self._mapped, None
        self._runtime.unmap(self._resources[self._turn], stream)

    def _check(self, tensor: torch.Tensor) -> None:
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) != (self.height, self.width, 4):
            raise SdbridgeError(
                "SDB-ENGINE-TEXTURE",
                f"a texture of {self.width}x{self.height} takes uint8 [{self.height}, {self.width}, 4], "
                f"not {tensor.dtype} {list(tensor.shape)}",
            )
        if not tensor.is_contiguous():
            raise SdbridgeError("SDB-ENGINE-TEXTURE", "the tensor must be contiguous")
        if self._runtime is not None and not self._runtime.takes(tensor):
            raise SdbridgeError(
                "SDB-ENGINE-TEXTURE", f"the tensor must be on the GPU, not on {tensor.device}"
            )


class CudaRuntime:
    """The calls of CUDA's runtime that join it with OpenGL, each checked."""

    def __init__(self, library: Any = None) -> None:
        self._cuda = library if library is not None else _loaded_runtime()

    def current_stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lies where ``copy`` can read it."""
        return tensor.is_cuda

    def register(self, buffer: int) -> int:
        resource = ctypes.c_void_p()
        self._check(
            "cudaGraphicsGLRegisterBuffer",
            self._cuda.cudaGraphicsGLRegisterBuffer(
                ctypes.byref(resource), ctypes.c_uint(buffer), ctypes.c_uint(_WRITE_DISCARD)
            ),
        )
        return int(resource.value or 0)

    def unregister(self, resource: int) -> None:
        self._check(
            "cudaGraphicsUnregisterResource",
            self._cuda.cudaGraphicsUnregisterResource(ctypes.c_void_p(resource)),
        )

    def map(self, resource: int, stream: int) -> int:
        handle = ctypes.c_void_p(resource)
        self._check(
            "cudaGraphicsMapResources",
            self._cuda.cudaGraphicsMapResources(1, ctypes.byref(handle), ctypes.c_void_p(stream)),
        )
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t()
        code = self._cuda.cudaGraphicsResourceGetMappedPointer(
            ctypes.byref(pointer), ctypes.byref(size), handle
        )
        if code != 0:
            self.unmap(resource, stream)
        self._check("cudaGraphicsResourceGetMappedPointer", code)
        return int(pointer.value or 0)

    def unmap(self, resource: int, stream: int) -> None:
        handle = ctypes.c_void_p(resource)
        self._check(
            "cudaGraphicsUnmapResources",
            self._cuda.cudaGraphicsUnmapResources(1, ctypes.byref(handle), ctypes.c_void_p(stream)),
        )

    def copy(self, to: int, source: int, count: int, stream: int) -> None:
        self._check(
            "cudaMemcpyAsync",
            self._cuda.cudaMemcpyAsync(
                ctypes.c_void_p(to),
                ctypes.c_void_p(source),
                ctypes.c_size_t(count),
                ctypes.c_int(_DEVICE_TO_DEVICE),
                ctypes.c_void_p(stream),
            ),
        )

    def _check(self, call: str, code: int) -> None:
        if code != 0:
            raise SdbridgeError("SDB-ENGINE-TEXTURE", f"{call} failed with CUDA error {code}")


def _loaded_runtime() -> Any:
    """The CUDA runtime that torch uses. Raises SDB-ENGINE-TEXTURE if there is none to be found."""
    for file in _runtime_files():
        try:
            return ctypes.CDLL(str(file))
        except OSError as error:
            log.debug("%s is not the CUDA runtime: %s", file, error)
    raise SdbridgeError(
        "SDB-ENGINE-TEXTURE", f"no CUDA runtime {_runtime_pattern()} is loaded or beside torch"
    )


def _runtime_files() -> Iterator[Path]:
    """Where it may be, the surest first: one that this process has loaded already can be no other version."""
    pattern = _runtime_pattern()
    if sys.platform == "linux":
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            file = Path(line.partition("/")[1] + line.partition("/")[2])
            if file.match(pattern):
                yield file
    folders = [Path(torch.__file__).parent / "lib"]
    if sys.platform != "win32":
        folders += sorted((Path(torch.__file__).parent.parent / "nvidia").glob("*/lib"))
    for folder in folders:
        yield from sorted(folder.glob(pattern))


def _runtime_pattern() -> str:
    major = (torch.version.cuda or "none").partition(".")[0]
    return f"cudart64_{major}*.dll" if sys.platform == "win32" else f"libcudart*.so.{major}*"
