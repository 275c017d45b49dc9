"""A sender to browsers far away: WebRTC by WHEP, on the bridge's own port, through aiortc.

A player posts its offer to ``/whep`` and gets the answer with a ``Location``; deleting that ends
its visit. Pictures go by UDP from a port that the system chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import fractions
import importlib
import importlib.util
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.geometry import scaler, with_even_sides
from sdbridge.textures.options import option, read_options
from sdbridge.textures.served_paths import USUAL

log = logging.getLogger(__name__)

_CLOCK_RATE = 90_000  # of video over RTP
_LONGEST_OFFER = 100_000
_REPEAT_S = 1.0

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclass(frozen=True)
class WebrtcOptions:
    """``path`` as MJPEG's. ``h264`` is what some hardware players ask for; VP8 costs half."""

    path: str = option(USUAL["webrtc"])
    viewers: int = option(4, low=1, high=32)
    codec: str = option("vp8", choices=("vp8", "h264"))


class Sender(stub.Sender):
    """Each viewer has a connection and an encoder of its own, so few are allowed."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = WebrtcOptions()
        self._lock = threading.Lock()
        self._visits: dict[str, _Visit] = {}
        self._last: Frame | None = None
        self._open = False

    @classmethod
    def available(cls) -> tuple[bool, str]:
        if importlib.util.find_spec("aiortc") is None:
            return False, 'aiortc is not installed; pip install "sdbridge[webrtc]"'
        return True, "aiortc is installed"

    def open(self) -> None:
        self._chosen = read_options(WebrtcOptions, self.options, "webrtc")
        if not self._chosen.path.startswith("/") or not self._chosen.path.isprintable():
            raise SdbridgeError(
                "SDB-TEXTURE-OPTION",
                f"webrtc's option path must start with a slash, not {self._chosen.path!r}",
            )
        able, why = self.available()
        if not able:
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"WebRTC cannot be used: {why}")
        self._open = True

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        with self._lock:
            self._last = frame
            visits = tuple(self._visits.values())
        for visit in visits:
            visit.offer(frame)

    @property
    def mounts(self) -> Mapping[str, object]:
        return {self._chosen.path: _Application(self._answer)}

    @property
    def receivers(self) -> int:
        return len(self._visits)

    def describe(self) -> str:
        size = f", {self._last.width}x{self._last.height}" if self._last else ""
        return f"webrtc (WHEP) at {self._chosen.path}{size}, {self.receivers} watching"

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._last = None
            visits = tuple(self._visits.values())
            self._visits.clear()
        for visit in visits:
            visit.end_from_another_thread()

    async def _answer(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"].rstrip("/")
        visit = path.removeprefix(self._chosen.path).strip("/")
        if not self._open:
            await _refuse(send, 503, SdbridgeError("SDB-WEB-ABSENT", "the webrtc output is closed"))
        elif method == "POST" and not visit:
            await self._welcome(receive, send)
        elif method == "DELETE" and visit:
            await self._end(visit)
            await _reply(send, 200, b"")
        else:
            error = SdbridgeError(
                "SDB-WEB-METHOD", "this path takes POST of an SDP offer and DELETE of its Location"
            )
            await _refuse(send, 405, error, ((b"allow", b"POST"),))

    async def _welcome(self, receive: _Receive, send: _Send) -> None:
        if len(self._visits) >= self._chosen.viewers:
            error = SdbridgeError(
                "SDB-WEB-FULL",
                f"{len(self._visits)} watch already",
                next_step="Raise the output's option viewers, or end one.",
            )
            await _refuse(send, 503, error)
            return
        offer = await _body(receive)
        if offer is None or not offer.startswith("v=0"):
            text = "the body must be an SDP offer of at most 100 KB"
            await _refuse(send, 400, SdbridgeError("SDB-WEB-BODY", text))
            return
        name = secrets.token_urlsafe(12)
        visit = _Visit(asyncio.get_running_loop(), lambda: self._forget(name))
        with self._lock:
            self._visits[name] = visit
            last = self._last
        try:
            answer = await visit.begin(offer, self._chosen.codec)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as fault:
            # aiortc reads offers with no more care than that; whatever is wrong is the offer.
            log.info("webrtc: an offer was refused: %s", fault)
            await self._end(name)
            text = "this offer cannot be answered; it needs a video line that receives"
            await _refuse(send, 400, SdbridgeError("SDB-WEB-BODY", text))
            return
        if last is not None:
            visit.offer(last)
        place = f"{self._chosen.path}/{name}".encode()
        await _reply(
            send, 201, answer.encode(), ((b"content-type", b"application/sdp"), (b"location", place))
        )

    def _forget(self, name: str) -> None:
        with self._lock:
            self._visits.pop(name, None)

    async def _end(self, name: str) -> None:
        with self._lock:
            visit = self._visits.pop(name, None)
        if visit is not None:
            await visit.end()


class _Application:
    """The ASGI app behind ``mounts``: an object, since servers and routers guess wrongly about methods."""

    def __init__(self, answer: Callable[[Mapping[str, Any], _Receive, _Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Mapping[str, Any], receive: _Receive, send: _Send) -> None:
        await self._answer(scope, receive, send)


class _Visit:
    """One viewer: a peer connection in the event loop, and a mailbox of one frame."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Callable[[], None]) -> None:
        self._loop = loop
        self._gone = gone
        self._arrived = asyncio.Event()
        self._frame: Frame | None = None
        self._peer: Any = None
        self._start = time.monotonic()

    async def begin(self, offer: str, codec: str) -> str:
        """Answer ``offer``. Raises what aiortc raises for an offer it cannot read."""
        aiortc = importlib.import_module("aiortc")
        # No STUN server: aiortc would ask a stranger's on the internet for our address.
        peer = self._peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))

        @peer.on("connectionstatechange")  # type: ignore[untyped-decorator,unused-ignore]  # aiortc is optional
        async def changed() -> None:
            if peer.connectionState in ("failed", "closed"):
                self._gone()
                await peer.close()

        if "\nm=video " not in offer:
            raise ValueError("the offer has no video")
        # The codec must be preferred before the offer is read: that is when the two lists are compared.
        sender = peer.addTrack(_make_track(self))
        capabilities = aiortc.RTCRtpSender.getCapabilities("video").codecs
        liked = [c for c in capabilities if c.mimeType.lower() == f"video/{codec}"]
        others = [c for c in capabilities if c not in liked]
        next(t for t in peer.getTransceivers() if t.sender is sender).setCodecPreferences(liked + others)
        await peer.setRemoteDescription(aiortc.RTCSessionDescription(sdp=offer, type="offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        sdp: str = peer.localDescription.sdp
        return sdp

    def offer(self, frame: Frame) -> None:
        """Replace what was not taken yet. From any thread."""
        self._frame = frame
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            log.debug("the event loop of a webrtc viewer has ended")

    async def take(self) -> Any:
        """The next frame for the encoder; the last one again after a second without."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), _REPEAT_S)
        self._arrived.clear()
        pixels = self._frame.pixels if self._frame is not None else np.zeros((64, 64, 4), np.uint8)
        picture = av.VideoFrame.from_numpy_buffer(with_even_sides(pixels), "rgba")
        converted = scaler().reformat(picture, format="yuv420p", threads=1)
        converted.pts = int((time.monotonic() - self._start) * _CLOCK_RATE)
        converted.time_base = fractions.Fraction(1, _CLOCK_RATE)
        return converted

    async def end(self) -> None:
        if self._peer is not None:
            await self._peer.close()

    def end_from_another_thread(self) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self.end()))
        except RuntimeError:
            log.debug("the event loop of a webrtc viewer has ended")


def _make_track(visit: _Visit) -> Any:
    """aiortc wants a class of its own kind, which can be made only once aiortc is there."""
    aiortc = importlib.import_module("aiortc")

    class Track(aiortc.VideoStreamTrack):  # type: ignore[misc,name-defined,unused-ignore]  # aiortc is optional
        async def recv(self) -> Any:
            return await visit.take()

    return Track()


async def _body(receive: _Receive) -> str | None:
    """The request's body as text; None if it is too long or no text."""
    content = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        content += message.get("body", b"")
        if len(content) > _LONGEST_OFFER:
            return None
        if not message.get("more_body"):
            break
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


async def _refuse(
    send: _Send, status: int, error: SdbridgeError, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    await _reply(send, status, str(error).encode(), headers)


async def _reply(
    send: _Send, status: int, content: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    if not any(name == b"content-type" for name, _ in headers):
        headers = (*headers, (b"content-type", b"text/plain; charset=utf-8"))
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": content})
