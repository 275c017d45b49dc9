"""Debian's Chromium without a screen, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
PATIENCE_S = 60.0  # a loaded machine with one core still gets there


def chromium() -> str | None:
    """The browser's path, or None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab. ``faults`` collects what the page logged as an error, exceptions included."""

    def __init__(self, width: int = 1440, height: int = 900, phone: bool = False) -> None:
        program = chromium()
        assert program is not None
        self.faults: list[str] = []
        self._folder = tempfile.mkdtemp(prefix="sdbridge-chromium-")
        self._program = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._folder}", "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._last = 0
        self._stack = ExitStack()
        self._tab = self._stack.enter_context(connect(self._tab_address(), max_size=None, ping_interval=None))
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.resize(width, height, phone)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone, maxTouchPoints=5 if phone else 1)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def eval(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until the expression is true in JavaScript's eyes."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.eval(f"Boolean({script})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never came true: {script}; the page said {self.faults}")

    def press(self, key: str, code: str = "", modifiers: int = 0, text: str = "") -> None:
        about = {"key": key, "code": code or key, "modifiers": modifiers}
        keys = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9}
        if key in keys:
            about["windowsVirtualKeyCode"] = keys[key]
        text = text or ("\r" if key == "Enter" else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def mouse(self, kind: str, x: float, y: float, buttons: int = 1) -> None:
        """``kind`` is mousePressed, mouseMoved or mouseReleased."""
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1
        )

    def touch(self, kind: str, x: float = 0, y: float = 0) -> None:
        """``kind`` is touchStart, touchMove or touchEnd."""
        points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def click(self, selector: str) -> None:
        """A click where a person would click: in the middle of what is visible there."""
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y, buttons=0)

    def middle(self, selector: str) -> tuple[float, float]:
        place = self.eval(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'}); const r = node.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return place[0], place[1]

    def picture(self, path: Path) -> None:
        """Keep what is seen now as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its answer."""
        self._last += 1
        self._tab.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._tab.recv(timeout=PATIENCE_S))
            self._note(message)
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        content = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.faults.append(json.dumps(content["exceptionDetails"])[:1000])
        elif message.get("method") == "Runtime.consoleAPICalled" and content["type"] in ("error", "assert"):
            self.faults.append(json.dumps(content["args"])[:1000])
        elif message.get("method") == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.faults.append(f"{content['entry']['text']} {content['entry'].get('url', '')}")

    def _tab_address(self) -> str:
        """Chromium writes its port into a file once it listens."""
        note = Path(self._folder) / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if note.exists() and note.read_text().strip():
                port = note.read_text().split()[0]
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE_S) as answer:
                    tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
                if tabs:
                    return str(tabs[0]["webSocketDebuggerUrl"])
            time.sleep(0.05)
        raise AssertionError("Chromium did not start")

    def close(self) -> None:
        self._stack.close()
        self._program.kill()
        self._program.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
