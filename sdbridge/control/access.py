"""Who may talk to the page and the HTTP API: Host, Origin, token, content type and size."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Mapping

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdbridge.config import Config
from sdbridge.control.endpoint import LARGEST_BODY, refusal
from sdbridge.errors import SdbridgeError

WRITING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_log = logging.getLogger(__name__)
_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")


class Access:
    """The rules, decided once at start-up.

    Without ``lan`` only this machine can connect and no token is asked. With it, everything that
    writes demands the token: the configured one, or a random one made for this run.
    """

    def __init__(self, config: Config) -> None:
        self.lan = config.lan
        self.token = config.token or (secrets.token_urlsafe(16) if config.lan else "")
        self._names = {"localhost"} | (_own_names() if config.lan else set())

    @property
    def token_demanded(self) -> bool:
        return self.lan

    def admits(self, token: str | None) -> bool:
        """Whether someone who shows ``token`` may write. Takes the same time for every wrong token."""
        if not self.token_demanded:
            return True
        given = (token or "").encode("utf-8", "replace")
        return hmac.compare_digest(given, self.token.encode())

    def check_host(self, host: str | None) -> None:
        """Refuse names that are not ours: DNS rebinding reaches us under the attacker's own name."""
        found = _HOST.fullmatch(host or "")
        if found and self._is_ours(found[1].lower().rstrip(".")):
            return
        shown = (host or "none")[:80]
        raise SdbridgeError("SDB-WEB-HOST", f"the request is for host {shown!r}, which is not this bridge")

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Refuse what another site's page sends. Programs other than browsers send no Origin."""
        if origin is None:
            return
        scheme, _, place = origin.partition("://")
        if scheme in ("http", "https") and place and place.lower() == (host or "").lower():
            return
        raise SdbridgeError("SDB-WEB-ORIGIN", f"the request comes from a page of {origin[:80]!r}")

    def _is_ours(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.lan or address.is_loopback  # a bare address cannot be rebound


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of ``Authorization: Bearer <token>``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class Gate:
    """ASGI middleware that lets through only what the rules allow, before any other code sees it.

    Apps below find in ``scope["sdbridge.may_write"]`` whether the caller has shown the token.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        scope["sdbridge.may_write"] = self._access.admits(bearer(headers))
        try:
            await self._answer(scope, receive, send, headers)
        except h11.LocalProtocolError:
            # The rest of the request was nonsense: the server has answered 400 and hung up meanwhile.
            _log.debug("%s broke off", scope.get("client"))
        except Exception:  # noqa: BLE001  # edge: control; the next request is served all the same
            _log.exception("%s failed", scope["path"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        try:
            self._check(scope, headers)
        except SdbridgeError as error:
            await _refuse(scope, receive, send, error)
            return
        await self._app(scope, receive, _with_safe_headers(send, headers.get("host", "")))

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        hosts = [value for key, value in scope["headers"] if key == b"host"]
        self._access.check_host(headers.get("host") if len(hosts) == 1 else None)
        if scope["type"] == "websocket":
            self._access.check_origin(headers.get("origin"), headers.get("host"))
            return
        if scope["method"] not in WRITING:
            return
        self._access.check_origin(headers.get("origin"), headers.get("host"))
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > LARGEST_BODY:
            raise SdbridgeError("SDB-WEB-SIZE", f"the body has {length[:20]} bytes, at most {LARGEST_BODY}")
        if not scope["sdbridge.may_write"]:
            raise SdbridgeError("SDB-WEB-TOKEN", "writing over the network needs the access token")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["path"].startswith("/api/") and kind != "application/json":
            raise SdbridgeError("SDB-WEB-TYPE", f"the body's content type is {kind[:60] or 'missing'}")


async def _refuse(scope: Scope, receive: Receive, send: Send, error: SdbridgeError) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect event
        await send({"type": "websocket.close", "code": 4403, "reason": error.code})
        return
    headers = {"www-authenticate": "Bearer"} if error.code == "SDB-WEB-TOKEN" else {}
    if error.code == "SDB-WEB-SIZE":
        headers["connection"] = "close"  # a small rest is read and dropped, this one is not waited for
    await refusal(error, headers)(scope, receive, send)


def _with_safe_headers(send: Send, host: str) -> Send:
    """Add to every answer what keeps other sites from framing or reading it."""
    # Older Safari does not count a WebSocket to the same place as 'self'; ``host`` has passed the check.
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        f"connect-src 'self' ws://{host} wss://{host}; manifest-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    extra = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
    ]

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return send_more


def _own_names() -> set[str]:
    """What other machines on the network may call this one."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return {name, short, f"{short}.local"} - {""}
