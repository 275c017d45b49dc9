"""The virtual camera against a fake with the names and checks of pyvirtualcam 0.15."""

import inspect
import json
import os
import subprocess
import sys
import zipfile
from enum import Enum
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures.test_card import TestCard, read_number
from sdbridge.textures.virtual_camera import Sender
from tests.wine import fetch

ROOT = Path(__file__).resolve().parents[2]


class PixelFormat(Enum):
    RGB = "raw "


@pytest.fixture
def cameras(monkeypatch: pytest.MonkeyPatch) -> list:
    opened: list = []

    class Camera:
        def __init__(
            self, width, height, fps, *, fmt=PixelFormat.RGB, device=None, backend=None, print_fps=False
        ):
            if device == "/dev/video99":
                raise RuntimeError("'v4l2loopback' backend: device\n/dev/video99 does not exist")
            self.device, self.shape, self.fmt = device or "OBS Virtual Camera", (height, width, 3), fmt
            self.sent: list[np.ndarray] = []
            self.closed = False
            opened.append(self)

        def send(self, frame: np.ndarray) -> None:
            assert frame.dtype == np.uint8 and frame.shape == self.shape and frame.flags.c_contiguous
            self.sent.append(frame)

        def close(self) -> None:
            self.closed = True

    module = ModuleType("pyvirtualcam")
    module.Camera, module.PixelFormat = Camera, PixelFormat
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    return opened


def test_frames_of_any_size_arrive_in_the_camera_s_size_and_colours(cameras: list) -> None:
    with Sender("", {"width": 320, "height": 240}) as sender:
        for width, height in ((320, 240), (640, 480), (641, 481)):
            sender.send(Frame(TestCard(width, height).draw(6), 6, 0), {})
        assert "OBS Virtual Camera, 320x240" in sender.describe()
    (camera,) = cameras
    assert camera.closed and [read_number(frame) for frame in camera.sent[:2]] == [6, 6]
    assert (camera.sent[0] == TestCard(320, 240).draw(6)[..., :3]).all()


def test_a_camera_that_does_not_answer_is_one_clear_line(cameras: list) -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-UNAVAILABLE") as caught:
        Sender("", {"device": "/dev/video99"}).open()
    assert "/dev/video99 does not exist" in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SdbridgeError, match="virtual-camera"):
        Sender("", {}).open()


@pytest.mark.slow
def test_the_true_package_takes_what_we_give_and_says_why_there_is_no_camera(cameras, tmp_path) -> None:
    """GPL-2.0, so fetched for this test only and run in a process of its own."""
    fetch(tmp_path, "--only-binary=:all:", "pyvirtualcam>=0.12")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    program = (
        "import inspect, json, pyvirtualcam\n"
        "from sdbridge.errors import SdbridgeError\n"
        "from sdbridge.textures.virtual_camera import Sender\n"
        "takes = list(inspect.signature(pyvirtualcam.Camera.__init__).parameters)\n"
        "try:\n    Sender('', {'device': '/dev/video99'}).open()\n"
        "except SdbridgeError as error:\n    said = str(error)\n"
        "print(json.dumps({'takes': takes, 'rgb': pyvirtualcam.PixelFormat.RGB.value, 'said': said}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    true = json.loads(done.stdout)
    ours = list(inspect.signature(sys.modules["pyvirtualcam"].Camera.__init__).parameters)
    assert ours == [name for name in true["takes"] if name != "kw"], "the fake takes what the true one takes"
    assert true["rgb"] == PixelFormat.RGB.value
    assert "SDB-TEXTURE-UNAVAILABLE: no virtual camera answers" in true["said"]
