"""How much the bridge itself costs: latency and drops with a passthrough engine, memory, and start-up."""

from __future__ import annotations

import gc
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil

from sdbridge.bridge import Bridge
from sdbridge.config import Config
from sdbridge.engine.interface import EngineState
from sdbridge.engine.pipe import SPAWN
from sdbridge.errors import SdbridgeError
from sdbridge.meters import percentile
from sdbridge.testing import FakeReceiver, FakeSender, FakeTextures
from sdbridge.textures.shared_memory import FrameReader, FrameWriter

FPS = 60
Figures = Mapping[str, object]


def bridge_512(seconds: float = 10.0, **options: Any) -> Figures:
    """512x512 at 60 fps, shared memory in and out. ``seconds`` 60 makes the 3,600 frames of the target."""
    return _through(512, 512, seconds)


def bridge_1080(seconds: float = 10.0, **options: Any) -> Figures:
    """1920x1080 at 60 fps, shared memory in and out."""
    return _through(1920, 1080, seconds)


def bridge_memory(frames: int = 10_000, **options: Any) -> Figures:
    """Resident memory of bridge and engine after a fifth of ``frames`` and after all of them."""
    receiver = FakeReceiver("main", {"fps": 400.0, "width": 256, "height": 256})
    textures = FakeTextures({"main": receiver}, [FakeSender("out", {"keep": 4})])
    config = Config.model_validate(
        {
            "engine": {"kind": "passthrough", "width": 256, "height": 256},
            "input": {"main": {"name": "main"}},
        }
    )
    with Bridge(config, textures=textures, control=False) as bridge:
        bridge.start()
        marks = []
        for share in (0.2, 0.4, 0.6, 0.8, 1.0):
            _wait(lambda share=share: bridge.output.frames_made >= share * frames, 600.0, "frames")
            gc.collect()
            child = bridge.engine.client
            engine = psutil.Process(child.process_id).memory_info().rss if child is not None else 0
            marks.append((psutil.Process().memory_info().rss / 2**20, engine / 2**20))
        made = bridge.output.frames_made
    return {
        "frames": made,
        "bridge_mb_at_20_percent": marks[0][0],
        "bridge_mb_at_end": marks[-1][0],
        "bridge_growth_mb": marks[-1][0] - marks[0][0],
        "engine_growth_mb": marks[-1][1] - marks[0][1],
    }


_START = """
import json, sys, time
from sdbridge.bridge import Bridge
from sdbridge.config import Config
if __name__ == "__main__":
    loaded = time.monotonic()
    with Bridge(Config.model_validate(json.loads(sys.argv[1]))) as bridge:
        bridge.start()
        print(json.dumps([loaded, time.monotonic(), "torch" in sys.modules]), flush=True)
        while bridge.output.frames_made == 0 and time.monotonic() < loaded + 60:
            time.sleep(0.005)
        print(json.dumps(time.monotonic()), flush=True)
"""


