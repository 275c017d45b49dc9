"""The page's WebSocket, spoken to by a real client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parent))
from web_view import WebView

from sdbridge.control.web import WebServer


@pytest.fixture
def view() -> WebView:
    return WebView(size=700)


@pytest.fixture
def server(view: WebView) -> Iterator[WebServer]:
    with WebServer(view) as running:
        yield running


def live(server: WebServer) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/api/live")


def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next text message of ``kind``; status comes for ever, so not for ever is waited."""
    for _ in range(400):
        message = socket.recv(timeout=20)
        if isinstance(message, str) and json.loads(message)["kind"] == kind:
            return json.loads(message)
    raise AssertionError(f"no message of kind {kind} came")


def test_a_page_is_greeted_with_everything(server: WebServer, view: WebView) -> None:
    view.store.set("strength", 0.11)
    with live(server) as socket:
        hello = until(socket, "hello")
        assert hello["values"]["strength"] == 0.11
        assert hello["may_write"] is True
        assert until(socket, "status")["status"]["state"] == "streaming"


def test_another_controllers_change_arrives(server: WebServer, view: WebView) -> None:
    with live(server) as socket:
        until(socket, "status")
        view.store.set_many({"strength": 0.77, "panic": 1}, "osc:127.0.0.1:5000")
        change = until(socket, "changes")
        assert change["values"] == {"strength": 0.77}
        assert change["triggers"] == ["panic"]
        assert change["revision"] == view.store.revision


def test_a_flood_of_changes_arrives_as_few_messages_ending_right(server: WebServer, view: WebView) -> None:
    with live(server) as socket:
        until(socket, "status")
        for i in range(2000):
            view.store.set("strength", i / 2000)
        view.store.set("strength", 1.0)
        messages = 1
        while until(socket, "changes")["values"].get("strength") != 1.0:
            messages += 1
        assert messages < 200


def test_setting_is_answered_and_heard_by_both(server: WebServer, view: WebView) -> None:
    with live(server) as one, live(server) as two:
        until(one, "status"), until(two, "status")
        one.send(json.dumps({"kind": "set", "id": 7, "values": {"guidance_scale": 99, "bogus": 1}}))
        outcome = until(one, "outcome")
        assert outcome["id"] == 7
        assert [item["name"] for item in outcome["rejected"]] == ["bogus"]
        assert until(two, "changes")["values"] == {"guidance_scale": 12.0}  # clamped, as the table says
        assert view.store.get("guidance_scale") == 12.0


def test_pictures_come_only_when_asked_and_wait_for_the_slow(server: WebServer, view: WebView) -> None:
    with live(server) as socket:
        until(socket, "status")
        until(socket, "status")
        assert view.frames == 0
        socket.send(json.dumps({"kind": "preview", "pictures": ["input", "output"], "size": 320}))
        kinds = set()
        received = 0
        while received < 6:  # nothing is acknowledged, so they stop after a few
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                received += 1
                kinds.add(message[0])
                assert max(simplejpeg.decode_jpeg_header(message[1:])[:2]) <= 320
        assert kinds == {0, 1}
        for _ in range(8):
            assert isinstance(socket.recv(timeout=20), str)
        socket.send(json.dumps({"kind": "seen"}))
        socket.send(json.dumps({"kind": "seen"}))
        while isinstance(socket.recv(timeout=20), str):
            pass


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"kind": "dance"}',
        '{"kind": "set", "values": 3}',
        b"\x00\x01",
        '{"id": 3}',
        '{"kind": "preview", "pictures": ["secret"]}',
        '{"kind": "set", "id": -1}',
        '{"kind": "\\ud800"}',
    ],
)
def test_nonsense_is_refused_and_the_connection_lives(server: WebServer, message: str | bytes) -> None:
    with live(server) as socket:
        until(socket, "hello")
        socket.send(message)
        assert until(socket, "refused")["error"]["code"] == "SDB-WEB-BODY"
        socket.send(json.dumps({"kind": "set", "id": 1, "values": {"strength": 0.5}}))
        assert until(socket, "outcome")["rejected"] == []


def test_on_the_network_the_socket_wants_the_token_too() -> None:
    view = WebView(lan=True, token="a-good-long-token")
    with WebServer(view) as server, live(server) as socket:
        assert until(socket, "hello")["may_write"] is False
        socket.send(json.dumps({"kind": "set", "id": 1, "values": {"strength": 0.5}}))
        assert until(socket, "refused")["error"]["code"] == "SDB-WEB-TOKEN"
        socket.send(json.dumps({"kind": "token", "token": "wrong"}))
        assert until(socket, "access")["may_write"] is False
        socket.send(json.dumps({"kind": "token", "token": "a-good-long-token"}))
        assert until(socket, "access")["may_write"] is True
        socket.send(json.dumps({"kind": "set", "id": 2, "values": {"strength": 0.5}}))
        assert until(socket, "outcome")["rejected"] == []


def test_closing_the_server_ends_connections_and_the_subscription(view: WebView) -> None:
    server = WebServer(view)
    server.start()
    with live(server) as socket:
        until(socket, "hello")
        server.close()
        view.store.set("strength", 0.9)  # nobody listens any more, and nothing breaks
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(timeout=20)


def test_a_preset_saved_over_osc_is_told(server: WebServer, view: WebView) -> None:
    with live(server) as socket:
        until(socket, "status")
        view.show.save("from elsewhere")
        assert until(socket, "show")["topic"] == "presets"
