"""Tensor to OpenGL texture: the order of calls on a fake CUDA with a software GL, the bits on a real GPU.

The half marked gpu has not been run in this tree: no GPU was left when it was written.
"""

import ctypes
import time

import numpy as np
import pytest
import torch

from sdbridge.engine.accelerate.gpu_texture import CudaRuntime, TensorTexture, available
from sdbridge.errors import SdbridgeError

moderngl = pytest.importorskip("moderngl")


@pytest.fixture
def context():
    try:
        made = moderngl.create_context(standalone=True, backend="egl")
    except Exception as error:
        pytest.skip(f"no OpenGL over EGL here: {error}")
    yield made
    made.release()


class FakeCuda:
    """The runtime's C functions as documented, on the CPU's memory; any other name raises AttributeError."""

    def __init__(self, context, fail: str = "") -> None:
        self._context = context
        self._fail = fail
        self.calls: list[str] = []
        self._memory: ctypes.Array | None = None

    def _answer(self, name: str) -> int:
        self.calls.append(name)
        return 304 if name == self._fail else 0

    def cudaGraphicsGLRegisterBuffer(self, resource, buffer, flags) -> int:  # noqa: N802
        assert flags.value == 2 and buffer.value > 0
        resource._obj.value = 4242
        return self._answer("register")

    def cudaGraphicsMapResources(self, count, resources, stream) -> int:  # noqa: N802
        assert count == 1 and resources._obj.value == 4242
        self._memory = ctypes.create_string_buffer(4096)
        return self._answer("map")

    def cudaGraphicsResourceGetMappedPointer(self, pointer, size, resource) -> int:  # noqa: N802
        assert resource.value == 4242
        pointer._obj.value, size._obj.value = ctypes.addressof(self._memory), 4096
        return self._answer("pointer")

    def cudaMemcpyAsync(self, to, source, count, kind, stream) -> int:  # noqa: N802
        assert kind.value == 3
        ctypes.memmove(to, source, count.value)
        return self._answer("copy")

    def cudaGraphicsUnmapResources(self, count, resources, stream) -> int:  # noqa: N802
        assert count == 1 and resources._obj.value == 4242
        return self._answer("unmap")

    def cudaGraphicsUnregisterResource(self, resource) -> int:  # noqa: N802
        assert resource.value == 4242
        return self._answer("unregister")


class OnCpu(CudaRuntime):
    """There is no CUDA stream here."""

    def current_stream(self) -> int:
        return 0


def test_each_frame_is_mapped_copied_and_unmapped_and_the_end_unregisters(context) -> None:
    cuda = FakeCuda(context)
    with TensorTexture(8, 4, OnCpu(cuda)) as texture:
        assert texture.name > 0
        for _ in range(2):
            texture.write(torch.zeros(4, 8, 4, dtype=torch.uint8))
    texture.close()
    frame = ["map", "pointer", "copy", "unmap"]
    assert cuda.calls == ["register", *frame, *frame, "unregister"]


def test_a_failing_call_is_named_with_its_code_and_the_buffer_is_unmapped(context) -> None:
    cuda = FakeCuda(context, fail="copy")
    failing = pytest.raises(SdbridgeError, match=r"SDB-ENGINE-TEXTURE.*cudaMemcpyAsync.*304")
    with TensorTexture(8, 4, OnCpu(cuda)) as texture, failing:
        texture.write(torch.zeros(4, 8, 4, dtype=torch.uint8))
    assert cuda.calls[-2:] == ["unmap", "unregister"]
    refused = FakeCuda(context, fail="register")
    with pytest.raises(SdbridgeError, match="cudaGraphicsGLRegisterBuffer"):
        TensorTexture(8, 4, OnCpu(refused)).open()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 8, 3, dtype=torch.uint8),
        torch.zeros(8, 4, 4, dtype=torch.uint8),
        torch.zeros(4, 8, 4),
        torch.zeros(4, 8, 8, dtype=torch.uint8)[..., ::2],
    ],
)
def test_a_tensor_of_another_shape_kind_or_stride_is_refused(context, tensor: torch.Tensor) -> None:
    refused = pytest.raises(SdbridgeError, match="SDB-ENGINE-TEXTURE")
    with TensorTexture(8, 4, OnCpu(FakeCuda(context))) as texture, refused:
        texture.write(tensor)


def test_a_texture_that_opengl_filled_is_read_back_bit_exact(context) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (4, 8, 4), dtype=np.uint8)
    with TensorTexture(8, 4, OnCpu(FakeCuda(context))) as texture:
        texture._buffer.write(pixels.tobytes())
        texture._texture.write(texture._buffer)
        assert (texture.read() == pixels).all()


def test_without_cuda_it_says_so() -> None:
    if not torch.cuda.is_available():
        assert available() == (False, "torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(512, 512), (1920, 1080)])
def test_on_a_gpu_the_texture_is_the_tensor_bit_for_bit(context, size: tuple[int, int]) -> None:
    able, why = available()
    assert able, why
    width, height = size
    with TensorTexture(width, height) as texture:
        for seed in range(3):
            torch.manual_seed(seed)
            tensor = torch.randint(0, 256, (height, width, 4), dtype=torch.uint8, device="cuda")
            texture.write(tensor)
            assert (texture.read() == tensor.cpu().numpy()).all()
        torch.cuda.synchronize()
        context.finish()
        start = time.perf_counter()
        for _ in range(200):
            texture.write(tensor)
        context.finish()
        print(f"{width}x{height}: {(time.perf_counter() - start) * 5:.3f} ms a frame")
