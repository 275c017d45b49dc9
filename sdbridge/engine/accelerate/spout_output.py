"""Spout's sender in the engine's process: tensor to OpenGL texture to Spout, never passing the CPU."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from sdbridge.engine.accelerate.gpu_texture import GL_TEXTURE_2D, CudaRuntime, TensorTexture
from sdbridge.engine.accelerate.streams import own_stream
from sdbridge.engine.gpu_output import GpuUnusableError
from sdbridge.errors import SdbridgeError

#: Looks at our own first picture before it is given up.
_LOOKS, _LOOK_EVERY_S = 20, 0.01
_SLOW_CALL_S, _SLOW_CALLS = 0.02, 5


class SpoutShow:
    """Keeps ``engine/gpu_output.py: Show``. Options are those of ``textures/spout.py``'s sender."""

    def __init__(
        self,
        options: Mapping[str, Any],
        platform: str = sys.platform,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bottom_up = bool(options.get("bottom_up", False))
        self._cpu_share = bool(options.get("cpu_share", False))
        self._platform = platform
        self._now = now
        self._slow = 0  # calls in a row that took long
        self._library: Any = None
        self._native: Any = None
        self._gl: Any = None  # moderngl's view of the context that Spout made
        self._runtime: CudaRuntime | None = None
        self._texture: TensorTexture | None = None
        self._stream: Any = None
        self._name = ""
        self._proven = False  # whether what Spout shows was seen to be what we sent

    def open(self) -> None:
        if self._platform != "win32":
            raise _unable(f"Spout exists on Windows only, this is {self._platform}")
        if self._cpu_share:
            raise _unable("the option cpu_share keeps the pictures on the CPU")
        self._runtime = CudaRuntime()
        try:
            self._library = importlib.import_module("SpoutGL")
            moderngl = importlib.import_module("moderngl")
        except (ImportError, OSError) as error:
            raise _unable(f'{error}; pip install "sdbridge[gpu-texture]"') from error
        native = self._library.SpoutSender()
        if not native.createOpenGL():
            raise _unable("Spout cannot get an OpenGL context in the engine's process")
        self._native = native
        try:
            self._gl = moderngl.create_context()
        except Exception as error:  # edge: moderngl raises the bare class when a context does not suit it
            raise _unable(f"moderngl does not take Spout's context: {error}") from error
        # A texture of one pixel proves that CUDA and OpenGL sit on the same GPU.
        with TensorTexture(1, 1, self._runtime, self._gl):
            pass

    def take(self, name: str) -> bool:
        if name in self._library.SpoutReceiver().getSenderList():
            return False  # the bridge's sender is on its way out; Spout would call us name_1
        self._native.setSenderName(name)
        self._name = name
        return True

    def keep(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        # A copy, since the engine may write its own anew while we still read; in rows, as OpenGL wants it.
        copy = tensor.clone(memory_format=torch.contiguous_format)
        ready = torch.cuda.Event() if copy.is_cuda else None
        if ready is not None:
            ready.record(torch.cuda.current_stream(copy.device))
        return copy, ready

    def show(self, kept: tuple[torch.Tensor, Any]) -> None:
        tensor, ready = kept
        if ready is None:
            self._send(tensor)
            return
        # A stream of our own: on the default one we would wait for what the engine queued since.
        self._stream = self._stream or own_stream(tensor.device, priority=-1)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            tensor.record_stream(self._stream)
            self._send(tensor)

    def _send(self, tensor: torch.Tensor) -> None:
        height, width = tensor.shape[:2]
        texture = self._texture_of(width, height)
        texture.write(tensor)
        self._share(texture)
        if not self._proven:
            self._prove(texture)
        texture.prepare()

    def _share(self, texture: TensorTexture) -> None:
        width, height = texture.width, texture.height
        began = self._now()
        sent = self._native.sendTexture(texture.name, GL_TEXTURE_2D, width, height, self._bottom_up, 0)
        # The call keeps all of Python waiting, so the engine too, while another program has the texture.
        self._slow = self._slow + 1 if self._now() - began > _SLOW_CALL_S else 0
        if self._slow >= _SLOW_CALLS:
            raise GpuUnusableError("SDB-ENGINE-TEXTURE", "another program makes the engine wait")
        if not sent:
            raise SdbridgeError("SDB-ENGINE-TEXTURE", f"Spout did not take a texture of {width}x{height}")

    def _prove(self, texture: TensorTexture) -> None:
        """Receive the first picture ourselves: a driver that shows something else is left to the bridge.

        Raises GpuUnusableError, so that this is not tried again picture by picture.
        """
        seen = self._gl.texture((texture.width, texture.height), 4)
        receiver = self._library.SpoutReceiver()
        receiver.setReceiverName(self._name)
        wanted = texture.read()
        try:
            for _look in range(_LOOKS):
                received = receiver.receiveTexture(seen.glo, GL_TEXTURE_2D, self._bottom_up, 0)
                if received and not receiver.isUpdated():  # the first answer only tells of the size
                    shown = np.frombuffer(seen.read(), np.uint8).reshape(wanted.shape)
                    if np.abs(shown.astype(int) - wanted).max() <= 1:
                        self._proven = True
                        return
                time.sleep(_LOOK_EVERY_S)
                self._share(texture)
        finally:
            receiver.releaseReceiver()
            seen.release()
        raise GpuUnusableError("SDB-ENGINE-TEXTURE", "what Spout shows is not the picture that was sent")

    def release(self) -> None:
        self._native.releaseSender()

    def close(self) -> None:
        texture, self._texture = self._texture, None
        native, self._native = self._native, None
        if texture is not None:
            texture.close()
        if native is not None:
            native.releaseSender()
            native.closeOpenGL()

    def _texture_of(self, width: int, height: int) -> TensorTexture:
        texture = self._texture
        if texture is None or (texture.width, texture.height) != (width, height):
            if texture is not None:
                texture.close()
            self._texture = None
            texture = TensorTexture(width, height, self._runtime, self._gl)
            texture.open()
            self._texture = texture
        return texture


def _unable(why: str) -> SdbridgeError:
    return SdbridgeError("SDB-ENGINE-TEXTURE", why)
