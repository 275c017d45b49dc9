"""The server on TCP: the page at ``/``, the HTTP API, live updates, OSCQuery and what senders offer."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import unquote

import h11
import psutil
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from sdbridge.control import (
    http_api,
    http_links,
    http_midi,
    http_models,
    http_osc_log,
    http_show,
    http_textures,
    http_words,
    openapi,
)
from sdbridge.control.access import Access, Gate
from sdbridge.control.endpoint import Endpoint, guarded, json_answer, refusal
from sdbridge.control.http_midi import MidiView
from sdbridge.control.http_osc_log import OscLogView
from sdbridge.control.live import Live
from sdbridge.control.oscquery import OscQuery
from sdbridge.control.pulls import Pulls
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError

PAGE = Path(__file__).parent / "page"
LARGEST_MESSAGE = 1 << 20  # bytes of one WebSocket message
MOST_CONNECTIONS = 256
STOP_WITHIN_S = 5.0
SHORT_TOKEN = 12  # characters
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}

_log = logging.getLogger(__name__)


class WebServer:
    """Serves ``view`` on its configured port from ``start`` to ``close``, in a thread of its own."""

    def __init__(self, view: BridgeView, *, pulls: Pulls | None = None) -> None:
        self._view = view
        self._pulls = pulls or Pulls()
        self._others: Mapping[str, object] = {}
        self.access = Access(view.config)
        self.port = view.config.port
        self._live: Live | None = None
        self._query: OscQuery | None = None
        self._server: uvicorn.Server | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def links(self) -> tuple[str, ...]:
        """Where browsers on the network find the page, with the token that lets them write."""
        if not self._view.config.lan:
            return ()
        return tuple(
            f"http://{address}:{self.port}/#token={self.access.token}" for address in _lan_addresses()
        )

    def start(self) -> None:
        """Take the port and answer from now on. Raises SDB-WEB-PORT if the port cannot be had."""
        self._socket = _listen(self._view.config.lan, self.port)
        self.port = self._socket.getsockname()[1]
        self._live = Live(self._view, self.access)
        self._query = OscQuery(self._view)
        endpoints = all_endpoints(
            self._view,
            self.access.token,
            lambda: self.links,
            self._pulls,
            lambda name: self._others.get(name),
        )
        app = Gate(_Site(self._view, self._live, self._query, endpoints), self.access)
        settings = uvicorn.Config(
            app,
            http="h11",
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody but the connection itself says where a request comes from
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        # Each malformed request would be a line in the artist's console. Our own faults are logged by Gate.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=_serve, args=(self._server, self._socket), name="sdbridge-web", daemon=True
        )
        self._thread.start()
        _log.info("page %s", self.url)
        for link in self.links:
            _log.info("page on the network %s", link)
        if self._view.config.lan:
            _log.info("the token guards HTTP only: OSC and NDI carry no authentication")
            if len(self.access.token) < SHORT_TOKEN:
                _log.warning("the token has only %d characters and can be guessed", len(self.access.token))

    def meet(self, others: Mapping[str, object]) -> None:
        """Learn of the other surfaces, which start after this one, to show what they do."""
        self._others = others

    def _other(self, name: str) -> object | None:
        return self._others.get(name)

    def close(self) -> None:
        """Give the port back; may be called twice."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(STOP_WITHIN_S)
            if self._thread.is_alive() and self._server is not None:
                self._server.force_exit = True
                self._thread.join(STOP_WITHIN_S)
        if self._live is not None:
            self._live.close()
        if self._query is not None:
            self._query.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._thread = self._live = self._query = self._socket = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """The server's thread: a loop of its own until the server is told to end."""

    def faulty(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), h11.ProtocolError):
            _log.debug("a peer broke off in the middle of a request")  # asyncio has hung up on it
        else:
            loop.default_exception_handler(context)

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(faulty)
        runner.run(server.serve(sockets=[listener]))


