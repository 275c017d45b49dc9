"""The operator's fallback picture: read from a file beside the show, fitted once per output size."""

from __future__ import annotations

import threading

import numpy as np

from sdbridge.config import TextureConfig
from sdbridge.errors import SdbridgeError
from sdbridge.textures.geometry import fit_frame
from sdbridge.textures.threads import Note

_COVER = TextureConfig(fit="fill")


class FallbackImage:
    """``choose`` may be called from any thread and never waits for the disk; ``at`` is the output loop's."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._path = ""
        self._pixels: np.ndarray | None = None
        self._fitted: np.ndarray | None = None

    def choose(self, path: str) -> None:
        """Show the picture of ``path`` from when it was read; empty shows none. A bad file keeps the old."""
        self._path = path
        if path:
            threading.Thread(target=self._read, args=(path,), name="fallback image", daemon=True).start()
        else:
            self._pixels = self._fitted = None

    def at(self, width: int, height: int) -> np.ndarray | None:
        """The picture covering ``width`` x ``height``, or None if there is none."""
        if self._pixels is None:
            return None
        if self._fitted is None or self._fitted.shape[:2] != (height, width):
            self._fitted = fit_frame(self._pixels, width, height, _COVER)
        return self._fitted

    def _read(self, path: str) -> None:
        from sdbridge.textures.image_file import Receiver  # brings a library that no other start waits for

        with Receiver(path, {}) as reader:
            pixels = reader.receive(1.0)
            why = reader.describe()
        if self._path != path:
            return  # another one was chosen meanwhile
        if pixels is None:
            self._note(str(SdbridgeError("SDB-HOLD-IMAGE", f"hold/image cannot be shown: {why}")))
            return
        self._pixels, self._fitted = pixels, None
