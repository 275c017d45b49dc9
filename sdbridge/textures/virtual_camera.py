"""A sender that other programs see as a camera, through pyvirtualcam (GPL-2.0, so asked for by an extra)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import av
import numpy as np

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.geometry import fit_frame, scaler
from sdbridge.textures.options import option, read_options


@dataclass(frozen=True)
class VirtualCameraOptions:
    """A camera has one size for life. ``device`` is /dev/videoN, the camera's name, or empty for any."""

    width: int = option(1280, low=16, high=3840)
    height: int = option(720, low=16, high=2160)
    fps: float = option(30.0, low=1, high=120)
    device: str = option("")
    fit: str = option("fit", choices=("fit", "fill", "stretch", "native"))


@dataclass(frozen=True)
class _Shape:
    fit: Any
    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotate: int = 0
    swap_red_blue: bool = False
    alpha: Literal["keep"] = "keep"


class Sender(stub.Sender):
    """OBS's camera on Windows and macOS, v4l2loopback on Linux; each must have been installed once."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self._chosen = VirtualCameraOptions()
        self._camera: Any = None
        self._device = ""

    @classmethod
    def available(cls) -> tuple[bool, str]:
        if importlib.util.find_spec("pyvirtualcam") is None:
            return False, 'pyvirtualcam is not installed; pip install "sdbridge[virtual-camera]" (GPL-2.0)'
        return True, "pyvirtualcam is installed; it needs OBS, or v4l2loopback on Linux"

    def open(self) -> None:
        self._chosen = read_options(VirtualCameraOptions, self.options, "virtual_camera")
        able, why = self.available()
        if not able:
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"there is no virtual camera: {why}")
        library = importlib.import_module("pyvirtualcam")
        try:
            self._camera = library.Camera(
                self._chosen.width,
                self._chosen.height,
                self._chosen.fps,
                fmt=library.PixelFormat.RGB,
                device=self._chosen.device or None,
            )
        except RuntimeError as error:
            what = " ".join(str(error).split())
            raise SdbridgeError("SDB-TEXTURE-UNAVAILABLE", f"no virtual camera answers: {what}") from error
        self._device = self._camera.device

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        if self._camera is None:
            return
        shaped = fit_frame(frame.pixels, self._chosen.width, self._chosen.height, _Shape(self._chosen.fit))
        picture = av.VideoFrame.from_numpy_buffer(shaped, "rgba")
        rgb = np.ascontiguousarray(scaler().reformat(picture, format="rgb24", threads=1).to_ndarray())
        self._camera.send(rgb)

    def describe(self) -> str:
        if self._camera is None:
            return "virtual camera, closed"
        return f"virtual camera {self._device}, {self._chosen.width}x{self._chosen.height}"

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()
