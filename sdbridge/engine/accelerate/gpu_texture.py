"""A tensor on an NVIDIA GPU becomes an OpenGL texture there, never passing the CPU, for Spout's GPU sender.

The tensor is copied on the device into a pixel buffer that CUDA and OpenGL share, and from there by
OpenGL into the texture: two copies on the GPU, none over the bus. The buffer is registered once and
mapped for each frame; it cannot stay mapped, since OpenGL may not read what CUDA has mapped.
CUDA's five functions are called in the runtime library that torch itself has loaded, so that
nothing else need be installed; OpenGL goes through moderngl in whatever context is current.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

GL_TEXTURE_2D = 0x0DE1
_WRITE_DISCARD = 2  # cudaGraphicsRegisterFlagsWriteDiscard: CUDA overwrites all of it
_DEVICE_TO_DEVICE = 3


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
    """One texture of one size. All calls from the thread whose OpenGL context is current."""

    def __init__(self, width: int, height: int, runtime: CudaRuntime | None = None) -> None:
        self.width, self.height = width, height
        self._runtime = runtime
        self._context: Any = None
        self._texture: Any = None
        self._buffer: Any = None
        self._resource: int | None = None

    @property
    def name(self) -> int:
        """OpenGL's name of the texture, which Spout's ``sendTexture`` takes."""
        return int(self._texture.glo)

    def open(self) -> None:
        """Make texture and buffer in the current context. Raises SDB-ENGINE-TEXTURE."""
        moderngl = importlib.import_module("moderngl")
        try:
            self._context = moderngl.get_context()
        except ValueError as error:
            raise SdbridgeError("SDB-ENGINE-TEXTURE", f"no OpenGL context is current: {error}") from error
        self._runtime = self._runtime or CudaRuntime()
        self._texture = self._context.texture((self.width, self.height), 4)
        self._buffer = self._context.buffer(reserve=self.width * self.height * 4)
        try:
            self._resource = self._runtime.register(self._buffer.glo)
        except SdbridgeError:
            self.close()
            raise

    def write(self, tensor: torch.Tensor) -> None:
        """Copy uint8 ``[H, W, 4]``, contiguous and on the GPU, into the texture.

        Ordered after the work of torch's current stream; nothing waits on the CPU for it.
        """
        if tensor.dtype != torch.uint8 or tuple(tensor.shape) != (self.height, self.width, 4):
            raise SdbridgeError(
                "SDB-ENGINE-TEXTURE",
                f"a texture of {self.width}x{self.height} takes uint8 [{self.height}, {self.width}, 4], "
                f"not {tensor.dtype} {list(tensor.shape)}",
            )
        if not tensor.is_contiguous():
            raise SdbridgeError("SDB-ENGINE-TEXTURE", "the tensor must be contiguous")
        assert self._runtime is not None and self._resource is not None, "open comes first"
        stream = self._runtime.current_stream()
        with self._runtime.mapped(self._resource, stream) as pointer:
            self._runtime.copy(pointer, tensor.data_ptr(), tensor.numel(), stream)
        # Unmapping orders OpenGL's copy after CUDA's.
        self._texture.write(self._buffer)

    def read(self) -> np.ndarray:
        """The texture as it is, for tests: uint8 ``[H, W, 4]``. Waits for the GPU."""
        content = np.frombuffer(self._texture.read(), np.uint8)
        return content.reshape(self.height, self.width, 4)

    def close(self) -> None:
        """Unregister before the buffer goes: CUDA must not hold what OpenGL has freed."""
        if self._resource is not None and self._runtime is not None:
            self._runtime.unregister(self._resource)
        self._resource = None
        for held in (self._buffer, self._texture):
            if held is not None:
                held.release()
        self._buffer = self._texture = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class CudaRuntime:
    """The calls of CUDA's runtime that join it with OpenGL, each checked."""

    def __init__(self, library: Any = None) -> None:
        self._cuda = library if library is not None else _loaded_runtime()

    def current_stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

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

    def mapped(self, resource: int, stream: int) -> _Mapping:
        """A context in which CUDA may write the buffer; gives its address on the device."""
        return _Mapping(self, resource, stream)

    def map(self, resource: int, stream: int) -> int:
        handle = ctypes.c_void_p(resource)
        self._check(
            "cudaGraphicsMapResources",
            self._cuda.cudaGraphicsMapResources(1, ctypes.byref(handle), ctypes.c_void_p(stream)),
        )
        pointer, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._check(
            "cudaGraphicsResourceGetMappedPointer",
            self._cuda.cudaGraphicsResourceGetMappedPointer(
                ctypes.byref(pointer), ctypes.byref(size), handle
            ),
        )
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


class _Mapping:
    def __init__(self, runtime: CudaRuntime, resource: int, stream: int) -> None:
        self._runtime, self._resource, self._stream = runtime, resource, stream

    def __enter__(self) -> int:
        return self._runtime.map(self._resource, self._stream)

    def __exit__(self, *_exception: object) -> None:
        self._runtime.unmap(self._resource, self._stream)


def _loaded_runtime() -> Any:
    """The CUDA runtime that torch uses. Raises SDB-ENGINE-TEXTURE if it is not where torch keeps it."""
    major = (torch.version.cuda or "").partition(".")[0]
    if sys.platform == "win32":
        pattern, folders = f"cudart64_{major}*.dll", [Path(torch.__file__).parent / "lib"]
    else:
        pattern = f"libcudart*.so.{major}*"
        packages = Path(torch.__file__).parent.parent
        folders = [Path(torch.__file__).parent / "lib", *sorted((packages / "nvidia").glob("*/lib"))]
    for folder in folders:
        for file in sorted(folder.glob(pattern)):
            try:
                return ctypes.CDLL(str(file))
            except OSError as error:
                log.debug("%s is not the CUDA runtime: %s", file, error)
    raise SdbridgeError("SDB-ENGINE-TEXTURE", f"no CUDA runtime {pattern} lies beside torch")
