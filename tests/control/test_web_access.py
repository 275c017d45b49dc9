"""Who may do what: Host, Origin, content type and token, asked over real sockets."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import h11
import httpx
import numpy as np
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

sys.path.insert(0, str(Path(__file__).parent))
from web_view import WebView

from sdbridge.config import Config
from sdbridge.control.access import Access, Gate
from sdbridge.control.diagnostics import redact
from sdbridge.control.web import WebServer
from sdbridge.errors import SdbridgeError

SET = {"values": {"strength": 0.1}}


@pytest.fixture(scope="module")
def local() -> Iterator[WebServer]:
    with WebServer(WebView()) as server:
        yield server


@pytest.fixture(scope="module")
def lan() -> Iterator[WebServer]:
    with WebServer(WebView(lan=True)) as server:
        yield server


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.5", "[::ffff:1.2.3.4]", "", "a b"]
)
def test_foreign_hosts_are_refused_here(local: WebServer, host: str) -> None:
    answer = httpx.get(local.url + "/api/status", headers={"host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "LOCALHOST", "[::1]:9000", "127.0.0.1:1"])
def test_our_own_names_pass(local: WebServer, host: str) -> None:
    assert httpx.get(local.url + "/api/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_another_sites_posts_are_refused(local: WebServer, origin: str) -> None:
    answer = httpx.post(local.url + "/api/parameters", json=SET, headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "SDB-WEB-ORIGIN")


def test_the_pages_own_posts_pass(local: WebServer) -> None:
    assert (
        httpx.post(local.url + "/api/parameters", json=SET, headers={"origin": local.url}).status_code == 200
    )


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_writes_must_be_json(local: WebServer, kind: str) -> None:
    answer = httpx.post(local.url + "/api/parameters", content=b"{}", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "SDB-WEB-TYPE")


def test_a_foreign_pages_socket_is_refused(local: WebServer) -> None:
    address = f"ws://127.0.0.1:{local.port}/api/live"
    with (
        pytest.raises((InvalidStatus, ConnectionClosed)),
        connect(address, origin=Origin("http://evil.example")) as socket,
    ):
        socket.recv(timeout=60)


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1"], ids=["refused", "answered"])
def test_a_connection_that_turned_to_nonsense_is_no_fault(
    host: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has hung up on the rest of the request while we are about to answer its beginning."""

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        raise h11.LocalProtocolError("can't handle event type Response when state=MUST_CLOSE")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host)]}
    gate = Gate(PlainTextResponse("hello"), Access(Config()))
    asyncio.run(gate(scope, receive, send))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_on_the_network_everybody_reads_and_the_token_writes(lan: WebServer) -> None:
    address = lan.url + "/api/parameters"
    assert httpx.get(address).status_code == 200
    bare = httpx.post(address, json=SET)
    assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")
    assert bare.json()["error"]["code"] == "SDB-WEB-TOKEN"
    assert lan.access.token not in bare.text
    wrong = httpx.post(address, json=SET, headers={"authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    for odd in ("Bearer \xff", "Basic abc", "Bearer"):
        assert (
            httpx.post(address, json=SET, headers={"authorization": odd.encode("latin-1")}).status_code == 401
        )
    good = httpx.post(address, json=SET, headers={"authorization": f"Bearer {lan.access.token}"})
    assert good.status_code == 200


def test_the_generated_token_is_long_and_new_each_time() -> None:
    first, second = (Access(Config(lan=True)).token for _ in range(2))
    assert first != second
    assert len(first) >= 20
    assert Access(Config(lan=True, token="chosen")).token == "chosen"
    assert not Access(Config()).token_demanded


def test_the_log_shows_the_link(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), WebServer(WebView(lan=True)) as server:
        assert all(server.access.token in link for link in server.links)
        assert "OSC and NDI carry no authentication" in caplog.text


def test_network_names_pass_only_on_the_network() -> None:
    Access(Config(lan=True)).check_host("192.168.7.7:9000")
    with pytest.raises(SdbridgeError, match="SDB-WEB-HOST"):
        Access(Config(lan=True)).check_host("evil.example:9000")
    with pytest.raises(SdbridgeError, match="SDB-WEB-HOST"):
        Access(Config()).check_host("192.168.7.7:9000")


def test_diagnostics_hold_no_secrets() -> None:
    view = WebView(
        lan=True,
        token="geheim-1234",
        input={
            "main": {
                "backend": "video_file",
                "name": "rtsp://joe:hunter2@cam/live",
                "options": {"passphrase": "x9x9"},
            }
        },
    )
    view.lines = [
        "opened srt://h:1?passphrase=opensesame&latency=20",
        f"{Path.home()}/models",
        "Bearer abcdef",
        "geheim-1234",
    ]
    with WebServer(view) as server:
        key = {"authorization": "Bearer geheim-1234"}
        text = httpx.get(server.url + "/api/diagnostics", headers=key).text
        log = httpx.get(server.url + "/api/log", headers=key).text
        for private in ("/api/diagnostics", "/api/log", "/api/osc-log"):
            assert httpx.get(server.url + private).status_code == 401
    assert "geheim-1234" not in log and "opensesame" not in log
    for secret in ("geheim-1234", "hunter2", "joe", "x9x9", "opensesame", "abcdef", str(Path.home())):
        assert secret not in text
    assert "latency=20" in text
    assert "rtsp://<login>@cam/live" in text
    assert redact("plain words") == "plain words"


def test_the_link_in_the_log_is_not_told_to_everybody() -> None:
    view = WebView(lan=True)
    with WebServer(view) as server:
        view.lines = [f"page on the network {server.links[0] if server.links else ''} {server.access.token}"]
        key = {"authorization": f"Bearer {server.access.token}"}
        for path in ("/api/log", "/api/diagnostics"):
            assert server.access.token not in httpx.get(server.url + path, headers=key).text


def test_a_short_token_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with WebServer(WebView(lan=True, token="1234")):
        assert "can be guessed" in caplog.text


def test_a_phone_gets_its_link_as_a_qr_code_from_who_may_write() -> None:
    import cv2  # only this test needs a reader of QR codes
    import segno

    # One token, for OpenCV's reader fails on 1 of 100 that a phone reads.
    with WebServer(WebView(lan=True, token="a-token-of-the-tests-0123456789")) as server:
        assert httpx.get(server.url + "/api/links").status_code == 401
        key = {"authorization": f"Bearer {server.access.token}"}
        links = httpx.get(server.url + "/api/links", headers=key).json()["links"]
    assert [one["url"] for one in links] == list(server.links)
    assert all(one["qr"].startswith("data:image/svg+xml") for one in links)
    url = f"http://192.168.100.200:9000/#token={server.access.token}"
    modules = np.array([*segno.make(url, error="m", micro=False).matrix_iter(scale=6, border=8)], np.uint8)
    assert cv2.QRCodeDetector().detectAndDecode(255 * (1 - modules))[0] == url


def test_nobody_is_invited_while_the_network_is_shut_out(local: WebServer) -> None:
    assert httpx.get(local.url + "/api/links").json() == {"links": []}
