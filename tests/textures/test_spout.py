"""Spout's receiver and sender against a fake made of the names the true SpoutGL 0.1.1 has, and no others."""

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import spout
from sdbridge.textures.spout import GL_BGRA, GL_RGBA, Receiver, Sender

#: What dir() of the classes in the true wheel says under wine, 2026-11: everything else must raise.
SHARED_NAMES = {
    "closeOpenGL", "createOpenGL", "getActiveSender", "getAutoShare", "getCPUshare", "getMemoryBufferSize",
    "getSenderInfo", "isGLDXReady", "setActiveSender", "setAutoShare", "setCPUshare", "setFrameSync",
    "waitFrameSync",
}  # fmt: skip
SENDER_NAMES = SHARED_NAMES | {
    "createMemoryBuffer", "deleteMemoryBuffer", "getCPU", "getFrame", "getGLDX", "releaseSender", "sendFbo",
    "sendImage", "sendTexture", "setSenderName", "writeMemoryBuffer",
}  # fmt: skip
RECEIVER_NAMES = SHARED_NAMES | {
    "getSenderFormat", "getSenderFrame", "getSenderHeight", "getSenderList", "getSenderName",
    "getSenderWidth", "isConnected", "isFrameCountEnabled", "isFrameNew", "isUpdated", "readMemoryBuffer",
    "receiveImage", "receiveTexture", "releaseReceiver", "setReceiverName",
}  # fmt: skip


class Desk:
    """One Windows desktop: who sends what."""

    def __init__(self) -> None:
        self.pictures: dict[str, tuple[np.ndarray, int]] = {}  # name -> picture, DXGI format
        self.frame = 0
        self.context = True
        self.open_contexts = 0
        self.active = ""
        self.gl = None  # moderngl's context; without it there are images only
        self.slow = 0.0  # seconds that another program makes a texture call wait

    def show(self, name: str, pixels: np.ndarray, dxgi: int = 28) -> None:
        self.pictures[name] = (pixels, dxgi)
        self.frame += 1


class _Ended:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.cpu_share = False

    def createOpenGL(self) -> bool:  # noqa: N802
        self._desk.open_contexts += self._desk.context
        return self._desk.context

    def closeOpenGL(self) -> None:  # noqa: N802
        self._desk.open_contexts -= 1

    def setCPUshare(self, on) -> None:  # noqa: N802
        assert on is True
        self.cpu_share = True

    def isGLDXReady(self) -> bool:  # noqa: N802
        return not self.cpu_share

    def getActiveSender(self):  # noqa: N802
        return self._desk.active or None


class FakeReceiver(_Ended):
    """Updated first when a sender or its size is new, without writing; then new once a frame."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._name = ""
        self._known: tuple[int, int] | None = None
        self._seen = self._updated = self._new = 0
        self._late: np.ndarray | None = None  # in the library's own pixel buffer

    def setReceiverName(self, name) -> None:  # noqa: N802
        self._name, self._known = name, None

    def getSenderList(self) -> list[str]:  # noqa: N802
        return list(self._desk.pictures)

    def receiveImage(self, buffer, gl_format, invert, host_fbo) -> bool:  # noqa: N802
        assert gl_format in (GL_RGBA, GL_BGRA) and isinstance(invert, bool) and host_fbo == 0
        picture = self._look()
        if picture is None or self._updated:
            return picture is not None
        if buffer is None:
            return False
        assert len(memoryview(buffer).cast("B")) == picture.size
        if self._new:
            rows = picture[::-1] if invert else picture
            late, self._late = self._late, rows if gl_format == GL_RGBA else rows[..., [2, 1, 0, 3]]
            if late is not None:  # of the call before; the first leaves the buffer as it is
                memoryview(buffer).cast("B")[:] = late.tobytes()
        return True

    def receiveTexture(self, texture, target, invert, host_fbo) -> bool:  # noqa: N802
        assert texture > 0 and target == 0x0DE1 and isinstance(invert, bool) and host_fbo == 0
        time.sleep(self._desk.slow)
        picture = self._look()
        if picture is None or self._updated:
            return picture is not None
        if self._new:
            height, width = picture.shape[:2]
            rows = picture[::-1] if invert else picture
            self._desk.gl.external_texture(texture, (width, height), 4, 0, "f1").write(rows.tobytes())
        return True

    def _look(self) -> np.ndarray | None:
        self._updated = self._new = 0
        if self._name not in self._desk.pictures:
            self._known = None
            return None
        picture, _ = self._desk.pictures[self._name]
        if self._known != picture.shape[:2]:
            self._known, self._updated, self._seen, self._late = picture.shape[:2], 1, -1, None
        elif self._seen != self._desk.frame:
            self._seen, self._new = self._desk.frame, 1
        return picture

    def isUpdated(self) -> bool:  # noqa: N802
        return bool(self._updated)

    def isFrameNew(self) -> bool:  # noqa: N802
        return bool(self._new)

    def isConnected(self) -> bool:  # noqa: N802
        return self._known is not None

    def getSenderWidth(self) -> int:  # noqa: N802
        return self._known[1]

    def getSenderHeight(self) -> int:  # noqa: N802
        return self._known[0]

    def getSenderFormat(self) -> int:  # noqa: N802
        return self._desk.pictures[self._name][1]

    def releaseReceiver(self) -> None:  # noqa: N802
        self._known = None


class FakeSender(_Ended):
    """Shows on the desk what it is sent."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._name = ""

    def setSenderName(self, name) -> None:  # noqa: N802
        self._name = name

    def sendImage(self, buffer, width, height, gl_format, invert, host_fbo) -> bool:  # noqa: N802
        assert gl_format == GL_RGBA and isinstance(invert, bool) and host_fbo == 0
        pixels = np.frombuffer(bytes(memoryview(buffer).cast("B")), np.uint8).reshape(height, width, 4)
        if not self._desk.context:
            return False
        self._desk.show(self._name, pixels[::-1] if invert else pixels)
        return True

    def sendTexture(self, texture, target, width, height, invert, host_fbo) -> bool:  # noqa: N802
        assert target == 0x0DE1 and isinstance(invert, bool) and host_fbo == 0
        time.sleep(self._desk.slow)
        content = self._desk.gl.external_texture(texture, (width, height), 4, 0, "f1").read()
        pixels = np.frombuffer(content, np.uint8).reshape(height, width, 4)
        self._desk.show(self._name, pixels[::-1] if invert else pixels)
        return True

    def releaseSender(self) -> None:  # noqa: N802
        self._desk.pictures.pop(self._name, None)