class _Site:
    """Finds who answers a request: page, API, live socket, a sender's own app, or OSCQuery."""

    def __init__(self, view: BridgeView, live: Live, query: OscQuery, endpoints: Sequence[Endpoint]) -> None:
        self._view = view
        self._live = live
        self._query = query
        self._files = _read_page()
        self._endpoints = endpoints
        self._calls: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            self._calls.setdefault(endpoint.path, {})[endpoint.method] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        mounted = None if path.startswith("/api/") else self._mounted(path)
        if mounted is not None:
            await mounted(scope, receive, send)
        elif scope["type"] == "websocket" and path == "/api/live":
            await self._live.serve(WebSocket(scope, receive, send))
        elif _is_osc_query(scope):
            await self._query(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4404, "reason": "SDB-WEB-PATH"})
        else:
            answer = await self._answer(Request(scope, receive))
            if scope["method"] == "HEAD":
                answer.body = b""
            await answer(scope, receive, send)

    @cached_property
    def _document(self) -> dict[str, Any]:
        """Made when it is first asked for: it would keep the page waiting."""
        return openapi.document(self._endpoints)

    def _mounted(self, path: str) -> ASGIApp | None:
        """The app of the longest mount that holds ``path``; asked anew each time, senders come and go."""
        mounts = self._view.mounts()
        for place in sorted(mounts, key=len, reverse=True):
            if path == place or path.startswith(place.rstrip("/") + "/"):
                return mounts[place]  # type: ignore[return-value]  # the contract calls it object
        return None

    async def _answer(self, request: Request) -> Response:
        path, method = request.url.path, request.method
        reading = method in ("GET", "HEAD")
        if path == "/api/openapi.json" and reading:
            return json_answer(self._document)
        if path in self._calls:
            endpoint = self._calls[path].get("GET" if method == "HEAD" else method)
            if endpoint is not None:
                return await guarded(endpoint)(request)
            allowed = ", ".join(self._calls[path])
            error = SdbridgeError("SDB-WEB-METHOD", f"{path} takes {allowed}, not {method[:20]}")
            return refusal(error, {"allow": allowed})
        if path == "/" and reading:
            return self._file("index.html", request)
        if path.startswith("/page/") and path.removeprefix("/page/") in self._files and reading:
            return self._file(path.removeprefix("/page/"), request)
        return refusal(SdbridgeError("SDB-WEB-PATH", f"there is nothing at {path[:80]!r}"))

    def _file(self, name: str, request: Request) -> Response:
        content, tag, media_type = self._files[name]
        headers = {"etag": tag, "cache-control": "no-cache", "vary": "Accept"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)


def _is_osc_query(scope: Scope) -> bool:
    """Whether OSCQuery answers: data asked at the root or below /sdbridge, or a socket opened there."""
    path = scope["path"]
    if scope["type"] == "websocket":
        return path == "/" or path.startswith("/sdbridge")
    accept = next((value for key, value in scope["headers"] if key == b"accept"), b"").decode("latin-1")
    query = unquote(scope["query_string"].decode("latin-1"))
    return scope["method"] in ("GET", "HEAD") and OscQuery.is_for(path, query, accept)


def all_endpoints(
    view: BridgeView,
    token: str,
    links: Callable[[], Sequence[str]],
    pulls: Pulls,
    others: Callable[[str], object | None],
) -> tuple[Endpoint, ...]:
    """Every endpoint of the HTTP API. ``others`` finds another surface by name once it is open."""
    return (
        *http_api.endpoints(view, token),
        *http_show.endpoints(view),
        *http_textures.endpoints(view),
        *http_models.endpoints(pulls),
        *http_words.endpoints(view),
        *http_links.endpoints(links),
        *http_osc_log.endpoints(lambda: cast("OscLogView | None", others("osc"))),
        *http_midi.endpoints(lambda: cast("MidiView | None", others("midi"))),
    )


def _read_page() -> dict[str, tuple[bytes, str, str]]:
    """The page's files by name, with tag and media type; read once, so no path ever leads elsewhere."""
    files: dict[str, tuple[bytes, str, str]] = {}
    for path in sorted(PAGE.rglob("*")):
        if path.suffix in _MEDIA_TYPES and path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            files[path.relative_to(PAGE).as_posix()] = (content, tag, _MEDIA_TYPES[path.suffix])
    return files


def _listen(lan: bool, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there SO_REUSEADDR would let a second program share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0" if lan else "127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SdbridgeError(
            "SDB-WEB-PORT", f"TCP port {port} cannot be had: {error.strerror or error}"
        ) from None
    return listener


def _lan_addresses() -> list[str]:
    """This machine's IPv4 addresses that others may reach."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith(("127.", "169.254."))
    ]
    return sorted(set(found))