def bridge_start(times: int = 5, **options: Any) -> Figures:
    """From the command to a bridge with page, OSC and output up, and to the first generated frame."""
    config = {
        "port": 0,
        "engine": {"kind": "passthrough", "width": 256, "height": 256},
        "input": {"main": {"backend": "test_pattern"}},
        "output": [{"backend": "mjpeg"}],
    }
    up, first, torch = [], [], False
    for _time in range(times):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _START, json.dumps(config)], capture_output=True, text=True, check=False
        )
        lines = done.stdout.splitlines()
        if len(lines) != 2:
            raise SdbridgeError("SDB-BENCH-FAULT", f"the bridge did not start: {done.stderr[-300:]}")
        _loaded, started, torch = json.loads(lines[0])
        up.append(started - began)
        first.append(json.loads(lines[1]) - began)
    return {
        "bridge_up_s": sorted(up)[len(up) // 2],
        "bridge_up_worst_s": max(up),
        "first_frame_s": sorted(first)[len(first) // 2],
        "torch_imported_by_bridge": torch,
    }


# --- through the bridge and back, seen from another process ---


def _through(width: int, height: int, seconds: float) -> Figures:
    mark = secrets.token_hex(4)
    config = Config.model_validate(
        {
            "name": f"out{mark}",
            "engine": {"kind": "passthrough", "width": width, "height": height},
            "input": {"main": {"backend": "shared_memory", "name": f"in{mark}"}},
            "output": [{"backend": "shared_memory", "name": f"out{mark}"}],
        }
    )
    frames = max(1, round(seconds * FPS))
    near, far = SPAWN.Pipe()
    peer = SPAWN.Process(
        target=_peer, args=(f"in{mark}", f"out{mark}", width, height, frames, far), daemon=True
    )
    with Bridge(config, control=False) as bridge:
        bridge.start()
        peer.start()
        far.close()
        _wait(lambda: bridge.engine.state is EngineState.STREAMING, 60.0, "the engine")
        near.send("go")
        if not near.poll(seconds * 3 + 60):
            raise SdbridgeError("SDB-BENCH-FAULT", f"no result after {seconds * 3 + 60:.0f} s")
        through, direct, sent = near.recv()
        status = bridge.status()
        peer.join(10)
    if not through or not direct:
        raise SdbridgeError("SDB-BENCH-FAULT", f"none of {sent} frames came through")
    return {
        "size": f"{width}x{height}",
        "frames": sent,
        "added_p50_ms": percentile(through, 50) - percentile(direct, 50),
        "through_p50_ms": percentile(through, 50),
        "through_p99_ms": percentile(through, 99),
        "direct_p50_ms": percentile(direct, 50),
        "inside_p50_ms": status.latency_ms.p50,
        "inside_p99_ms": status.latency_ms.p99,
        "lost": sent - len(through),
        "lost_percent": 100.0 * (sent - len(through)) / sent,
        "dropped_before_engine": status.dropped,
    }


def _peer(source: str, sink: str, width: int, height: int, frames: int, pipe: Connection) -> None:
    """Another program: writes stamped frames at 60 fps, reads first its own, then what comes back."""
    with FrameWriter(source, width, height) as writer:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
        pixels[0, :4] = 0
        writer.write(pixels)  # a frame to find us by
        pipe.recv()
        direct = _send_and_read(writer, pixels, source, 1, 2 * FPS)
        pipe.send((_send_and_read(writer, pixels, sink, 1 + 2 * FPS, frames), direct, frames))


def _send_and_read(
    writer: FrameWriter, pixels: np.ndarray, name: str, first: int, frames: int
) -> list[float]:
    """Latencies in ms, sorted, of the frames that came back under ``name``, numbered from ``first``."""
    latencies: dict[int, float] = {}
    over = threading.Event()

    def read() -> None:
        with FrameReader(name) as reader:
            while not over.is_set():
                frame = reader.read(0.1)
                if frame is None:
                    continue
                now = time.monotonic_ns()
                number, stamp = (int(word) for word in frame.pixels[0, :4].reshape(16).view(np.uint64))
                if first <= number < first + frames:
                    latencies.setdefault(number, (now - stamp) / 1e6)

    thread = threading.Thread(target=read)
    thread.start()
    words = pixels[0, :4].reshape(16).view(np.uint64)
    due = time.monotonic()
    for number in range(first - FPS, first + frames):  # a second to warm up that does not count
        words[0], words[1] = number if number >= first else 0, time.monotonic_ns()
        writer.write(pixels)
        # A source that was held up (by the machine, for more than a quarter of a frame) begins a new beat.
        # To catch up it would send two frames at once, of which a mailbox shows one.
        written = time.monotonic()
        due = (due if written - due < 0.25 / FPS else written) + 1 / FPS
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(0.5)
    over.set()
    thread.join()
    return sorted(latencies.values())


def _wait(reached: Any, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise SdbridgeError("SDB-BENCH-FAULT", f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.005)
