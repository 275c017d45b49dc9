"""CUDA's runtime as gpu_texture.py uses it, on the CPU's memory; unmapped, it is OpenGL's."""

import ctypes
import ctypes.util

import torch

from sdbridge.engine.accelerate.gpu_texture import CudaRuntime

_COPY_WRITE_BUFFER = 0x8F37


class FakeCuda:
    """The runtime's C functions as documented, on the CPU's memory; any other name raises AttributeError.

    Holds what CUDA leaves undefined: nothing is mapped twice, unmapped twice or unregistered while mapped.
    """

    def __init__(self, fail: str = "") -> None:
        self.fail = fail
        self.calls: list[str] = []
        self.mapped: set[int] = set()
        self._memory: dict[int, ctypes.Array] = {}
        self._buffers: dict[int, int] = {}  # resource -> OpenGL's name of the buffer
        self._gl = ctypes.CDLL(ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL"))

    def _answer(self, name: str, resource: int) -> int:
        self.calls.append(f"{name} {resource}")
        return 304 if name == self.fail else 0

    def cudaGraphicsGLRegisterBuffer(self, resource, buffer, flags) -> int:  # noqa: N802
        assert flags.value == 2 and buffer.value > 0
        if self.fail == "register":
            return self._answer("register", 0)
        resource._obj.value = len(self._memory) + 1
        self._memory[resource._obj.value] = ctypes.create_string_buffer(self._size_of(buffer.value))
        self._buffers[resource._obj.value] = buffer.value
        return self._answer("register", resource._obj.value)

    def cudaGraphicsMapResources(self, count, resources, stream) -> int:  # noqa: N802
        assert count == 1 and resources._obj.value in self._memory
        assert resources._obj.value not in self.mapped
        if self.fail != "map":
            self.mapped.add(resources._obj.value)
        return self._answer("map", resources._obj.value)

    def cudaGraphicsResourceGetMappedPointer(self, pointer, size, resource) -> int:  # noqa: N802
        assert resource.value in self.mapped
        memory = self._memory[resource.value]
        pointer._obj.value, size._obj.value = ctypes.addressof(memory), len(memory)
        return self._answer("pointer", resource.value)

    def cudaMemcpyAsync(self, to, source, count, kind, stream) -> int:  # noqa: N802
        assert kind.value == 3
        into = next(n for n, memory in self._memory.items() if ctypes.addressof(memory) == to.value)
        assert into in self.mapped, "only what is mapped may be written"
        assert count.value <= len(self._memory[into]), "more than the buffer holds"
        ctypes.memmove(to, source, count.value)
        return self._answer("copy", into)

    def cudaGraphicsUnmapResources(self, count, resources, stream) -> int:  # noqa: N802
        assert count == 1
        resource = resources._obj.value
        self.mapped.remove(resource)
        memory = self._memory[resource]
        self._gl.glBindBuffer(_COPY_WRITE_BUFFER, self._buffers[resource])
        self._gl.glBufferSubData(
            _COPY_WRITE_BUFFER, ctypes.c_ssize_t(0), ctypes.c_ssize_t(len(memory)), memory
        )
        return self._answer("unmap", resource)

    def cudaGraphicsUnregisterResource(self, resource) -> int:  # noqa: N802
        assert resource.value not in self.mapped
        del self._memory[resource.value]
        return self._answer("unregister", resource.value)

    def _size_of(self, buffer: int) -> int:
        size = ctypes.c_int()
        self._gl.glBindBuffer(_COPY_WRITE_BUFFER, buffer)
        self._gl.glGetBufferParameteriv(_COPY_WRITE_BUFFER, 0x8764, ctypes.byref(size))
        return size.value


class OnCpu(CudaRuntime):
    """There is no CUDA stream here, and the tensors are the CPU's."""

    stream = 0

    def current_stream(self) -> int:
        return self.stream

    def takes(self, tensor: torch.Tensor) -> bool:
        return True
