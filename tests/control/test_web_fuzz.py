"""Hostile HTTP and WebSocket requests: nothing dies, nothing leaks, no preset is lost."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from web_view import WebView

from sdbridge.control.pulls import Pulls
from sdbridge.control.web import WebServer
from sdbridge.errors import SdbridgeError

PATHS = ("/", "/api/parameters", "/api/status", "/api/presets/save", "/api/presets/recall", "/api/cues/go")
MORE_PATHS = ("/api/sources", "/api/models/pull", "/api/output.png", "/page/app.js", "/api/live", "/x.mjpeg")
ODD_PATHS = ("/%00", "/..%2f..%2fetc", "*", "//x", "/" + "a" * 3000, "\xff")
METHODS = ("GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS", "TRACE", "G\x00T", "", "A" * 300)
QUERIES = ("role=x", "count=-1", "count=" + "9" * 50, "backend=%00", "%", "a=b&" * 100)
NASTY = (
    *("null", "true", "-1", "1e999", "NaN", "Infinity", '""', "[]", "{}", '"\\ud800"', '"\\u0000"'),
    *('"../../etc/passwd"', '"CON"', '"' + "A" * 5000 + '"', "9" * 400, "[" * 2000, '{"a":' * 500, '"%s%n"'),
)
KEYS = (
    "values",
    "fade_s",
    "easing",
    "preset",
    "name",
    "a",
    "b",
    "position",
    "cue",
    "id",
    "on",
    "kind",
    "role",
)


def no_pull(model: str, tell: object) -> Path:
    raise SdbridgeError("SDB-PULL-NETWORK", f"{model} is not pulled in a test")


def body(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(400))
    names = ("strength", "prompt", "panic", "steps", "/sdbridge/seed/1/value", "x" * rng.randrange(50))
    values = (
        "{" + ",".join(f'"{rng.choice(names)}":{rng.choice(NASTY)}' for _ in range(rng.randrange(4))) + "}"
    )
    parts = [f'"{rng.choice(KEYS)}":{rng.choice((*NASTY, values))}' for _ in range(rng.randrange(5))]
    text = "{" + ",".join(parts) + "}"
    if rng.random() < 0.3:  # bitten off or bent
        text = text[: rng.randrange(len(text) + 1)]
    return text.encode("utf-8", "surrogatepass")


def request(rng: random.Random) -> bytes:
    """Something like a request: a valid one with one or several things wrong."""
    method = rng.choice(METHODS)
    path = rng.choice((*PATHS, *PATHS, *MORE_PATHS, *ODD_PATHS))
    if rng.random() < 0.3:
        path += "?" + rng.choice(QUERIES)
    content = body(rng)
    headers = [
        f"Host: {rng.choice(('127.0.0.1', '127.0.0.1', '127.0.0.1', 'evil.example', '', 'x' * 400, '[::1'))}",
        f"Content-Type: {rng.choice(('application/json', 'application/json', 'text/plain', '', 'a' * 99))}",
    ]
    if rng.random() < 0.9:
        length = rng.choice((len(content), len(content), len(content), 0, 10**12, -1, len(content) + 5))
        headers.append(f"Content-Length: {length}")
    else:
        headers.append("Transfer-Encoding: chunked")
        content = rng.choice(
            (b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffff\r\nx", b"0\r\n\r\n" + content)
        )
    for _ in range(rng.randrange(3)):
        headers.append(rng.choice(("Origin: http://evil.example", "Origin: null", "Expect: 100-continue")))
        headers.append(
            rng.choice((f"X: {'y' * 2000}", "Host: twice", "A : b", "Connection: close", ": empty"))
        )
    text = f"{method} {path} HTTP/{rng.choice(('1.1', '1.1', '1.1', '1.0', '2.0', '9.9', 'x'))}\r\n"
    raw = (text + "\r\n".join(headers) + "\r\n\r\n").encode("latin-1") + content
    if rng.random() < 0.15:
        raw = bytes(byte ^ (1 << rng.randrange(8)) if rng.random() < 0.02 else byte for byte in raw)
    return raw


def upgrade(rng: random.Random) -> bytes:
    """A WebSocket's beginning, then frames that no browser sends."""
    key = base64.b64encode(rng.randbytes(16)).decode()
    path = rng.choice(("/api/live", "/api/live", "/api/live", "/", "/nowhere"))
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: {rng.choice((13, 13, 13, 8, 0))}\r\n\r\n"
    ).encode()
    return head + b"".join(frame(rng) for _ in range(rng.randrange(1, 5)))


