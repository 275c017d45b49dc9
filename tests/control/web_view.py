"""A bridge without an engine for the page's tests: a real store, pictures that move when asked."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from dataclasses import replace

import numpy as np

from sdbridge.clock import SystemClock
from sdbridge.config import Config
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import ParameterStore
from sdbridge.status import LatencyMs, SourceStatus, Status


class WebView:
    """Keeps BridgeView. ``strength`` decides the output's brightness, so that a test can see a change."""

    def __init__(self, size: int = 256, **config: object) -> None:
        self.config = Config.model_validate({"port": 0, **config})
        self.store = ParameterStore()
        self.clock = SystemClock()
        self.size = size
        self.frames = 0
        self.lines = ["10:00:00 INFO  page http://127.0.0.1:9000"]
        self.mounted: dict[str, object] = {}
        self.chosen: list[tuple[object, ...]] = []
        self._folder = tempfile.mkdtemp(prefix="sdbridge-test-")
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        self.show = Show(self.store, self._folder, self.clock, self.config.cues)
        self.now = Status()
        self.delay_s = 0.0
        self.more_inputs: tuple[str, ...] = ()
        self.more_outputs: tuple[str, ...] = ()
        self.source_line, self.source_there = "test pattern 256x256", True

    def status(self) -> Status:
        values, revision = self.store.snapshot()
        main = SourceStatus(
            "main", "test_pattern", "", self.source_line, self.source_there, self.size, self.size, 30.0
        )
        out = SourceStatus(
            "generated", "ndi", self.config.name, "NDI sender", True, self.size, self.size, 24.0
        )
        return replace(
            self.now,
            state="streaming",
            output="black" if values["output.black"] else "frozen" if values["output.freeze"] else "live",
            frames_in=self.frames,
            frames_out=self.frames,
            fps=24.0,
            fps_new=11.0,
            fps_in=30.0,
            latency_ms=LatencyMs(41.2, 58.4),
            revision=revision,
            applied_revision=revision,
            engine_kind="image",
            engine_line="embedded model on CPU, eager",
            device="cpu",
            inputs=(main, *(replace(main, role=role) for role in self.more_inputs)),
            outputs=(out, *(replace(out, role=role) for role in self.more_outputs)),
            version="0.1.0",
            schema=self.store.table.schema_hash(),
        )

    def _picture(self, shift: float, tint: tuple[float, float, float]) -> Frame:
        self.frames += 1
        time.sleep(self.delay_s)
        t = time.monotonic()
        y, x = np.mgrid[0 : self.size, 0 : self.size].astype(np.float32) / self.size
        wave = 0.5 + 0.5 * np.sin(9 * x + 4 * np.sin(5 * y + t) + shift)
        light = float(self.store.get("strength")) if shift else 0.7
        pixels = np.empty((self.size, self.size, 4), np.uint8)
        for channel, share in enumerate(tint):
            pixels[..., channel] = (255 * light * np.clip(wave * share + 0.2 * y, 0, 1)).astype(np.uint8)
        pixels[..., 3] = 255
        return Frame(pixels, self.frames, time.monotonic_ns(), self.store.revision)

    def input_frame(self, role: str = "main") -> Frame | None:
        return self._picture(0.0, (0.7, 0.75, 0.8)) if role == "main" else None

    def output_frame(self, role: str = "generated") -> Frame | None:
        if role == "control" and self.store.get("control_output"):
            return self._picture(0.0, (1.0, 1.0, 1.0))
        return self._picture(2.0, (1.0, 0.55, 0.3)) if role == "generated" else None

    def backends(self, direction: str) -> list[tuple[str, bool, str]]:
        return [
            ("ndi", True, "libndi 6.3.2"),
            ("spout", False, "Spout needs Windows"),
            ("test_pattern", True, "runs everywhere"),
        ]

    def sources(self, backend: str) -> list[tuple[str, str]]:
        return [("STAGE (camera 1)", "192.168.1.20"), ("STAGE (camera 2)", "")] if backend == "ndi" else []

    def choose_input(self, role: str, backend: str, name: str) -> None:
        if backend not in ("ndi", "test_pattern"):
            raise SdbridgeError("SDB-TEXTURE-UNKNOWN", f"{backend} cannot run here")
        self.chosen.append((role, backend, name))

    def drop_input(self, role: str) -> None:
        if role == "main":
            raise SdbridgeError("SDB-TEXTURE-UNKNOWN", "the main input cannot be switched off")
        self.chosen.append(("off", role))

    def choose_output(self, index: int, backend: str, name: str, role: str | None = None) -> None:
        self.chosen.append((index, backend, name, role))

    def drop_output(self, index: int) -> None:
        self.chosen.append(("off", index))

    def mounts(self) -> dict[str, object]:
        return self.mounted

    def log_lines(self, count: int) -> list[str]:
        return self.lines[-count:]
