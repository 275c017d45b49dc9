"""Stock OBS under a virtual display shows our MJPEG: asked over its own WebSocket for a screenshot."""

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import uvicorn

from sdbridge.frame import Frame
from sdbridge.textures.mjpeg import Sender
from sdbridge.textures.test_card import TestCard, read_number

missing = [program for program in ("obs", "Xvfb", "xvfb-run") if not shutil.which(program)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]


@pytest.fixture
def address() -> Iterator[str]:
    """Test cards at 25 fps from our sender behind a real server."""
    with Sender("out", {}) as sender:
        app = sender.mounts["/output.mjpeg"]
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = threading.Thread(target=server.run, daemon=True)
        serving.start()
        ended = threading.Event()

        def send_cards() -> None:
            card, number = TestCard(512, 384), 0
            while not ended.wait(1 / 25):
                sender.send(Frame(card.draw(number), number, 0), {})
                number += 1

        sending = threading.Thread(target=send_cards, daemon=True)
        sending.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/output.mjpeg"
        ended.set()
        sending.join()
        server.should_exit = True
        serving.join(10)


@pytest.fixture
def obs(tmp_path: Path) -> Iterator:
    """A WebSocket to OBS, started with an empty configuration of its own."""
    from websockets.sync.client import connect

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = tmp_path / "obs-studio"
    settings.mkdir()
    (settings / "global.ini").write_text(
        "[General]\nFirstRun=true\nEnableAutoUpdates=false\n"
        f"[OBSWebSocket]\nFirstLoad=false\nServerEnabled=true\nServerPort={port}\nAuthRequired=false\n"
    )
    environment = os.environ | {
        "XDG_CONFIG_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    command = ["xvfb-run", "-a", "-s", "-screen 0 800x600x24", "obs", "--multi", "--minimize-to-tray"]
    program = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 90
    try:
        while not listens(port):
            assert program.poll() is None, "OBS ended"
            assert time.monotonic() < deadline, "OBS did not open its WebSocket"
            time.sleep(0.5)
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as connection:
            yield connection
    finally:
        os.killpg(program.pid, 9)
        program.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Remote:
    """obs-websocket 5: one request, one answer."""

    def __init__(self, connection) -> None:
        self._connection = connection
        self._asked = 0
        hello = json.loads(connection.recv(timeout=20))
        assert hello["op"] == 0
        connection.send(json.dumps({"op": 1, "d": {"rpcVersion": 1, "eventSubscriptions": 0}}))
        assert json.loads(connection.recv(timeout=20))["op"] == 2

    def ask(self, kind: str, **values: object) -> dict:
        self._asked += 1
        request = {"requestType": kind, "requestId": str(self._asked), "requestData": values}
        self._connection.send(json.dumps({"op": 6, "d": request}))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer["op"] == 7 and answer["d"]["requestId"] == str(self._asked):
                status = answer["d"]["requestStatus"]
                if not status["result"]:
                    raise LookupError(f"{kind}: {status}")
                return answer["d"].get("responseData", {})


def test_stock_obs_shows_our_mjpeg_upright_in_true_colours_and_moving(obs, address: str) -> None:
    remote = Remote(obs)
    deadline = time.monotonic() + 60
    while True:
        try:
            scene = remote.ask("GetSceneList")["currentProgramSceneName"]
            break
        except LookupError:  # OBS is not ready to be asked yet
            assert time.monotonic() < deadline
            time.sleep(0.5)
    settings = {"is_local_file": False, "input": address, "input_format": "mpjpeg", "hw_decode": False}
    remote.ask(
        "CreateInput", sceneName=scene, inputName="bridge", inputKind="ffmpeg_source", inputSettings=settings
    )
    seen: list[int] = []
    picture = None
    while len(seen) < 3:
        assert time.monotonic() < deadline + 60, f"OBS showed only {seen}"
        time.sleep(0.3)
        try:
            shot = remote.ask(
                "GetSourceScreenshot", sourceName="bridge", imageFormat="jpg", imageCompressionQuality=95
            )
        except LookupError:  # no picture has arrived yet
            continue
        data = base64.b64decode(shot["imageData"].partition(",")[2])
        picture = simplejpeg.decode_jpeg(data, "RGBA")
        number = read_number(picture)
        if number is not None and number not in seen:
            seen.append(number)
    assert picture.shape == (384, 512, 4) and seen == sorted(seen)
    expected = TestCard(512, 384).draw(seen[-1])
    assert abs(picture[..., :3].astype(int) - expected[..., :3]).mean() < 12
    assert np.asarray(picture).dtype == np.uint8
