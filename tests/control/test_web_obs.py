"""OBS itself, under Xvfb, shows the MJPEG output that the bridge serves on its own port."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parent))
from web_view import WebView

from sdbridge.control.web import WebServer
from sdbridge.frame import Frame
from sdbridge.textures.mjpeg import Sender

LEFT, RIGHT = (200, 40, 40), (40, 60, 200)
PATIENCE_S = 120.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("obs") is None or shutil.which("Xvfb") is None,
        reason="Debian's obs-studio and xvfb are not installed",
    ),
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


@contextmanager
def obs(home: Path) -> Iterator[ClientConnection]:
    """OBS on a screen of its own, reached over obs-websocket."""
    port, display = free_port(), f":{90 + os.getpid() % 400}"
    settings = home / ".config" / "obs-studio"
    (settings / "plugin_config" / "obs-websocket").mkdir(parents=True)
    (settings / "plugin_config" / "obs-websocket" / "config.json").write_text(
        json.dumps(
            {
                "server_enabled": True,
                "server_port": port,
                "auth_required": False,
                "first_load": False,
                "alerts_enabled": False,
            }
        )
    )
    # Newer versions read config.json, Debian's 29 reads this section.
    (settings / "global.ini").write_text(
        "[General]\nFirstRun=true\nEnableAutoUpdates=false\n\n"
        f"[OBSWebSocket]\nFirstLoad=false\nServerEnabled=true\nServerPort={port}\n"
        "AlertsEnabled=false\nAuthRequired=false\n"
    )
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "DISPLAY": display,
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "QT_QPA_PLATFORM": "xcb",
    }
    runtime = home / "runtime"
    runtime.mkdir(mode=0o700)
    environment["XDG_RUNTIME_DIR"] = str(runtime)
    with (
        running(["Xvfb", display, "-screen", "0", "1280x720x24", "-nolisten", "tcp"], environment),
        screen(display),
        running(["obs", "--multi", "--disable-updater", "--minimize-to-tray"], environment),
        websocket(port) as connection,
    ):
        yield connection


@contextmanager
def screen(display: str) -> Iterator[None]:
    """Xvfb is ready once its socket is there."""
    place = Path("/tmp/.X11-unix") / display.replace(":", "X")
    end = time.monotonic() + PATIENCE_S
    while not place.exists():
        assert time.monotonic() < end, "Xvfb did not start"
        time.sleep(0.1)
    yield


@contextmanager
def websocket(port: int) -> Iterator[ClientConnection]:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = connect(f"ws://127.0.0.1:{port}", max_size=None, open_timeout=5)
            break
        except (OSError, TimeoutError):
            assert time.monotonic() < end, "OBS did not open its websocket"
            time.sleep(0.5)
    with connection:
        assert json.loads(connection.recv(timeout=30))["op"] == 0
        connection.send(json.dumps({"op": 1, "d": {"rpcVersion": 1, "eventSubscriptions": 0}}))
        assert json.loads(connection.recv(timeout=30))["op"] == 2
        yield connection


def ask(connection: ClientConnection, request: str, **content: Any) -> dict[str, Any]:
    """One request of obs-websocket 5 and its answer."""
    message = {"op": 6, "d": {"requestType": request, "requestId": request, "requestData": content}}
    connection.send(json.dumps(message))
    while True:
        answer = json.loads(connection.recv(timeout=60))
        if answer["op"] == 7:
            return dict(answer["d"])


def halves() -> np.ndarray:
    pixels = np.full((256, 256, 4), 255, np.uint8)
    pixels[:, :128, :3] = LEFT
    pixels[:, 128:, :3] = RIGHT
    return pixels


def test_obs_shows_the_mjpeg_output(tmp_path: Path) -> None:
    view = WebView()
    stop = threading.Event()
    sender = Sender("sdbridge", {})
    sender.open()
    view.mounted = dict(sender.mounts)

    def send() -> None:
        number = 0
        while not stop.wait(1 / 30):
            number += 1
            sender.send(Frame(halves(), number, time.monotonic_ns()), {})

    sending = threading.Thread(target=send)
    sending.start()
    try:
        with WebServer(view) as server, obs(tmp_path) as studio:
            scene = ask(studio, "GetCurrentProgramScene")["responseData"]["currentProgramSceneName"]
            made = ask(
                studio,
                "CreateInput",
                sceneName=scene,
                inputName="sdbridge",
                inputKind="ffmpeg_source",
                inputSettings={
                    "is_local_file": False,
                    "input": f"{server.url}/output.mjpeg",
                    "input_format": "mpjpeg",
                    "reconnect_delay_sec": 1,
                    "buffering_mb": 0,
                },
            )
            assert made["requestStatus"]["result"], made
            left, right = screenshot_halves(studio)
            assert np.abs(left - LEFT).max() <= 12, left
            assert np.abs(right - RIGHT).max() <= 12, right
    finally:
        stop.set()
        sending.join()
        sender.close()


def screenshot_halves(studio: ClientConnection) -> tuple[np.ndarray, np.ndarray]:
    """The mean colours of what OBS shows of the source, left and right, as soon as it shows something."""
    end = time.monotonic() + PATIENCE_S
    while True:
        answer = ask(studio, "GetSourceScreenshot", sourceName="sdbridge", imageFormat="png")
        if answer["requestStatus"]["result"]:
            content = base64.b64decode(answer["responseData"]["imageData"].partition(",")[2])
            picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
            middle = picture.shape[1] // 2
            if picture.max() > 0 and middle > 8:
                left, right = picture[:, : middle - 8], picture[:, middle + 8 :]
                return left.mean(axis=(0, 1)), right.mean(axis=(0, 1))
        assert time.monotonic() < end, answer["requestStatus"]
        time.sleep(0.5)
