"""The page's WebSocket: status, changes and preview pictures out, values in."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.websockets import WebSocket, WebSocketDisconnect

from sdbridge.control import pictures
from sdbridge.control.access import Access
from sdbridge.control.endpoint import Body, error_json, json_text, shape_of
from sdbridge.control.http_api import outcome_json, write
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Change

CHANGES_EVERY_S = 1 / 30
STATUS_EVERY_S = 0.25
PREVIEW_EVERY_S = 0.1
MOST_CLIENTS = 64
#: The first byte of a preview message says which picture follows.
PREVIEW_KINDS: Mapping[str, int] = {"input": 0, "output": 1, "control": 2}

_log = logging.getLogger(__name__)


class ClientMessage(Body):
    """What the page may send. ``kind`` decides which of the others mean something.

    ``token`` shows the access token; ``set`` writes ``values`` and is answered under the same ``id``;
    ``preview`` asks for pictures until asked otherwise; ``seen`` says that one arrived, so that a slow
    phone gets fewer instead of late ones.
    """

    kind: str = Field(max_length=16)
    id: int = Field(default=0, ge=0, le=2**53)
    token: str = Field(default="", max_length=512)
    values: dict[str, Any] = Field(default_factory=dict)
    fade_s: float = Field(default=0.0, ge=0, le=3600)
    pictures: tuple[str, ...] = Field(default=(), max_length=8)
    size: int = Field(default=512, ge=64, le=1280)


class Live:
    """Every connected page. Made before the server starts; ``close`` ends the subscription."""

    def __init__(self, view: BridgeView, access: Access) -> None:
        self._view = view
        self._access = access
        self._clients: set[_Client] = set()
        self._lock = threading.Lock()
        self._endings = (view.store.subscribe(self._take), view.show.subscribe(self._take_topic))
        self._jpegs: dict[tuple[str, int], tuple[object, bytes]] = {}

    @property
    def clients(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """Stop listening to store and show; connections end with the server."""
        for end in self._endings:
            end()

    async def serve(self, socket: WebSocket) -> None:
        """One connection from beginning to end."""
        if len(self._clients) >= MOST_CLIENTS:
            await socket.close(4429, "SDB-WEB-FULL")
            return
        client = _Client(self, self._view, self._access, socket)
        try:
            await socket.accept()
            await self._greet(client)
            await client.run()
        except (WebSocketDisconnect, ConnectionError):
            pass  # gone before it was greeted
        finally:
            with self._lock:
                self._clients.discard(client)

    async def _greet(self, client: _Client) -> None:
        """Say how everything stands, and let the client hear of changes from then on."""
        values, revision = self._view.store.snapshot()
        await client.send(
            {
                "kind": "hello",
                "name": self._view.config.name,
                "schema": self._view.store.table.schema_hash(),
                "may_write": client.may_write,
                "lan": self._access.lan,
                "values": values,
                "revision": revision,
            }
        )
        with self._lock:
            self._clients.add(client)
        # What changed between the snapshot and joining would be lost without a second look.
        now, _ = self._view.store.snapshot()
        client.take({name: value for name, value in now.items() if values.get(name) != value}, ())

    def _take(self, change: Change) -> None:
        """Called in the setter's thread: keep it short, the clients' own tasks do the sending."""
        with self._lock:
            for client in self._clients:
                client.take(change.values, change.triggers)

    def _take_topic(self, topic: str) -> None:
        """Presets or cues are not as they were; the pages ask for them anew."""
        with self._lock:
            for client in self._clients:
                client.take_topic(topic)

    async def jpeg(self, name: str, size: int) -> tuple[int, bytes] | None:
        """``(frame id, JPEG)`` of a picture now, encoded once for all who look."""
        read = self._view.input_frame if name == "input" else self._view.output_frame
        role: Any = {"input": "main", "output": "generated", "control": "control"}[name]
        frame = await asyncio.to_thread(read, role)
        if frame is None:
            return None
        kept = self._jpegs.get((name, size))
        if kept is None or kept[0] is not frame:
            kept = (frame, await asyncio.to_thread(pictures.preview, frame, size))
            self._jpegs = {
                **{key: old for key, old in self._jpegs.items() if len(self._jpegs) < 12},
                (name, size): kept,
            }
        return frame.frame_id, kept[1]


class _Client:
    """One page: what it has not heard yet, and the tasks that tell it."""

    def __init__(self, live: Live, view: BridgeView, access: Access, socket: WebSocket) -> None:
        self._live = live
        self._view = view
        self._access = access
        self._socket = socket
        self.may_write = access.admits(None) or bool(socket.scope.get("sdbridge.may_write"))
        self._source = f"page:{socket.client.host}:{socket.client.port}" if socket.client else "page"
        self._pending: dict[str, Value] = {}
        self._fired: list[str] = []
        self._topics: set[str] = set()
        self._pending_lock = threading.Lock()
        self._wanted: tuple[tuple[str, ...], int] = ((), 512)
        self._unseen = 0

    def take(self, values: Mapping[str, Value], triggers: tuple[str, ...]) -> None:
        """Keep a change until the next sending; the newest value of each name wins."""
        with self._pending_lock:
            self._pending.update(values)
            self._fired.extend(triggers)
            del self._fired[:-100]

    def take_topic(self, topic: str) -> None:
        """Keep what of the show is new: ``presets``, ``preset`` or ``cue``."""
        with self._pending_lock:
            self._topics.add(topic)

    async def run(self) -> None:
        """Talk until the page goes away."""
        tasks = [
            asyncio.ensure_future(part())
            for part in (self._listen, self._tell_changes, self._tell_status, self._show_pictures)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not _is_farewell(outcome):
                    _log.error("a page's connection failed", exc_info=outcome)

    async def send(self, content: Mapping[str, object]) -> None:
        await self._socket.send_text(json_text(content))

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            try:
                if text is None:
                    raise SdbridgeError("SDB-WEB-BODY", "messages to the page's socket are JSON text")
                await self._obey(shape_of(text, ClientMessage))
            except SdbridgeError as error:
                await self.send({"kind": "refused", "id": _id_of(text), "error": error_json(error)})

    async def _obey(self, message: ClientMessage) -> None:
        if message.kind == "set":
            if not self.may_write:
                raise SdbridgeError("SDB-WEB-TOKEN", "writing over the network needs the access token")
            outcome = await asyncio.to_thread(write, self._view, message.values, message.fade_s, self._source)
            found = {name: self._value_now(name) for name in message.values}
            now = {name: value for name, value in found.items() if value is not None}
            await self.send({"kind": "outcome", "id": message.id, **outcome_json(outcome), "values": now})
        elif message.kind == "token":
            self.may_write = self._access.admits(message.token)
            await self.send({"kind": "access", "id": message.id, "may_write": self.may_write})
        elif message.kind == "preview":
            unknown = [name for name in message.pictures if name not in PREVIEW_KINDS]
            if unknown:
                raise SdbridgeError("SDB-WEB-BODY", f"there is no picture {unknown[0][:40]!r}")
            self._wanted = (tuple(dict.fromkeys(message.pictures)), 64 * (message.size // 64))
            self._unseen = 0
        elif message.kind == "seen":
            self._unseen = max(0, self._unseen - 1)
        else:
            raise SdbridgeError("SDB-WEB-BODY", f"there is no message of kind {message.kind!r}")

    def _value_now(self, name: str) -> Value | None:
        """What became of a value that the page set: clamped and rounded as the table says."""
        try:
            row = self._view.store.table.find(name)
        except SdbridgeError:
            return None
        return None if row.kind == "trigger" else self._view.store.get(row.name)

    async def _tell_changes(self) -> None:
        while True:
            await asyncio.sleep(CHANGES_EVERY_S)
            with self._pending_lock:
                values, self._pending = self._pending, {}
                fired, self._fired = self._fired, []
                topics, self._topics = self._topics, set()
            if values or fired:
                revision = self._view.store.revision
                await self.send(
                    {"kind": "changes", "values": values, "triggers": fired, "revision": revision}
                )
            for topic in sorted(topics):
                await self.send({"kind": "show", "topic": topic})

    async def _tell_status(self) -> None:
        while True:
            status = await asyncio.to_thread(self._view.status)
            await self.send({"kind": "status", "status": status.as_json()})
            await asyncio.sleep(STATUS_EVERY_S)

    async def _show_pictures(self) -> None:
        shown: dict[str, int] = {}
        while True:
            await asyncio.sleep(PREVIEW_EVERY_S)
            names, size = self._wanted
            if not names or self._unseen > 2 * len(names):
                continue
            for name in names:
                found = await self._live.jpeg(name, size)
                if found is None or shown.get(name) == found[0]:
                    continue
                shown[name] = found[0]
                self._unseen += 1
                await self._socket.send_bytes(bytes([PREVIEW_KINDS[name]]) + found[1])


def _is_farewell(error: Exception) -> bool:
    """A page that closes while we send is no fault."""
    return isinstance(error, WebSocketDisconnect | ConnectionError) or (
        isinstance(error, RuntimeError) and "websocket" in str(error).lower()
    )


def _id_of(text: str | None) -> int:
    """The id of a message that was refused, if it can be told, so that the page knows which."""
    try:
        found = json.loads(text or "")["id"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return 0
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= 2**53 else 0