def test_the_fakes_have_no_name_that_the_true_wheel_lacks() -> None:
    for fake, known in ((FakeReceiver, RECEIVER_NAMES), (FakeSender, SENDER_NAMES)):
        assert {name for name in dir(fake) if not name.startswith("_")} <= known


@pytest.fixture(params=["textures", "images"])
def desk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """With pixel buffers of our own, and without."""
    desk = Desk()
    if request.param == "textures":
        moderngl = pytest.importorskip("moderngl")
        try:
            desk.gl = moderngl.create_context(standalone=True, backend="egl")
        except Exception as error:
            pytest.skip(f"no OpenGL over EGL here: {error}")
        monkeypatch.setattr(moderngl, "create_context", lambda: desk.gl)
    else:
        monkeypatch.setattr(spout, "usable", lambda: (None, "none on this machine"))
    module = type(
        "SpoutGL",
        (),
        {"SpoutReceiver": lambda: FakeReceiver(desk), "SpoutSender": lambda: FakeSender(desk)},
    )
    monkeypatch.setitem(sys.modules, "SpoutGL", module)
    monkeypatch.setattr(spout, "_POLL_S", 0.0001)
    monkeypatch.setattr(spout, "_availability", lambda platform="win32": (True, "a fake desktop"))
    yield desk
    if desk.gl is not None:
        desk.gl.release()
    assert desk.open_contexts == 0, "every GL context was closed"


def picture(height: int = 3, width: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 4), dtype=np.uint8)


def arrived(desk: Desk, receiver: Receiver, name: str, pixels: np.ndarray, dxgi: int = 28) -> np.ndarray:
    """What the receiver gives for a picture. An image comes with the next frame, so that is sent too."""
    desk.show(name, pixels, dxgi)
    if desk.gl is None:
        receiver.receive(0.02)
        desk.show(name, pixels, dxgi)
    got = receiver.receive(1.0)
    assert got is not None, "no picture came"
    return got


def test_frames_arrive_once_each_in_their_size_and_order(desk: Desk) -> None:
    with Receiver("TD", {}) as receiver:
        assert receiver.receive(0.001) is None and not receiver.connected
        assert "waiting for TD" in receiver.describe()
        assert (arrived(desk, receiver, "TD", picture()) == picture()).all()
        assert receiver.connected and "4x3 by GPU" in receiver.describe()
        assert receiver.receive(0.001) is None, "the same frame is not given twice"
        assert (arrived(desk, receiver, "TD", picture(5, 2, 3)) == picture(5, 2, 3)).all()


def test_a_bgra_sender_arrives_as_rgba(desk: Desk) -> None:
    with Receiver("TD", {}) as receiver:
        assert (arrived(desk, receiver, "TD", picture(), dxgi=87) == picture()).all()


def test_what_the_caller_got_is_not_written_again(desk: Desk) -> None:
    with Receiver("TD", {}) as receiver:
        first = arrived(desk, receiver, "TD", picture())
        arrived(desk, receiver, "TD", picture(seed=9))
        assert (first == picture()).all()


def test_a_sender_that_ends_and_comes_back_is_met_again(desk: Desk) -> None:
    with Receiver("TD", {}) as receiver:
        arrived(desk, receiver, "TD", picture())
        del desk.pictures["TD"]
        assert receiver.receive(0.001) is None
        receiver.clock = Later(receiver.clock, 5.0)
        assert not receiver.connected
        assert (arrived(desk, receiver, "TD", picture(7, 7, 4)) == picture(7, 7, 4)).all()


class Later:
    """A clock ahead of another."""

    def __init__(self, clock, seconds: float) -> None:
        self._clock, self._ahead_ns = clock, int(seconds * 1e9)

    def now_ns(self) -> int:
        return self._clock.now_ns() + self._ahead_ns

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


