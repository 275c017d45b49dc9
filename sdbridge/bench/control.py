"""How fast and how steadily control works: fader to picture, 10,000 messages a second, 32 subscribers."""

from __future__ import annotations

import json
import random
import selectors
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from sdbridge.bench.rig import FaultRig
from sdbridge.control.osc_decode import encode_message
from sdbridge.engine.interface import EngineConfig, EngineSpec
from sdbridge.engine.passthrough import PassthroughEngine
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Chunk, Frame
from sdbridge.meters import percentile
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

FPS = 60
Figures = Mapping[str, object]
_ENGINE = "sdbridge.bench.control:ShadeEngine"
_STEPS = 100  # values of strength that give a shade of their own


class ShadeEngine(PassthroughEngine):
    """Paints ``strength`` as a flat green, one step brighter every second frame: a fader one can see."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.spec = EngineSpec(kind="shade", size_multiple=1)
        self._shade = 0
        self._ticks = 0

    def load(self, values: Mapping[str, Value]) -> None:
        self.apply(values, 0)

    def apply(self, changes: Mapping[str, Value], revision: int) -> tuple[Rejection, ...]:
        if "strength" in changes:
            self._shade = round(float(changes["strength"]) * _STEPS)
        return ()

    def tick(self, chunk: Chunk | None) -> Chunk | None:
        if chunk is None or "main" not in chunk.frames[-1]:
            return None
        given = chunk.frames[-1]["main"]
        self._ticks += 1
        pixels = np.empty_like(given.pixels)
        pixels[:] = (0, 2 + 2 * self._shade + self._ticks % 2, 0, 255)
        frame = Frame(pixels, given.frame_id, given.received_at_ns, given.revision)
        return Chunk((MappingProxyType({"generated": frame}),))


def run_case(name: str, seconds: float = 10.0) -> Figures:
    """One of ``fader_to_picture``, ``messages_10k``, ``subscribers_32``."""
    cases = {case.__name__: case for case in (fader_to_picture, messages_10k, subscribers_32)}
    if name not in cases:
        raise SdbridgeError("SDB-BENCH-FAULT", f"no control case {name!r}, there are {', '.join(cases)}")
    return cases[name](seconds=seconds)


def fader_to_picture(seconds: float = 10.0, **options: Any) -> Figures:
    """From an OSC datagram to the first changed frame in another program, at 60 fps."""
    rng = random.Random(0)
    latencies: list[float] = []
    with _Stage() as stage:
        end = time.monotonic() + seconds
        shade = 0
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.05, 0.1))  # at any moment between two frames
            shade = shade % (_STEPS - 1) + 1
            start, seen = len(stage.rig.sights), 0.0
            sent = time.monotonic()
            stage.say("/sdbridge/strength", shade / _STEPS)
            while not seen and time.monotonic() < sent + 5.0:
                seen = next((s.at for s in stage.rig.sights[start:] if (s.shade - 2) // 2 == shade), 0.0)
                time.sleep(0.0005)
            if not seen:
                raise SdbridgeError("SDB-BENCH-FAULT", "a fader's movement never showed")
            latencies.append((seen - sent) * 1e3)
        gaps = stage.rig.gaps_ms(end - seconds)
    latencies.sort()
    frame_ms = percentile(gaps, 50)
    return {
        "movements": len(latencies),
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "frame_ms": frame_ms,
        "target_p99_ms": 2 * 1000 / FPS + 3,
    }


def messages_10k(seconds: float = 10.0, rate: int = 10_000, **options: Any) -> Figures:
    """10,000 paced messages a second while frames flow: what is lost, and what it does to the rate."""
    with _Stage() as stage:
        quiet = stage.fps_over(min(seconds, 3.0))
        before = stage.osc_counts()
        began = time.monotonic()
        first, sent = len(stage.rig.sights), 0
        while time.monotonic() < began + seconds:
            due = int((time.monotonic() - began) * rate)
            while sent < due:
                sent += 1
                stage.say("/sdbridge/delta", sent % 1000 / 500)
            time.sleep(0.001)
        lasted = time.monotonic() - began
        busy = (len(stage.rig.sights) - first) / lasted
        time.sleep(0.5)
        after = stage.osc_counts()
    handled = after["ok"] - before["ok"]
    return {
        "sent": sent,
        "rate": sent / lasted,
        "handled": handled,
        "lost": sent - handled,
        "fps_quiet": quiet,
        "fps_busy": busy,
    }


def subscribers_32(seconds: float = 10.0, clients: int = 32, rate: int = 1_000, **options: Any) -> Figures:
    """32 controllers subscribed and 1,000 changes a second, against none, in alternating runs."""
    quiet: list[float] = []
    busy: list[float] = []
    quiet_page: list[float] = []
    busy_page: list[float] = []
    heard = changes = 0
    share = max(seconds / 6, 1.0)
    with _Stage() as stage:
        for _round in range(3):
            quiet.append(stage.fps_over(share, quiet_page))
            with _Audience(stage, clients) as audience, _Changes(stage, rate) as writer:
                time.sleep(0.5)
                busy.append(stage.fps_over(share, busy_page))
            heard += audience.packets
            changes += writer.sent
    quiet_page.sort()
    busy_page.sort()
    mean_quiet, mean_busy = sum(quiet) / len(quiet), sum(busy) / len(busy)
    return {
        "clients": clients,
        "changes": changes,
        "bundles_heard": heard,
        "fps_quiet": mean_quiet,
        "fps_busy": mean_busy,
        "fps_change_percent": 100.0 * (mean_busy - mean_quiet) / mean_quiet,
        "page_quiet_p50_ms": percentile(quiet_page, 50),
        "page_busy_p50_ms": percentile(busy_page, 50),
    }


class _Stage:
    """A daemon with the shade engine, a source at 60 fps, an observer, and a socket that sends OSC."""

    def __init__(self) -> None:
        self.rig = FaultRig(kind=_ENGINE, side=256)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._socket)
        self._stack.enter_context(self.rig)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def say(self, address: str, *args: float | int | str) -> None:
        self._socket.sendto(encode_message(address, args), ("127.0.0.1", self.rig.port))

    def osc_counts(self) -> dict[str, int]:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.rig.port}/api/osc-log?count=1", timeout=10
        ) as answer:
            counts: dict[str, int] = json.load(answer)["counts"]
            return counts

    def fps_over(self, seconds: float, page_ms: list[float] | None = None) -> float:
        """Frames a second in another program; meanwhile the page's status is asked ten times a second."""
        first, began = len(self.rig.sights), time.monotonic()
        while time.monotonic() < began + seconds:
            asked = time.monotonic()
            if page_ms is not None:
                self.rig.status()
                page_ms.append((time.monotonic() - asked) * 1e3)
            time.sleep(0.1)
        return (len(self.rig.sights) - first) / (time.monotonic() - began)


