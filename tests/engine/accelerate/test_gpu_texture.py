"""Tensor to OpenGL texture: the order of calls on a fake CUDA with a software GL, the bits on a real GPU.

The half marked gpu prints its times; see docs/hardware-checks.md for the last ones.
"""

import sys
import time

import pytest
import torch

from sdbridge.engine.accelerate import gpu_texture
from sdbridge.engine.accelerate.gpu_texture import CudaRuntime, TensorTexture, available
from sdbridge.errors import SdbridgeError
from tests.engine.accelerate.fake_cuda import FakeCuda, OnCpu

moderngl = pytest.importorskip("moderngl")


@pytest.fixture
def context():
    try:
        made = moderngl.create_context(standalone=True, backend="egl")
    except Exception as error:
        pytest.skip(f"no OpenGL over EGL here: {error}")
    yield made
    made.release()


BLACK = torch.zeros(4, 8, 4, dtype=torch.uint8)


def test_two_buffers_take_turns_and_the_next_is_mapped_before_its_frame_comes(context) -> None:
    cuda = FakeCuda()
    with TensorTexture(8, 4, OnCpu(cuda)) as texture:
        assert texture.name > 0
        texture.write(BLACK)
        assert cuda.mapped == set(), "OpenGL reads it: CUDA must not hold it"
        texture.prepare()
        assert cuda.mapped == {2}
        texture.prepare()
        texture.write(BLACK)
        texture.write(BLACK)
        texture.prepare()
    assert cuda.mapped == set()
    texture.close()
    assert cuda.calls == [
        *("register 1", "register 2"),
        *("map 1", "pointer 1", "copy 1", "unmap 1"),
        *("map 2", "pointer 2"),
        *("copy 2", "unmap 2"),
        *("map 1", "pointer 1", "copy 1", "unmap 1"),
        *("map 2", "pointer 2", "unmap 2"),
        *("unregister 1", "unregister 2"),
    ]


def test_what_was_mapped_on_another_stream_is_mapped_anew(context) -> None:
    cuda = FakeCuda()
    runtime = OnCpu(cuda)
    with TensorTexture(8, 4, runtime) as texture:
        texture.prepare()
        runtime.stream = 7
        texture.write(BLACK)
    assert cuda.calls[2:8] == ["map 1", "pointer 1", "unmap 1", "map 1", "pointer 1", "copy 1"]


@pytest.mark.parametrize(
    ("fail", "call"),
    [
        ("map", "cudaGraphicsMapResources"),
        ("pointer", "cudaGraphicsResourceGetMappedPointer"),
        ("copy", "cudaMemcpyAsync"),
        ("unmap", "cudaGraphicsUnmapResources"),
    ],
)
def test_a_failing_call_is_named_with_its_code_and_the_next_frame_is_written(context, fail, call) -> None:
    cuda = FakeCuda(fail=fail)
    with TensorTexture(8, 4, OnCpu(cuda)) as texture:
        with pytest.raises(SdbridgeError, match=rf"SDB-ENGINE-TEXTURE.*{call}.*304"):
            texture.write(BLACK)
        cuda.fail = ""
        texture.write(BLACK)
    assert cuda.mapped == set() and cuda.calls[-2:] == ["unregister 1", "unregister 2"]


def test_a_buffer_that_cuda_refuses_leaves_nothing_behind(context) -> None:
    refused = FakeCuda(fail="register")
    texture = TensorTexture(8, 4, OnCpu(refused))
    with pytest.raises(SdbridgeError, match="cudaGraphicsGLRegisterBuffer"):
        texture.open()
    assert texture._buffers == [] and texture._texture is None


def test_a_tensor_that_is_not_on_the_gpu_is_refused(context) -> None:
    runtime = OnCpu(FakeCuda())
    runtime.takes = lambda tensor: CudaRuntime.takes(runtime, tensor)
    with TensorTexture(8, 4, runtime) as texture, pytest.raises(SdbridgeError, match="not on cpu"):
        texture.write(BLACK)


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
    with TensorTexture(8, 4, OnCpu(FakeCuda())) as texture, refused:
        texture.write(tensor)


def test_the_texture_is_the_tensor_bit_for_bit_from_either_buffer(context) -> None:
    with TensorTexture(8, 4, OnCpu(FakeCuda())) as texture:
        for seed in range(5):
            torch.manual_seed(seed)
            tensor = torch.randint(0, 256, (4, 8, 4), dtype=torch.uint8)
            texture.write(tensor)
            if seed % 2:
                texture.prepare()
            assert (texture.read() == tensor.numpy()).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says is loaded")
def test_the_runtime_that_is_loaded_already_comes_first(monkeypatch) -> None:
    monkeypatch.setattr(gpu_texture, "_runtime_pattern", lambda: "libm.so.6")
    (first, *_) = gpu_texture._runtime_files()
    assert first.name == "libm.so.6" and first.is_absolute()


def test_without_cuda_it_says_so() -> None:
    if not torch.cuda.is_available():
        assert available() == (False, "torch sees no CUDA device")


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(512, 512), (1920, 1080)])
def test_on_a_gpu_the_texture_is_the_tensor_bit_for_bit(context, size: tuple[int, int]) -> None:
    able, why = available()
    assert able, why
    width, height = size
    # Not the default stream: the engine's work is not there either.
    with torch.cuda.stream(torch.cuda.Stream()), TensorTexture(width, height, context=context) as texture:
        for seed in range(5):
            torch.manual_seed(seed)
            tensor = torch.randint(0, 256, (height, width, 4), dtype=torch.uint8, device="cuda")
            texture.write(tensor)
            if seed % 2:
                texture.prepare()
            assert (texture.read() == tensor.cpu().numpy()).all()
        print()
        for ahead in (False, True):
            print(f"{width}x{height}: {_milliseconds(context, texture, tensor, ahead)}")


def _milliseconds(context, texture: TensorTexture, tensor: torch.Tensor, ahead: bool) -> str:
    """One frame at a time, until OpenGL has it: the median and p99 of 300."""
    took, called = [], []
    for _ in range(300):
        torch.cuda.synchronize()
        context.finish()
        start = time.perf_counter()
        texture.write(tensor)
        issued = time.perf_counter()
        context.finish()
        took.append((time.perf_counter() - start) * 1000)
        called.append((issued - start) * 1000)
        if ahead:
            texture.prepare()
    took, called = sorted(took[50:]), sorted(called[50:])
    way = "mapped ahead" if ahead else "mapped for the frame"
    return (
        f"{way}: in the texture after {took[125]:.3f} ms (p99 {took[247]:.3f}), "
        f"of which the CPU was busy {called[125]:.3f} ms"
    )