def test_without_a_name_the_active_sender_is_taken_but_never_our_own(desk: Desk) -> None:
    with Sender("ours", {}) as sender, Receiver("", {}) as receiver:
        sender.send(Frame(picture(seed=5), 1, 0), {})
        desk.active = "ours"
        assert receiver.receive(0.001) is None
        desk.show("first", picture(seed=6))
        desk.show("second", picture(seed=7))
        desk.active = "second"
        receiver._last_look_ns = None
        assert (arrived(desk, receiver, "second", picture(seed=7)) == picture(seed=7)).all()


def test_sources_are_listed_from_the_sender_list(desk: Desk) -> None:
    desk.show("A", picture())
    desk.show("B", picture())
    desk.active = "B"
    assert [(source.name, source.detail) for source in Receiver.list_sources()] == [
        ("A", ""),
        ("B", "the active sender"),
    ]


def test_frames_are_sent_top_row_first_under_one_name_and_the_size_may_change(desk: Desk) -> None:
    with Sender("show", {}) as sender:
        for seed, (height, width) in enumerate(((3, 4), (1, 1), (513, 511))):
            sender.send(Frame(picture(height, width, seed), seed, 0), {"prompt": "x"})
            assert (desk.pictures["show"][0] == picture(height, width, seed)).all()
            assert list(desk.pictures) == ["show"]
        assert "511x513 by GPU" in sender.describe()
    assert desk.pictures == {}


def test_bottom_up_turns_the_rows_both_ways(desk: Desk) -> None:
    with Sender("show", {"bottom_up": True}) as sender:
        sender.send(Frame(picture(), 1, 0), {})
        assert (desk.pictures["show"][0] == picture()[::-1]).all()
        with Receiver("show", {"bottom_up": True}) as receiver:
            assert (arrived(desk, receiver, "show", picture()[::-1]) == picture()).all()


def test_a_frame_that_is_not_taken_is_counted_and_said_once(desk: Desk, caplog) -> None:
    with Sender("show", {"cpu_share": True}) as sender:
        desk.context = False
        for number in range(3):
            sender.send(Frame(picture(), number, 0), {})
        desk.context = True
        assert sender.refused == 3
    assert sum("did not take" in record.message for record in caplog.records) == 1


def test_a_taken_name_and_a_missing_context_are_errors(desk: Desk) -> None:
    desk.show("show", picture())
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-NAME"):
        Sender("show", {}).open()
    desk.context = False
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
        Receiver("show", {}).open()


def test_elsewhere_than_on_windows_it_says_so() -> None:
    assert spout._availability("linux") == (False, "Spout exists on Windows only, this is linux")
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
        Sender("show", {}).open()


def test_our_own_outputs_are_not_listed_as_sources(desk: Desk) -> None:
    desk.show("theirs", picture())
    with Sender("ours", {}) as sender:
        sender.send(Frame(picture(), 1, 0), {})
        assert [source.name for source in Receiver.list_sources()] == ["theirs"]


def test_the_library_s_images_come_a_frame_late_and_the_first_is_none_at_all(desk: Desk) -> None:
    """What true Spout does with its own pixel buffers; ours are not late, and show what stands still."""
    desk.show("TD", picture(seed=1))
    with Receiver("TD", {}) as receiver:
        first = receiver.receive(0.05)
        if desk.gl is not None:
            assert (first == picture(seed=1)).all()
            return
        assert first is None, "memory that nobody wrote is not shown"
        desk.show("TD", picture(seed=2))
        assert (receiver.receive(1.0) == picture(seed=1)).all()


def test_frames_sent_by_pixel_buffers_are_the_same(desk: Desk) -> None:
    with Sender("show", {"pixel_buffers": True}) as sender:
        for seed, (height, width) in enumerate(((3, 4), (3, 4), (3, 4), (1, 1), (513, 511))):
            sender.send(Frame(picture(height, width, seed), seed, 0), {})
            assert (desk.pictures["show"][0] == picture(height, width, seed)).all()


def test_a_program_that_makes_us_wait_is_met_by_images(desk: Desk, caplog) -> None:
    if desk.gl is None:
        pytest.skip("there are images only")
    with Receiver("TD", {}) as receiver, Sender("show", {"pixel_buffers": True}) as sender:
        arrived(desk, receiver, "TD", picture())
        desk.slow = 0.03
        for seed in range(3):
            sender.send(Frame(picture(seed=seed), seed, 0), {})
            receiver.receive(0.0)
        assert receiver._download is None and sender._upload is None
        desk.gl = None
        assert (arrived(desk, receiver, "TD", picture(seed=8)) == picture(seed=8)).all()
        sender.send(Frame(picture(seed=9), 9, 0), {})
        assert (desk.pictures["show"][0] == picture(seed=9)).all()
    assert sum("makes us wait" in record.message for record in caplog.records) == 2


def test_pixel_buffers_can_be_switched_off(desk: Desk) -> None:
    with Receiver("TD", {"pixel_buffers": False}) as receiver:
        assert receiver._download is None
