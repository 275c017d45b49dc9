"""NDI between processes, by address: what leaves arrives, what dies is met again, nobody is stalled."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures.auto import choose_sender
from sdbridge.textures.ndi import finder, library
from sdbridge.textures.ndi import receiver as receiver_module
from sdbridge.textures.ndi.finder import Found
from sdbridge.textures.ndi.metadata import from_xml, to_xml
from sdbridge.textures.ndi.receiver import Receiver
from sdbridge.textures.ndi.sender import Sender
from sdbridge.textures.test_card import TestCard, read_number

PEERS = Path(__file__).parent / "peers"
ME = os.getpid()  # NDI names are one for the whole machine, and others may run these tests too
able, why = library.available()
needs_ndi = pytest.mark.skipif(not able, reason=why)


class Peer:
    """An outside program; ends when its standard input is closed."""

    def __init__(self, script: str, *arguments: object) -> None:
        command = [sys.executable, str(PEERS / script), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def address(self) -> str:
        return f"127.0.0.1:{port_of(self.process.pid)}"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def peer() -> Iterator:
    started: list[Peer] = []

    def start(script: str, *arguments: object) -> Peer:
        started.append(Peer(script, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def port_of(process: int) -> int:
    """The port on which a process offers NDI pictures; 5960 is for messages."""
    for _ in range(200):
        ports = [c.laddr.port for c in psutil.Process(process).net_connections() if c.status == "LISTEN"]
        for port in sorted(ports):
            if 5961 <= port < 6100:
                return port
        time.sleep(0.05)
    raise AssertionError("no NDI port was opened")


def frame_from(receiver: Receiver, seconds: float = 15.0) -> np.ndarray:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pixels = receiver.receive(0.1)
        if pixels is not None:
            return pixels
    raise AssertionError(f"no frame in {seconds} s: {receiver.describe()}")


@needs_ndi
def test_an_outside_source_is_received_with_its_numbers_colours_and_metadata(peer) -> None:
    source = peer("ndi_source.py", f"camera {ME}", 512, 384, 30)
    assert f"camera {ME}" in source.line()
    with Receiver(source.address(), {}) as receiver:
        assert not receiver.connected and "waiting" in receiver.describe()
        first = frame_from(receiver)
        assert receiver.connected and "512x384" in receiver.describe()
        assert first.shape == (384, 512, 4) and first.dtype == np.uint8 and first.flags.c_contiguous
        numbers = [read_number(frame_from(receiver)) for _ in range(10)]
        assert None not in numbers and numbers == sorted(set(numbers))
        received = frame_from(receiver)
        sent = TestCard(512, 384).draw(read_number(received))
        # NDI is lossy; a swap of colours or a flip would be far off.
        assert abs(received[..., :3].astype(int) - sent[..., :3]).mean() < 6
        assert (received[..., 3] == 255).all()
        assert receiver.metadata["number"].isdigit()


@needs_ndi
def test_a_killed_source_gives_none_and_comes_back_on_another_port(peer) -> None:
    source = peer("ndi_source.py", f"dying {ME}", 128, 128, 60)
    source.line()
    receiver = Receiver(f"dying {ME}", {})
    receiver._finder = seen = SeenByTest()  # discovery needs avahi; what it would show is given here
    seen.show(f"VM (dying {ME})", source.address())
    try:
        frame_from(receiver)
        source.kill()
        deadline = time.monotonic() + 60
        while receiver.connected:
            assert receiver.receive(0.05) is None or time.monotonic() < deadline
        assert "waiting" in receiver.describe()
        again = peer("ndi_source.py", f"dying {ME}", 128, 128, 60)
        again.line()
        seen.show(f"VM (dying {ME})", again.address())
        frame_from(receiver)
        receiver.close()
        receiver.close()
        assert receiver.receive(0.0) is None
    finally:
        receiver.close()


@needs_ndi
def test_a_connection_that_nobody_answers_is_made_again(peer, monkeypatch) -> None:
    """As where a source was seen a moment before it could answer: the first caller is left hanging."""
    monkeypatch.setattr(receiver_module, "_KNOCK_EVERY_S", 0.5)
    source = peer("ndi_source.py", f"slow {ME}", 128, 128, 60)
    source.line()
    with Door(int(source.address().rpartition(":")[2])) as door:
        receiver = Receiver(f"slow {ME}", {})
        receiver._finder = seen = SeenByTest()
        seen.show(f"VM (slow {ME})", f"127.0.0.1:{door.port}")
        try:
            frame_from(receiver)
            assert door.callers >= 2
            callers = door.callers
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                receiver.receive(0.1)
            assert door.callers == callers, "one that answers is not called again"
        finally:
            receiver.close()


class Door:
    """A port that leaves its first caller hanging and leads the others to ``port``."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.callers = 0
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.callers += 1
            self._ends.append(caller)
            if self.callers == 1:
                continue
            inside = socket.create_connection(("127.0.0.1", self._to))
            self._ends.append(inside)
            for a, b in ((caller, inside), (inside, caller)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    @staticmethod
    def _carry(a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._ends):
            end.close()


@needs_ndi
def test_the_call_that_would_stall_every_thread_goes_past_the_binding() -> None:
    # Through ndi-python it holds the interpreter's lock for 0.5 to 16 s when a source is dead.
    native = library._native()
    assert native is not None and native.NDIlib_recv_destroy


class SeenByTest(finder.Finder):
    """A finder that sees what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[Found, ...] = ()

    def show(self, name: str, address: str) -> None:
        self.found = (Found(name, address),)

    def sources(self) -> tuple[Found, ...]:
        return self.found


@needs_ndi
def test_our_frames_reach_an_outside_viewer_with_metadata_and_odd_sizes_made_even(peer) -> None:
    with Sender(f"out {ME}", {}) as sender:
        assert sender.public_name.endswith(f"(out {ME})")
        viewer = peer("ndi_viewer.py", f"127.0.0.1:{port_of(psutil.Process().pid)}")
        end = time.monotonic() + 60
        while sender.receivers == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert sender.receivers == 1
        sent = threading.Event()

        def send_until_seen() -> None:
            number = 0
            card, odd = TestCard(512, 256), TestCard(513, 255)
            while not sent.wait(1 / 60):
                shape = card if number < 60 else odd
                sender.send(Frame(shape.draw(number), number, 1234, 8), {"prompt": 'a <b> "c" & d'})
                number += 1

        thread = threading.Thread(target=send_until_seen, daemon=True)
        thread.start()
        try:
            seen = json.loads(viewer.line())
            assert seen["size"] == [512, 256]
            attributes = from_xml(seen["metadata"])
            assert attributes["prompt"] == 'a <b> "c" & d' and attributes["revision"] == "8"
            assert int(attributes["frame_id"]) == seen["number"]
            while seen["size"] == [512, 256]:
                seen = json.loads(viewer.line())
            assert seen["size"] == [514, 256], "the last row and column were doubled, nothing was cut"
            assert sender.on_program and "on program" in sender.describe()
        finally:
            sent.set()
            thread.join()


@needs_ndi
@pytest.mark.parametrize("lamp", [True, False])
def test_a_receiver_lights_the_source_s_red_lamp_if_it_is_asked_to(lamp: bool) -> None:
    with Sender(f"tally {ME}", {}) as sender:
        address = f"127.0.0.1:{port_of(psutil.Process().pid)}"
        card = TestCard(64, 64)
        assert not sender.on_program and "on program" not in sender.describe()
        with Receiver(address, {"tally": lamp}) as receiver:
            end = time.monotonic() + 60
            got = 0
            while (got < 20 or sender.on_program != lamp) and time.monotonic() < end:
                sender.send(Frame(card.draw(got), got, 0), {})
                got += receiver.receive(0.05) is not None
            assert got >= 20 and sender.on_program is lamp
            assert ("on program" in sender.describe()) is lamp


@needs_ndi
def test_nothing_is_encoded_while_nobody_receives() -> None:
    with Sender(f"alone {ME}", {}) as sender:
        for number in range(20):
            sender.send(Frame(TestCard(64, 64).draw(number), number, 0), {})
        assert sender.encoded == 0 and sender.receivers == 0
    sender.send(Frame(TestCard(64, 64).draw(0), 0, 0), {})
    sender.close()


@needs_ndi
def test_two_outputs_of_one_name_are_refused() -> None:
    with Sender(f"twin {ME}", {}), pytest.raises(SdbridgeError, match="SDB-TEXTURE-NAME"):
        Sender(f"twin {ME}", {}).open()


@needs_ndi
def test_an_address_where_nobody_is_gives_none() -> None:
    with Receiver("127.0.0.1:5999", {}) as receiver:
        assert receiver.receive(0.2) is None
        assert not receiver.connected
        assert "127.0.0.1:5999" in receiver.describe()


@needs_ndi
def test_a_name_nobody_has_gives_none_within_the_timeout() -> None:
    with Receiver("NOBODY (nothing)", {}) as receiver:
        assert receiver.receive(0.05) is None
        assert "NOBODY (nothing)" in receiver.describe()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    able, why = library.available()
    assert not able and "sdbridge[ndi]" in why
    library.load.cache_clear()
    try:
        with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE"):
            Receiver("x", {}).open()
    finally:
        library.load.cache_clear()


def test_an_old_version_is_refused_because_it_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "6.3.2.5")
    able, why = library.available()
    assert not able and "6.3.2.6" in why


@pytest.mark.skipif(sys.platform != "linux", reason="NDI needs avahi's library on Linux only")
def test_a_bare_linux_without_avahi_s_library_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ndi-python is installed there and cannot be imported: auto must not choose it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "6.3.2.6")
    monkeypatch.setattr(library, "_NEEDED_ON_LINUX", ("libavahi-nowhere.so.3",))
    able, why = library.available()
    assert not able and "libavahi-nowhere.so.3" in why and "apt install libavahi-client3" in why
    backend, reason = choose_sender("linux")
    assert backend == "mjpeg" and "libavahi" in reason


SEEN = (Found("STUDIO (cam 1)", "10.0.0.2:5961"), Found("LAPTOP (cam 2)", "10.0.0.3:5961"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("STUDIO (cam 1)", "STUDIO (cam 1)"),
        ("cam 2", "LAPTOP (cam 2)"),
        ("studio (CAM 1)", "STUDIO (cam 1)"),
        ("", "STUDIO (cam 1)"),
        ("cam", None),
        ("LAPTOP", None),
    ],
)
def test_a_name_means_the_source_a_person_would_mean(name: str, expected: str | None) -> None:
    found = finder.choose(name, SEEN)
    assert (found.name if found else None) == expected


def test_no_name_never_means_our_own_output() -> None:
    found = finder.choose("", SEEN, own={"STUDIO (cam 1)"})
    assert found is not None and found.name == "LAPTOP (cam 2)"
    assert finder.choose("", SEEN[:1], own={"STUDIO (cam 1)"}) is None


def test_addresses_are_told_from_names() -> None:
    assert finder.is_address("127.0.0.1:5961") and finder.is_address("localhost:5961")
    assert not finder.is_address("STUDIO (cam 1)") and not finder.is_address("cam 1:2")


@needs_ndi
def test_the_absence_of_avahi_is_said_with_what_to_do() -> None:
    def told(running: set[str]) -> list[str]:
        return [text + step for text, step in finder.diagnose("linux", running.__contains__)]

    bus, avahi = "/run/dbus/system_bus_socket", "/run/avahi-daemon/socket"
    assert told({bus, avahi}) == []
    assert "avahi-daemon does not run" in told({bus})[0]
    assert "D-Bus" in told({avahi})[0]
    assert list(finder.diagnose("win32", lambda path: False)) == []


def test_metadata_survives_any_prompt_and_any_peer() -> None:
    frame = Frame(np.zeros((2, 2, 4), np.uint8), 7, 11, 3)
    awkward = 'ünï "quoted" <tag/> & \x00\x1f \U0001f600' + "x" * 5000
    read = from_xml(to_xml(frame, {"prompt": awkward, "bad name!": "x", "frame_id": "99"}, 22))
    assert read["frame_id"] == "7" and read["received_at_ns"] == "11" and read["sent_at_ns"] == "22"
    assert read["prompt"].startswith('ünï "quoted" <tag/> &') and len(read["prompt"]) == 2000
    assert "bad name!" not in read
    for garbage in (
        "",
        "<",
        "plain text",
        "<a><b></a>",
        '<!DOCTYPE x [<!ENTITY y "z">]><x/>',
        "<x/>" * 99_999,
    ):
        assert from_xml(garbage) == {}


class FakeFrame:
    """A video frame as ndi-python gives it, as far as the receiver looks."""

    def __init__(self, value: int, four_cc: str = "RGBA", shape: tuple = (4, 6, 4)) -> None:
        self.data = np.full(shape, value, np.uint8)
        self.FourCC = four_cc
        self.metadata = f'<x value="{value}"/>'


class FakeNdi:
    """ndi-python's names that the receiver may use; any other raises AttributeError."""

    FRAME_TYPE_VIDEO, FRAME_TYPE_METADATA, FRAME_TYPE_NONE, FRAME_TYPE_ERROR = (
        "video",
        "metadata",
        "none",
        "error",
    )
    FOURCC_VIDEO_TYPE_RGBA, FOURCC_VIDEO_TYPE_RGBX = "RGBA", "RGBX"
    RECV_COLOR_FORMAT_RGBX_RGBA, RECV_BANDWIDTH_HIGHEST = 1, 100

    def __init__(self) -> None:
        self.waiting: list = []
        self.out: list = []
        self.receivers: list = []
        self.refuse = False

    def Source(self, name, address=None):  # noqa: N802
        return (name, address)

    def RecvCreateV3(self, *settings):  # noqa: N802
        return settings

    def Tally(self, program, preview):  # noqa: N802
        return (program, preview)

    def recv_create_v3(self, settings):
        self.receivers.append(settings[0])
        return None if self.refuse else object()

    def recv_set_tally(self, receiver, tally) -> bool:
        return True

    def recv_get_queue(self, receiver):
        queue = type("Queue", (), {})()
        queue.video_frames = sum(kind == "video" for kind, _ in self.waiting)
        return queue

    def recv_capture_v2(self, receiver, timeout_ms, want_video, want_audio, want_metadata):
        assert (want_video, want_audio, want_metadata) == (True, False, True) and timeout_ms >= 0
        if not self.waiting:
            return "none", None, None, None
        kind, item = self.waiting.pop(0)
        self.out.append(item)
        return kind, item, None, item

    def recv_free_video_v2(self, receiver, frame) -> None:
        self.out.remove(frame)

    def recv_free_metadata(self, receiver, metadata) -> None:
        self.out.remove(metadata)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> FakeNdi:
    fake = FakeNdi()
    monkeypatch.setattr(library, "load", lambda: fake)
    monkeypatch.setattr(library, "destroy_receiver", lambda receiver: None)
    return fake


class StepClock:
    """A clock that moves only when someone sleeps or the test says so."""

    def __init__(self) -> None:
        self.ns = 10_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def at_address() -> tuple[Receiver, StepClock]:
    receiver = Receiver("127.0.0.1:5961", {})
    receiver.clock = clock = StepClock()
    receiver.open()
    return receiver, clock


def test_every_frame_is_given_back_whatever_it_was_and_only_the_newest_is_read(faked: FakeNdi) -> None:
    receiver, _ = at_address()
    faked.waiting = [
        ("video", FakeFrame(1)),
        ("metadata", object()),
        ("video", FakeFrame(2)),
        ("video", FakeFrame(3)),
    ]
    seen = [receiver.receive(0.0), receiver.receive(0.0)]
    values = [pixels[0, 0, 0] for pixels in seen if pixels is not None]
    assert values[-1] == 3 and receiver.metadata == {"value": "3"}
    faked.waiting = [("video", FakeFrame(4, "UYVY")), ("video", FakeFrame(5, shape=(4, 6, 3)))]
    assert receiver.receive(0.0) is None and receiver.receive(0.0) is None
    faked.waiting = [("error", None), ("video", FakeFrame(6, "RGBX"))]
    assert receiver.receive(0.0) is None
    assert (receiver.receive(0.0)[..., 3] == 255).all(), "RGBX has no alpha of its own"
    assert [item for item in faked.out if item is not None] == [], "what is not given back leaks"


def test_a_silent_address_is_knocked_at_every_five_seconds(faked: FakeNdi) -> None:
    receiver, clock = at_address()
    for _ in range(24):
        receiver.receive(0.0)
        clock.sleep(0.5)
    assert len(faked.receivers) == 3
    faked.waiting = [("video", FakeFrame(1))]
    assert receiver.receive(0.0) is not None and receiver.connected
    clock.sleep(0.4)
    receiver.receive(0.0)
    assert len(faked.receivers) == 3, "not while it sends"


def test_a_name_that_vanished_is_met_anew_even_at_its_old_address(faked: FakeNdi) -> None:
    receiver = Receiver("cam", {})
    receiver.clock = clock = StepClock()
    receiver._finder = seen = SeenByTest()
    seen.show("VM (cam)", "127.0.0.1:5961")
    receiver.receive(0.0)
    assert len(faked.receivers) == 1
    for found in ((), (Found("VM (cam)", "127.0.0.1:5961"),)):
        seen.found = found
        clock.sleep(0.2)
        receiver.receive(0.0)
    assert len(faked.receivers) == 2


def test_a_receiver_that_cannot_be_made_is_tried_again(faked: FakeNdi) -> None:
    receiver = Receiver("cam", {})
    receiver.clock = clock = StepClock()
    receiver._finder = seen = SeenByTest()
    seen.show("VM (cam)", "127.0.0.1:5961")
    faked.refuse = True
    assert receiver.receive(0.0) is None
    faked.refuse = False
    clock.sleep(0.2)
    receiver.receive(0.0)
    assert len(faked.receivers) == 2
