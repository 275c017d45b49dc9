"""OSCQuery: whoever asks over HTTP is told every address; whoever listens over WebSocket hears it change."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from sdbridge.control import oscquery_tree
from sdbridge.control.osc_decode import encode_message
from sdbridge.control.oscquery_tree import ATTRIBUTES, CHANGING
from sdbridge.control.subscriptions import GATHER_S, addresses_of, under
from sdbridge.control.view import BridgeView
from sdbridge.parameters.addresses import HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Change

log = logging.getLogger(__name__)

MOST_LISTENERS = 64
_STATUS_EVERY_S = 0.25
_MOST_NEWS = 16
_EXTENSIONS = (*ATTRIBUTES[3:], "LISTEN", "PATH_CHANGED")


class OscQuery:
    """An ASGI app to mount beside the page: GET answers JSON, a WebSocket takes LISTEN and IGNORE.

    The page's server decides by ``is_for`` which requests come here. Values are read only: writing
    goes over OSC, to the port that HOST_INFO names.
    """

    def __init__(self, view: BridgeView) -> None:
        self._view = view
        self._readable = oscquery_tree.readable_addresses(view)
        self._listeners: set[_Listener] = set()
        self._lock = threading.Lock()
        self._endings = (view.store.subscribe(self._on_change), view.show.subscribe(self._on_show))

    def close(self) -> None:
        """Stop listening to the store; connections end with the server."""
        for end in self._endings:
            end()

    @staticmethod
    def is_for(path: str, query: str, accept: str) -> bool:
        """Whether a GET is meant for OSCQuery: an address below /sdbridge, or the root asked for data."""
        if path == "/":
            return query in ("HOST_INFO", *ATTRIBUTES) or "text/html" not in accept
        return path == "/sdbridge" or path.startswith("/sdbridge/")

    def host_info(self) -> dict[str, object]:
        """What HOST_INFO answers. The addresses are left out: they are the ones that were asked."""
        port = self._view.config.port
        return {
            "NAME": self._view.config.name,
            "EXTENSIONS": dict.fromkeys(_EXTENSIONS, True),
            "OSC_PORT": port,
            "OSC_TRANSPORT": "UDP",
            "WS_PORT": port,
        }

    def answer(self, path: str, query: str = "") -> tuple[int, dict[str, object] | None]:
        """Status code and JSON of a GET: 404 no such node, 400 no such attribute, 204 not for this node."""
        if query == "HOST_INFO":
            return 200, self.host_info()
        node = oscquery_tree.find(oscquery_tree.build(self._view), path)
        if node is None:
            return 404, None
        if not query:
            return 200, node
        if query not in ATTRIBUTES:
            return 400, None
        return (200, {query: node[query]}) if query in node else (204, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.listen(WebSocket(scope, receive, send))
            return
        request = Request(scope, receive)
        status, tree = await asyncio.to_thread(self.answer, request.url.path, unquote(request.url.query))
        body = b"" if tree is None else json.dumps(tree, ensure_ascii=False).encode()
        headers = {"cache-control": "no-cache"}
        answer = Response(body, status, headers, "application/json" if tree is not None else None)
        if request.method == "HEAD":
            answer.body = b""
        await answer(scope, receive, send)

    # --- WebSocket ---

    async def listen(self, socket: WebSocket) -> None:
        """One connection from beginning to end."""
        if len(self._listeners) >= MOST_LISTENERS:
            await socket.close(4429, "too many listeners")
            return
        await socket.accept()
        listener = _Listener(self._view, socket, self._lock)
        with self._lock:
            self._listeners.add(listener)
        sending = asyncio.create_task(listener.send_forever())
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                text = message.get("text")
                if text is not None:
                    self._obey(listener, text)
        except WebSocketDisconnect:
            pass
        finally:
            sending.cancel()
            with self._lock:
                self._listeners.discard(listener)

    def _obey(self, listener: _Listener, text: str) -> None:
        """LISTEN or IGNORE a path; a container stands for everything below it. Other texts are let pass."""
        try:
            tree = json.loads(text)
            command, path = str(tree["COMMAND"]).upper(), str(tree["DATA"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        found = [address for address in self._readable if under(address, path)]
        if command == "LISTEN":
            listener.add(found)
        elif command == "IGNORE":
            listener.paths.difference_update(found)

    def _on_change(self, change: Change) -> None:
        """Called in the setter's thread: only note what changed."""
        with self._lock:
            for listener in self._listeners:
                if listener.paths:
                    listener.pending.update(change.values)

    def _on_show(self, topic: str) -> None:
        if topic != "presets":
            return
        with self._lock:
            for listener in self._listeners:
                if len(listener.news) < _MOST_NEWS:  # it is the same news each time
                    listener.news.append({"COMMAND": "PATH_CHANGED", "DATA": CHANGING[0]})


class _Listener:
    """One WebSocket: the addresses it listens to and what it has not been told yet."""

    def __init__(self, view: BridgeView, socket: WebSocket, lock: threading.Lock) -> None:
        self._view = view
        self._lock = lock  # around pending and news, which other threads fill
        self._socket = socket
        self._said: dict[str, Value] = {}
        self._status_in_s = 0.0
        self.paths: set[str] = set()
        self.pending: dict[str, Value] = {}
        self.news: list[Mapping[str, object]] = []

    def add(self, addresses: list[str]) -> None:
        """Listen to these, and be told how they stand."""
        self.paths.update(addresses)
        values, _ = self._view.store.snapshot()
        wanted = set(addresses)
        rows = [row for row in self._view.store.table if not wanted.isdisjoint(addresses_of(row))]
        with self._lock:
            for row in rows:
                self.pending.setdefault(row.name, values[row.name])
        for address in addresses:
            self._said.pop(address, None)
        self._status_in_s = 0.0

    async def send_forever(self) -> None:
        """Tell what is new every 33 ms, each value as an OSC packet of its own."""
        try:
            while True:
                await asyncio.sleep(GATHER_S)
                await self._send_new()
        except (WebSocketDisconnect, RuntimeError, OSError):
            return  # the other end is gone; the receiving side ends the connection

    async def _send_new(self) -> None:
        with self._lock:
            news, self.news = self.news, []
            pending, self.pending = self.pending, {}
        for one in news:
            await self._socket.send_text(json.dumps(one))
        for name, value in pending.items():
            for address in addresses_of(self._view.store.table.rows[name]):
                if address in self.paths:
                    await self._socket.send_bytes(encode_message(address, (value,), booleans=True))
        self._status_in_s -= GATHER_S
        if self._status_in_s <= 0:
            self._status_in_s = _STATUS_EVERY_S
            await self._send_status()

    async def _send_status(self) -> None:
        topics = [topic for topic in STATUS_TOPICS if topic.address in self.paths]
        if not topics and HEARTBEAT not in self.paths:
            return
        status = self._view.status()
        values: dict[str, Value] = {topic.address: topic.value(status) for topic in topics}
        if HEARTBEAT in self.paths:
            values[HEARTBEAT] = int(status.uptime_s)
        for address, value in values.items():
            if self._said.get(address) != value:
                self._said[address] = value
                await self._socket.send_bytes(encode_message(address, (value,)))
