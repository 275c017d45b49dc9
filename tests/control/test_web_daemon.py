"""The real daemon in its own processes: Chromium moves a slider on its page, and its output changes."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, chromium

PATIENCE_S = 240.0  # a loaded machine imports torch in a minute

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="Debian's chromium is not installed"),
    pytest.mark.timeout(600),
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def daemon(folder: Path, **config: Any) -> Iterator[str]:
    """``sdbridge run`` on ``config``; its address. It must stop cleanly on SIGTERM."""
    port = free_port()
    still = folder / "still.png"
    y, x = np.mgrid[0:128, 0:128]
    Image.fromarray(np.stack([x * 2, y * 2, x ^ y], axis=-1).astype(np.uint8)).save(still)
    path = folder / "show.yaml"
    about = {
        "input": {"main": {"backend": "image_file", "name": str(still)}},
        "output": [{"backend": "mjpeg"}],
        **config,
    }
    path.write_text(yaml.safe_dump(about))
    environment = {**os.environ, "SDBRIDGE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    log = (folder / "out.txt").open("w+")
    command = [sys.executable, "-m", "sdbridge", "run", str(path), "--port", str(port)]
    program = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: streams(url, program), lambda: (folder / "out.txt").read_text()[-3000:])
        yield url
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0, (folder / "out.txt").read_text()[-3000:]
    finally:
        program.kill()
        program.wait()
        log.close()


def streams(url: str, program: subprocess.Popen[bytes]) -> bool:
    assert program.poll() is None, "the daemon ended"
    try:
        return bool(httpx.get(url + "/api/status", timeout=10).json()["state"] == "streaming")
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], about: Callable[[], object] = lambda: "it never came") -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, about()
        time.sleep(0.1)


def output(url: str) -> np.ndarray:
    content = httpx.get(url + "/api/output.png", timeout=30).content
    return np.asarray(Image.open(io.BytesIO(content)))[..., :3].astype(int)


def drag(browser: Browser, name: str, share: float) -> None:
    """Take a slider's thumb with the mouse to a share of its way."""
    selector = f'[data-name="{name}"] input[type=range]'
    x, y = browser.middle(selector)
    left, width = browser.eval(
        f"(() => {{ const r = document.querySelector('{selector}').getBoundingClientRect();"
        " return [r.x, r.width]; })()"
    )
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseMoved", left + 9 + (width - 18) * share, y)
    browser.mouse("mouseReleased", left + 9 + (width - 18) * share, y, buttons=0)


def test_a_slider_on_the_daemons_page_changes_the_daemons_output(tmp_path: Path) -> None:
    with daemon(tmp_path, engine={"kind": "fake", "width": 128, "height": 128}) as url, Browser() as browser:
        browser.open(url)
        browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
        browser.until("document.querySelector('.output canvas').width")
        wait_until(lambda: abs(output(url)[0, 1, 0] - 153) <= 1)  # strength 0.6, as this engine paints it
        drag(browser, "strength", 0.2)
        wait_until(lambda: abs(output(url)[0, 1, 0] - 51) <= 4)
        browser.click("#rescue button:nth-child(2)")
        wait_until(lambda: int(output(url).max()) == 0)
        browser.until("document.querySelector('.notice.held')?.textContent.includes('black')")
        browser.click(".notice.held button")
        wait_until(lambda: int(output(url).max()) > 0)
        assert browser.faults == []


@pytest.mark.slow
def test_a_slider_changes_what_the_diffusion_engine_paints(tmp_path: Path) -> None:
    engine = {"model": "embedded", "width": 128, "height": 128, "device": "cpu", "threads": 1}
    with (
        daemon(tmp_path, engine=engine, parameters={"prompt": "fire", "strength": 0.2}) as url,
        Browser() as browser,
    ):
        browser.open(url)
        browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
        settled: list[np.ndarray] = [output(url)]

        def stands_still() -> bool:
            settled.append(output(url))
            time.sleep(0.5)
            return int(settled[-1].max()) > 0 and np.array_equal(settled[-1], settled[-2])

        wait_until(stands_still)
        before = settled[-1]
        drag(browser, "strength", 0.95)
        wait_until(lambda: np.abs(output(url) - before).mean() > 3)
        assert browser.faults == []
