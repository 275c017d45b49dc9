"""A sender over HTTP: moving JPEG that browsers, stock OBS, VLC and ffmpeg read, on the bridge's own port."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.options import option, read_options
from sdbridge.textures.served_paths import USUAL

log = logging.getLogger(__name__)

_BOUNDARY = b"sdbridgeframe"
_MOST_PIXELS_A_SIDE = 65535  # of the JPEG format

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclass(frozen=True)
class MjpegOptions:
    """Where and how good. Of outputs that name no path, each gets one of its own (``served_paths.py``)."""

    path: str = option(USUAL["mjpeg"])
    quality: int = option(85, low=1, high=100)
    viewers: int = option(16, low=1, high=256)


class Sender(stub.Sender):
    """Encodes a frame once for all viewers, and only while there are any. A slow viewer misses frames."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = MjpegOptions()
        self._lock = threading.Lock()
        self._viewers: set[_Viewer] = set()
        self._last: Frame | None = None
        self._open = False
        self.encoded = 0

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "the bridge serves it on its own port"

    def open(self) -> None:
        self._chosen = read_options(MjpegOptions, self.options, "mjpeg")
        if not self._chosen.path.startswith("/") or not self._chosen.path.isprintable():
            raise SdbridgeError(
                "SDB-TEXTURE-OPTION",
                f"mjpeg's option path must start with a slash, it is {self._chosen.path!r}",
            )
        self._open = True

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        with self._lock:
            self._last = frame
            viewers = tuple(self._viewers)
        if viewers:
            jpeg = self._encode(frame.pixels)
            for viewer in viewers:
                viewer.offer(jpeg)

    @property
    def mounts(self) -> Mapping[str, object]:
        return {self._chosen.path: _Application(self._watch)}

    @property
    def receivers(self) -> int:
        return len(self._viewers)

    def describe(self) -> str:
        size = f", {self._last.width}x{self._last.height}" if self._last else ""
        return f"mjpeg at {self._chosen.path}{size}, {self.receivers} watching"

    def close(self) -> None:
        with self._lock:
            self._open = False
            viewers = tuple(self._viewers)
        for viewer in viewers:
            viewer.offer(None)

    async def _watch(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        """One viewer's visit: an endless multipart answer, one part a frame."""
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"only GET is understood here", [(b"allow", b"GET, HEAD")])
            return
        if not self._open:
            await _answer(send, 503, b"the mjpeg output is closed")
            return
        viewer = _Viewer(asyncio.get_running_loop())
        with self._lock:
            full = len(self._viewers) >= self._chosen.viewers
            if not full and scope["method"] == "GET":
                self._viewers.add(viewer)
            last = self._last  # taken with the lock: what is sent from now on comes after it
        if full:
            await _answer(send, 503, b"too many viewers, see the option viewers")
            return
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _stream_headers()})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            await self._stream(viewer, last, receive, send)
        except OSError:
            log.debug("a viewer of %s went away while it was written to", self._chosen.path)
        except asyncio.CancelledError:
            log.debug("the server ended while %s was watched", self._chosen.path)  # no fault, so no trace
        finally:
            with self._lock:
                self._viewers.discard(viewer)

    async def _stream(self, viewer: _Viewer, last: Frame | None, receive: _Receive, send: _Send) -> None:
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            # The boundary goes out right after each picture: browsers show a part when it has ended.
            await send(_body(b"--" + _BOUNDARY + b"\r\n"))
            if last is not None:
                await send(_part(await asyncio.to_thread(self._encode, last.pixels)))
            while True:
                taken = asyncio.ensure_future(viewer.take())
                await asyncio.wait({gone, taken}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    taken.cancel()
                    return
                jpeg = taken.result()
                if jpeg is None:
                    await send({"type": "http.response.body", "body": b""})
                    return
                await send(_part(jpeg))
        finally:
            gone.cancel()

    def _encode(self, pixels: np.ndarray) -> bytes:
        self.encoded += 1
        pixels = pixels[:_MOST_PIXELS_A_SIDE, :_MOST_PIXELS_A_SIDE]
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), self._chosen.quality, "RGBA", "420", fastdct=True
        )
        return encoded


class _Application:
    """The ASGI app behind ``mounts``: an object, since servers and routers guess wrongly about methods."""

    def __init__(self, watch: Callable[[Mapping[str, Any], _Receive, _Send], Awaitable[None]]) -> None:
        self._watch = watch

    async def __call__(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        await self._watch(scope, receive, send)


class _Viewer:
    """One connection's mailbox of one picture: the sender's thread offers, the event loop takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived = asyncio.Event()
        self._jpeg: bytes | None = None

    def offer(self, jpeg: bytes | None) -> None:
        """Replace what was not taken yet; None ends the stream. From any thread."""
        self._jpeg = jpeg
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            log.debug("the event loop of a viewer has ended")

    async def take(self) -> bytes | None:
        await self._arrived.wait()
        self._arrived.clear()
        return self._jpeg


async def _until_gone(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _part(jpeg: bytes) -> _Message:
    head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg)
    return _body(head + jpeg + b"\r\n--" + _BOUNDARY + b"\r\n")


def _body(content: bytes) -> _Message:
    return {"type": "http.response.body", "body": content, "more_body": True}


def _stream_headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"multipart/x-mixed-replace; boundary=" + _BOUNDARY),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]


async def _answer(
    send: _Send, status: int, text: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
