"""A source for first runs: a drawn landscape; its sun wanders, hills and water never stand still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdbridge.clock import Clock, SystemClock
from sdbridge.textures import stub
from sdbridge.textures.options import option, read_options
from sdbridge.textures.pace import Pace

_DAY_S = 24.0  # the sun's way over the sky and back


@dataclass(frozen=True)
class DemoSceneOptions:
    """Size and rate of the scene."""

    width: int = option(512, low=16, high=4096)
    height: int = option(512, low=16, high=4096)
    fps: float = option(30.0, low=0.1, high=240)


class Receiver(stub.Receiver):
    """Draws the scene when its time has come. Frames nobody asked for in time are left out."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.clock: Clock = SystemClock()
        self._scene: DemoScene | None = None
        self._pace = Pace(30.0, self.clock)

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "it is drawn here"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return (stub.Source("demo_scene", "a drawn landscape that moves"),)

    def open(self) -> None:
        chosen = read_options(DemoSceneOptions, self.options, "demo_scene")
        self._scene = DemoScene(chosen.width, chosen.height)
        self._pace = Pace(chosen.fps, self.clock)

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if self._scene is None:
            return None
        number = self._pace.wait(timeout_s)
        return None if number is None else self._scene.draw(number / self._pace.fps)

    @property
    def connected(self) -> bool:
        return self._scene is not None

    def describe(self) -> str:
        if self._scene is None:
            return "demo scene, closed"
        return f"demo scene {self._scene.width}x{self._scene.height} at {self._pace.fps:g} fps"

    def close(self) -> None:
        self._scene = None


class DemoScene:
    """The landscape in one size; the same second always looks the same."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._x = np.linspace(0, 1, width, dtype=np.float32)
        self._rows = np.arange(height, dtype=np.float32)[:, None]
        self._shore = round(height * 0.72)
        share = np.linspace(0, 1, self._shore, dtype=np.float32)[:, None]
        sky = (1 - share) * np.array([[52, 92, 168]], np.float32) + share * np.array(
            [[244, 186, 132]], np.float32
        )
        self._sky = np.full((height, width, 4), 255, np.uint8)
        self._sky[: self._shore, :, :3] = sky.astype(np.uint8)[:, None]
        radius = max(3, min(width, height) // 9)
        distance = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1])
        self._sun = distance <= radius

    def draw(self, seconds: float) -> np.ndarray:
        """The scene at a time: a new uint8 RGBA array ``[height, width, 4]``."""
        picture = self._sky.copy()
        self._draw_sun(picture, seconds)
        self._draw_hills(picture, seconds * 0.010, 0.50, 0.12, (92, 104, 128), 2.6)
        self._draw_hills(picture, seconds * 0.025 + 0.4, 0.62, 0.08, (58, 92, 66), 4.1)
        self._draw_water(picture, seconds)
        return picture

    def _draw_sun(self, picture: np.ndarray, seconds: float) -> None:
        turn = 2 * math.pi * seconds / _DAY_S
        side = self._sun.shape[0]
        left = round((self.width - side) * (0.5 - 0.42 * math.cos(turn)))
        top = round(self.height * (0.2 - 0.12 * abs(math.sin(turn))))
        left, top = max(0, left), max(0, top)
        under = picture[top : top + side, left : left + side].view(np.uint32)[..., 0]
        colour = np.array([255, 236, 170, 255], np.uint8).view(np.uint32)[0]
        np.copyto(under, colour, where=self._sun[: under.shape[0], : under.shape[1]])

    def _draw_hills(
        self,
        picture: np.ndarray,
        shift: float,
        line: float,
        swing: float,
        colour: tuple[int, int, int],
        waves: float,
    ) -> None:
        at = (self._x + shift) * 2 * math.pi
        edge = line - swing * (0.6 * np.sin(at * waves / 2) + 0.4 * np.sin(at * waves * 1.3 + 1.0))
        edge_rows = edge * self.height  # [W]
        top = max(0, int(edge_rows.min()))
        under = picture[top : self._shore].view(np.uint32)[..., 0]
        word = np.array([*colour, 255], np.uint8).view(np.uint32)[0]
        np.copyto(under, word, where=self._rows[top : self._shore] > edge_rows[None])

    def _draw_water(self, picture: np.ndarray, seconds: float) -> None:
        """The shore mirrored, each row shifted by a ripple and tinted blue."""
        rows = self.height - self._shore
        depth = np.arange(rows)
        mirrored = picture[np.maximum(0, self._shore - 1 - depth * 2)]
        ripple = (
            0.012 * self.width * np.sin(depth * 40.0 / max(1, rows) + seconds * 3.0) * (depth / max(1, rows))
        )
        for row, shift in enumerate(ripple.astype(int)):
            picture[self._shore + row] = np.roll(mirrored[row], int(shift), axis=0)
        water = picture[self._shore :, :, :3]
        water[...] = water // 2 + np.array([14, 34, 62], np.uint8)
