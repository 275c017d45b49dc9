"""Pictures between numpy and OpenGL textures through pixel buffers, memory that the GPU itself accesses.

Two buffers take turns, so that one is filled while the GPU still works with the other. A download is
waited for, though: a buffer that is only read when the next picture comes is a picture late, and the
last picture of a source that stands still would never come. In the thread of the context, like all
of OpenGL. Uses moderngl, which is optional; without it ``usable`` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

GL_TEXTURE_2D = 0x0DE1
_TURNS = 2


def usable() -> tuple[Any, str]:
    """moderngl's view of the context that is current here, after a test of it, or None; and why not."""
    if importlib.util.find_spec("moderngl") is None:
        return None, "moderngl is not installed"
    moderngl = importlib.import_module("moderngl")
    try:
        context = moderngl.create_context()
        wanted = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)
        upload, download = Upload(context), Download(context)
        upload.write(wanted)
        download.make_room(5, 3)
        context.copy_framebuffer(
            context.framebuffer([download.texture]), context.framebuffer([upload.texture])
        )
        arrived = bool((download.read() == wanted).all())
        upload.close()
        download.close()
    except Exception as error:  # noqa: BLE001 # edge: moderngl raises the bare class, drivers anything
        return None, f"this OpenGL does not suit: {error}"
    return (context, "") if arrived else (None, "this OpenGL gives back other pixels than it was given")


class Upload:
    """A texture that shows the array written last."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._buffers: list[Any] = []
        self._turn = 0
        self.texture: Any = None

    @property
    def name(self) -> int:
        """OpenGL's name of the texture; another one after a change of size."""
        return int(self.texture.glo)

    def write(self, pixels: np.ndarray) -> None:
        """Take uint8 RGBA ``[H, W, 4]``; the first row becomes the texture's first."""
        height, width = pixels.shape[:2]
        if self.texture is None or self.texture.size != (width, height):
            self.close()
            self.texture, self._buffers = _make(self._context, width, height)
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % _TURNS
        buffer.orphan()  # new memory, should the GPU still read the old
        buffer.write(np.ascontiguousarray(pixels))
        self.texture.write(buffer)

    def close(self) -> None:
        _release(self.texture, self._buffers)
        self.texture, self._buffers = None, []


class Download:
    """A texture that another program's picture is put into, and read from at once."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._buffers: list[Any] = []
        self._turn = 0
        self.texture: Any = None

    @property
    def name(self) -> int:
        """OpenGL's name of the texture; 0 before there is room."""
        return int(self.texture.glo) if self.texture is not None else 0

    def make_room(self, width: int, height: int) -> None:
        if self.texture is None or self.texture.size != (width, height):
            self.close()
            self.texture, self._buffers = _make(self._context, width, height)

    def read(self) -> np.ndarray:
        """The texture as uint8 RGBA ``[H, W, 4]`` of our own, its first row first."""
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % _TURNS
        width, height = self.texture.size
        pixels = np.empty((height, width, 4), np.uint8)
        self.texture.read_into(buffer)
        buffer.read_into(pixels)
        return pixels

    def close(self) -> None:
        _release(self.texture, self._buffers)
        self.texture, self._buffers = None, []


def _make(context: Any, width: int, height: int) -> tuple[Any, list[Any]]:
    texture = context.texture((width, height), 4)
    return texture, [context.buffer(reserve=width * height * 4, dynamic=True) for _ in range(_TURNS)]


def _release(texture: Any, buffers: list[Any]) -> None:
    for held in (texture, *buffers):
        if held is not None:
            held.release()
