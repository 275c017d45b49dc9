"""The engine's Spout sender on a fake SpoutGL, a fake CUDA and software OpenGL: what is sent and left."""

import sys

import numpy as np
import pytest
import torch

from sdbridge.engine.accelerate import spout_output
from sdbridge.engine.accelerate.spout_output import SpoutShow
from sdbridge.engine.gpu_output import GpuUnusableError
from sdbridge.errors import SdbridgeError
from tests.engine.accelerate.fake_cuda import FakeCuda, OnCpu

moderngl = pytest.importorskip("moderngl")


class Desk:
    """One Windows desktop: the names on it, and the pixels of the textures sent."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.context: object = None
        self.takes = True
        self.spoil = False  # whether another picture than the one sent is shown
        self.shown: dict[str, np.ndarray] = {}
        self.sent: list[tuple] = []
        self.closed = 0
        self.closed_receivers = 0


def fake_library(desk: Desk, context_of) -> type:
    """Only the names that the true SpoutGL 0.1.1 has and that we call; any other raises AttributeError."""

    class SpoutSender:
        def createOpenGL(self) -> bool:  # noqa: N802
            desk.context = context_of()
            return desk.context is not None

        def closeOpenGL(self) -> None:  # noqa: N802
            desk.closed += 1

        def setSenderName(self, name) -> None:  # noqa: N802
            self.name = name
            desk.names.append(name)

        def sendTexture(self, texture, target, width, height, invert, host_fbo) -> bool:  # noqa: N802
            assert target == 0x0DE1 and isinstance(invert, bool) and host_fbo == 0
            if not desk.takes:
                return False
            seen = desk.context.external_texture(texture, (width, height), 4, 0, "f1")
            pixels = np.frombuffer(seen.read(), np.uint8).reshape(height, width, 4)
            desk.sent.append((self.name, pixels, invert))
            desk.shown[self.name] = pixels[::-1] if invert else pixels
            return True

        def releaseSender(self) -> None:  # noqa: N802
            if getattr(self, "name", "") in desk.names:
                desk.names.remove(self.name)

    class SpoutReceiver:
        def getSenderList(self) -> list[str]:  # noqa: N802
            return list(desk.names)

        def setReceiverName(self, name) -> None:  # noqa: N802
            self.name, self.updated = name, False

        def isUpdated(self) -> bool:  # noqa: N802
            updated, self.updated = self.updated, True
            return not updated

        def receiveTexture(self, texture, target, invert, host_fbo) -> bool:  # noqa: N802
            assert target == 0x0DE1 and isinstance(invert, bool) and host_fbo == 0
            pixels = desk.shown[self.name]
            pixels = pixels[::-1] if invert else pixels
            into = desk.context.external_texture(texture, pixels.shape[1::-1], 4, 0, "f1")
            into.write((pixels * (0 if desk.spoil else 1)).tobytes())
            return True

        def releaseReceiver(self) -> None:  # noqa: N802
            desk.closed_receivers += 1

    return type("SpoutGL", (), {"SpoutSender": SpoutSender, "SpoutReceiver": SpoutReceiver})


@pytest.fixture
def desk(request, monkeypatch):
    try:
        context = moderngl.create_context(standalone=True, backend="egl")
    except Exception as error:
        pytest.skip(f"no OpenGL over EGL here: {error}")
    desk = Desk()
    monkeypatch.setitem(sys.modules, "SpoutGL", fake_library(desk, lambda: context))
    monkeypatch.setattr(moderngl, "create_context", lambda: context)
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(spout_output, "CudaRuntime", lambda: OnCpu(FakeCuda()))
    yield desk
    context.release()


def opened(**options) -> SpoutShow:
    show = SpoutShow(options, platform="win32")
    show.open()
    return show


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (height, width, 4), dtype=torch.uint8)


def test_pictures_go_out_bit_for_bit_top_row_first_and_the_size_may_change(desk) -> None:
    show = opened()
    assert show.take("stage")
    for seed, size in enumerate([(4, 8), (4, 8), (6, 2), (4, 8)]):
        made = picture(*size, seed)
        kept = show.keep(made)
        wanted = made.numpy().copy()
        made.zero_()  # the engine paints its next picture meanwhile
        show.show(kept)
        name, pixels, invert = desk.sent[-1]
        assert name == "stage" and (pixels == wanted).all() and invert is False
    show.close()
    show.close()
    assert desk.names == [] and desk.closed == 1


def test_a_picture_that_lies_otherwise_in_memory_is_the_same(desk) -> None:
    show = opened()
    show.take("stage")
    planes = picture(4, 8, 0).permute(2, 0, 1).contiguous()  # as a decoder may leave it
    show.show(show.keep(planes.permute(1, 2, 0)))
    assert (desk.sent[-1][1] == picture(4, 8, 0).numpy()).all()
    show.close()


def test_bottom_up_is_spouts_own_turning(desk) -> None:
    show = opened(bottom_up=True)
    show.take("stage")
    show.show(show.keep(picture(4, 8, 0)))
    assert desk.sent[-1][2] is True
    show.close()


def test_a_name_that_somebody_has_is_waited_for_never_renamed(desk) -> None:
    desk.names.append("stage")
    show = opened()
    assert not show.take("stage")
    desk.names.remove("stage")
    assert show.take("stage") and desk.names == ["stage"]
    show.release()
    assert desk.names == []
    assert show.take("stage")
    show.close()


def test_a_texture_that_spout_does_not_take_is_an_error(desk) -> None:
    show = opened()
    show.take("stage")
    desk.takes = False
    with pytest.raises(SdbridgeError, match=r"SDB-ENGINE-TEXTURE.*did not take"):
        show.show(show.keep(picture(4, 8, 0)))
    desk.takes = True
    show.show(show.keep(picture(4, 8, 1)))
    show.close()


def test_gpus_that_are_not_the_same_are_noticed_before_any_name_is_taken(desk, monkeypatch) -> None:
    monkeypatch.setattr(spout_output, "CudaRuntime", lambda: OnCpu(FakeCuda(fail="register")))
    show = SpoutShow({}, platform="win32")
    with pytest.raises(SdbridgeError, match="cudaGraphicsGLRegisterBuffer"):
        show.open()
    show.close()
    assert desk.closed == 1 and desk.names == []


@pytest.mark.parametrize(
    ("options", "platform", "says"),
    [({}, "linux", "Windows only"), ({"cpu_share": True}, "win32", "cpu_share")],
)
def test_where_it_cannot_be_the_reason_is_said(options, platform: str, says: str) -> None:
    with pytest.raises(SdbridgeError, match=says):
        SpoutShow(options, platform=platform).open()


def test_without_an_opengl_context_it_says_so(desk, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "SpoutGL", fake_library(desk, lambda: None))
    with pytest.raises(SdbridgeError, match="OpenGL context"):
        opened()


def test_without_cuda_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(SdbridgeError, match="no CUDA runtime"):
        opened()


def test_a_driver_that_shows_something_else_is_noticed_with_the_first_picture(desk, monkeypatch) -> None:
    monkeypatch.setattr(spout_output, "_LOOK_EVERY_S", 0.0)
    desk.spoil = True
    show = opened()
    show.take("stage")
    with pytest.raises(GpuUnusableError, match="not the picture that was sent"):
        show.show(show.keep(picture(4, 8, 0)))
    assert desk.closed_receivers == 1
    show.close()


def test_the_first_picture_is_looked_at_and_no_other(desk) -> None:
    show = opened()
    show.take("stage")
    for seed in range(3):
        show.show(show.keep(picture(4, 8, seed)))
    show.release()
    show.take("stage")
    show.show(show.keep(picture(4, 8, 5)))
    assert desk.closed_receivers == 1
    show.close()


def test_a_program_that_makes_the_engine_wait_is_left_to_the_bridge(desk) -> None:
    times = iter(range(10**6))  # each look at the clock is a second later
    show = SpoutShow({}, platform="win32", now=lambda: float(next(times)))
    show.open()
    show.take("stage")
    show.show(show.keep(picture(4, 8, 0)))
    with pytest.raises(GpuUnusableError, match="makes the engine wait"):
        for seed in range(5):
            show.show(show.keep(picture(4, 8, seed)))
    show.close()


@pytest.mark.gpu
def test_on_a_gpu_pictures_that_are_still_being_made_go_out_whole(desk) -> None:
    """The engine queues a picture behind long work, offers it at once, and goes on in the same memory."""
    show = opened()
    assert show.take("stage")
    engine = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device="cuda")
    with torch.cuda.stream(engine):
        made = torch.empty(512, 512, 4, dtype=torch.uint8, device="cuda")
    for seed in range(10):
        wanted = picture(512, 512, seed)
        coming = wanted.cuda()
        torch.cuda.synchronize()
        with torch.cuda.stream(engine):
            for _ in range(5):
                slow = slow @ slow * 1e-3
            made.copy_(coming)
            kept = show.keep(made)
            made.zero_()
        show.show(kept)
        assert (desk.sent[-1][1] == wanted.numpy()).all()
    show.close()
    assert desk.names == []
