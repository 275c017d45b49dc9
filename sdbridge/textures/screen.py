"""The desktop as a source: a monitor or a part of it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mss
import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.errors import SdbridgeError
from sdbridge.textures import stub
from sdbridge.textures.geometry import swap_red_and_blue
from sdbridge.textures.options import option, read_options
from sdbridge.textures.pace import Pace

log = logging.getLogger(__name__)

_RETRY_S = 1.0


@dataclass(frozen=True)
class ScreenOptions:
    """``monitor`` 0 is all of them together. A width or height of 0 means up to the edge."""

    monitor: int = option(1, low=0, high=32)
    left: int = option(0, low=0, high=32767)
    top: int = option(0, low=0, high=32767)
    width: int = option(0, low=0, high=16384)
    height: int = option(0, low=0, high=16384)
    fps: float = option(30.0, low=0.1, high=240)


class Receiver(stub.Receiver):
    """``name`` may be a monitor's number and then wins over the option. A lost display is tried again."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._chosen = ScreenOptions()
        self._pace = Pace(30.0, self.clock)
        self._screen: Any = None
        self._area: dict[str, int] = {}
        self._why = "closed"
        self._open = False
        self._tried_ns: int | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
            return False, "there is no X display (DISPLAY is not set; Wayland alone cannot be captured)"
        return True, "mss captures the desktop"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        if not cls.available()[0]:
            return ()
        try:
            with mss.MSS() as screen:
                return tuple(
                    stub.Source(
                        str(number), f"{area['width']}x{area['height']} at {area['left']},{area['top']}"
                    )
                    for number, area in enumerate(screen.monitors)
                    if number > 0
                )
        except (mss.ScreenShotError, OSError) as error:
            log.debug("screen: %s", error)
            return ()

    def open(self) -> None:
        self._chosen = read_options(ScreenOptions, self.options, "screen")
        if self.name and not self.name.isdigit():
            raise SdbridgeError(
                "SDB-TEXTURE-OPTION", f"a screen's name is the number of a monitor, not {self.name!r}"
            )
        self._pace = Pace(self._chosen.fps, self.clock)
        self._open = True

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if not self._open:
            return None
        if self._pace.wait(timeout_s) is None:
            return None
        if self._screen is None and not self._attach():
            return None
        try:
            shot = self._screen.grab(self._area)
        except (mss.ScreenShotError, OSError) as error:
            self._why = str(error)
            log.warning("screen: lost: %s", error)
            self._detach()
            return None
        pixels = swap_red_and_blue(np.frombuffer(shot.raw, np.uint8).reshape(shot.height, shot.width, 4))
        pixels[..., 3] = 255
        return pixels

    @property
    def connected(self) -> bool:
        return self._screen is not None

    def describe(self) -> str:
        if self._screen is None:
            return f"screen, waiting: {self._why}"
        area = self._area
        return f"screen {area['width']}x{area['height']} at {area['left']},{area['top']}"

    def close(self) -> None:
        self._open = False
        self._detach()

    def _attach(self) -> bool:
        now = self.clock.now_ns()
        if self._tried_ns is not None and now - self._tried_ns < _RETRY_S * 1e9:
            return False
        self._tried_ns = now
        number = int(self.name) if self.name else self._chosen.monitor
        try:
            screen = mss.MSS()
            if number >= len(screen.monitors):
                self._why = f"there is no monitor {number}, only 1 to {len(screen.monitors) - 1}"
                screen.close()
                return False
            self._area = _area_in(screen.monitors[number], self._chosen)
        except (mss.ScreenShotError, OSError) as error:
            self._why = str(error)
            return False
        self._screen = screen
        return True

    def _detach(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            screen.close()


def _area_in(monitor: Mapping[str, int], chosen: ScreenOptions) -> dict[str, int]:
    """The wanted part, cut at the monitor's edges."""
    left, top = min(chosen.left, monitor["width"] - 1), min(chosen.top, monitor["height"] - 1)
    widest, tallest = monitor["width"] - left, monitor["height"] - top
    return {
        "left": monitor["left"] + left,
        "top": monitor["top"] + top,
        "width": min(chosen.width or widest, widest),
        "height": min(chosen.height or tallest, tallest),
    }
