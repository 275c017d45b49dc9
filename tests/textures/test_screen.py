"""The desktop of a virtual display, painted by us: colours in order, parts cut out, absence survived."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.textures.screen import Receiver

pytestmark = pytest.mark.skipif(not shutil.which("Xvfb"), reason="Xvfb is not installed")


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "320x200x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as answer:
        number = answer.readline().strip()
    monkeypatch.setenv("DISPLAY", f":{number}")
    yield server
    server.kill()
    server.wait()


def paint(colour: int) -> None:
    """Fill the root window with 0xRRGGBB; the connection stays open, since a server without one resets."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.argtypes, x11.XOpenDisplay.restype = [ctypes.c_char_p], ctypes.c_void_p
    x11.XDefaultRootWindow.argtypes = [ctypes.c_void_p]
    x11.XDefaultRootWindow.restype = ctypes.c_ulong
    x11.XSetWindowBackground.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    x11.XClearWindow.argtypes = [ctypes.c_void_p, ctypes.c_ulong]
    x11.XSync.argtypes = [ctypes.c_void_p, ctypes.c_int]
    shown = x11.XOpenDisplay(os.environ["DISPLAY"].encode())
    assert shown
    root = x11.XDefaultRootWindow(shown)
    x11.XSetWindowBackground(shown, root, colour)
    x11.XClearWindow(shown, root)
    x11.XSync(shown, 0)


def test_the_desktop_is_seen_in_true_colours(display: subprocess.Popen) -> None:
    paint(0xFF8000)
    with Receiver("", {"fps": 240}) as receiver:
        pixels = receiver.receive(1.0)
        assert pixels.shape == (200, 320, 4) and pixels.dtype == np.uint8
        assert pixels[100, 300].tolist() == [255, 128, 0, 255]
        assert receiver.connected and "320x200" in receiver.describe()


def test_a_part_is_cut_out_and_kept_inside(display: subprocess.Popen) -> None:
    options = {"left": 300, "top": 10, "width": 500, "height": 20, "fps": 240}
    with Receiver("1", options) as receiver:
        assert receiver.receive(1.0).shape == (20, 20, 4)


def test_monitors_are_listed(display: subprocess.Popen) -> None:
    assert Receiver.available()[0]
    assert [(source.name, source.detail) for source in Receiver.list_sources()] == [("1", "320x200 at 0,0")]


def test_a_missing_monitor_and_a_missing_display_give_none(display: subprocess.Popen, monkeypatch) -> None:
    with Receiver("7", {"fps": 240}) as receiver:
        assert receiver.receive(0.2) is None
        assert "no monitor 7" in receiver.describe()
    monkeypatch.setenv("DISPLAY", ":987")
    with Receiver("", {"fps": 240}) as receiver:
        assert receiver.receive(0.2) is None
        assert not receiver.connected
    monkeypatch.delenv("DISPLAY")
    assert "DISPLAY" in Receiver.available()[1] and Receiver.list_sources() == ()


def test_a_name_that_is_no_number_is_refused() -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-OPTION"):
        Receiver("left monitor", {}).open()