class _Audience:
    """Sockets that subscribe to everything and read what they are told."""

    def __init__(self, stage: _Stage, clients: int) -> None:
        self._stage = stage
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(clients)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.packets = 0

    def __enter__(self) -> Self:
        for one in self._sockets:
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
            message = encode_message("/sdbridge/subscribe", (0, "/sdbridge", 3600))
            one.sendto(message, ("127.0.0.1", self._stage.rig.port))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._sockets:
            one.sendto(encode_message("/sdbridge/unsubscribe"), ("127.0.0.1", self._stage.rig.port))
        self._over.set()
        self._thread.join(5)
        for one in self._sockets:
            one.close()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                selector.register(one, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in selector.select(0.1):
                    key.fileobj.recv(65_535)  # type: ignore[union-attr]  # only sockets were registered
                    self.packets += 1


class _Changes:
    """Writes parameter changes at a rate, from a socket that nobody subscribed."""

    def __init__(self, stage: _Stage, rate: int) -> None:
        self._stage = stage
        self._rate = rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(5)

    def _write(self) -> None:
        began = time.monotonic()
        while not self._over.is_set():
            while self.sent < (time.monotonic() - began) * self._rate:
                self.sent += 1
                slot = self.sent % 8 + 1
                self._stage.say(f"/sdbridge/prompt/{slot}/weight", self.sent % 100 / 50)
            time.sleep(0.002)