def frame(rng: random.Random) -> bytes:
    content = rng.choice((body, lambda r: r.randbytes(r.randrange(200)), message))(rng)
    first = rng.choice((0x81, 0x81, 0x81, 0x82, 0x01, 0x80, 0x88, 0x89, 0x8A, 0xF1, 0x83))
    masked = 0x80 if rng.random() < 0.9 else 0
    mask = rng.randbytes(4) if masked else b""
    size = rng.choice((len(content), len(content), len(content), len(content), 2**40))
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if masked:
        content = bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))
    return head + mask + content


def message(rng: random.Random) -> bytes:
    kind = rng.choice(("set", "set", "preview", "seen", "token", "hello", "\x00"))
    content = {
        "kind": kind,
        "id": rng.choice((1, -1, 2**60, "x")),
        "values": rng.choice(({}, {"strength": 2}, {"bogus": [1]}, 3)),
        "pictures": rng.choice((["output"], ["x"], ["input"] * 20, "input")),
        "size": rng.choice((64, 512, 10**9, -1)),
    }
    return json.dumps({key: value for key, value in content.items() if rng.random() < 0.7}).encode()


def attack(port: int, rng: random.Random) -> None:
    """One connection: hostile bytes out, whatever comes back read for a moment, then gone."""
    raw = upgrade(rng) if rng.random() < 0.3 else request(rng)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(raw)
            if rng.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                while connection.recv(65536):
                    pass
            elif rng.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        except OSError:
            pass  # refused half-way, as it should be


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[WebServer, WebView]]:
    view = WebView(size=64)
    view.store.set("strength", 0.77)
    view.show.save("Precious")
    with WebServer(view, pulls=Pulls(no_pull)) as running:
        yield running, view


def bombard(running: WebServer, count: int, seed: int) -> None:
    """``count`` attacks by four attackers at once, each with its own seed."""

    def one(number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        for _ in range(count // 4):
            attack(running.port, rng)

    with ThreadPoolExecutor(4) as attackers:
        list(attackers.map(one, range(4)))  # raises if an attacker itself is broken


def check_unharmed(running: WebServer, view: WebView, caplog: pytest.LogCaptureFixture) -> None:
    with httpx.Client(base_url=running.url, timeout=30) as web:
        assert web.get("/api/status").json()["state"] == "streaming"
        assert web.post("/api/presets/recall", json={"preset": "Precious"}).status_code == 200
        assert web.get("/api/diagnostics").status_code == 200
    assert view.store.get("strength") == 0.77
    faults = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert faults == []


def test_a_few_hundred_hostile_requests(
    server: tuple[WebServer, WebView], caplog: pytest.LogCaptureFixture
) -> None:
    running, view = server
    bombard(running, 400, seed=1)
    check_unharmed(running, view, caplog)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_hostile_requests_leak_nothing(
    server: tuple[WebServer, WebView], caplog: pytest.LogCaptureFixture
) -> None:
    running, view = server
    me = psutil.Process(os.getpid())
    bombard(running, 2000, seed=2)  # what is allocated once is allocated now
    check_unharmed(running, view, caplog)
    memory, threads = me.memory_info().rss, threading.active_count()
    bombard(running, 10_000, seed=3)
    check_unharmed(running, view, caplog)
    grown = (me.memory_info().rss - memory) / 1e6
    assert grown < 40, f"{grown:.0f} MB more after 10,000 requests"
    # asyncio's own pool for blocking work grows to this when many requests meet, and stays.
    assert threading.active_count() <= threads + min(32, (os.cpu_count() or 1) + 4)
    live = [
        c for c in me.net_connections("tcp") if c.laddr.port == running.port and c.status == "ESTABLISHED"
    ]
    assert len(live) < 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_document_holds_what_it_says(
    server: tuple[WebServer, WebView], caplog: pytest.LogCaptureFixture
) -> None:
    """schemathesis makes requests from /api/openapi.json and checks every answer against it."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    import subprocess

    running, view = server
    program = Path(sys.executable).with_name("schemathesis")
    checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    done = subprocess.run(
        [
            *(str(program), "run", f"{running.url}/api/openapi.json", "--no-color", "--seed", "1"),
            *("--checks", ",".join((*checks, "response_schema_conformance"))),
            *("--max-examples", "60", "--phases", "examples,coverage,fuzzing"),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        cwd=view.show.presets.folder,
    )
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    with httpx.Client(base_url=running.url, timeout=30) as web:
        assert web.get("/api/status").json()["state"] == "streaming"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
