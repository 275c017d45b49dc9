"""An engine without torch that says its pictures are on a GPU, and the sender it shows them with."""

import SpoutGL

from sdbridge.engine import gpu_output
from sdbridge.engine.interface import WarmUpReport
from sdbridge.testing import FakeEngine


class Engine(FakeEngine):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.gpu_output = None
        gpu_output.SHOWS["spout"] = "gpu_engine:DeskShow"

    def warm_up(self, width, height) -> WarmUpReport:
        return WarmUpReport(0.0, 0.0, "cuda:0", "uint8", "eager", "a fake of a GPU")

    def tick(self, chunk):
        made = super().tick(chunk)
        if made is not None and self.gpu_output is not None:
            self.gpu_output(made.frames[-1]["generated"].pixels)
        return made


class DeskShow:
    def __init__(self, options) -> None:
        self._native = SpoutGL.SpoutSender()

    def open(self) -> None:
        self._native.createOpenGL()

    def take(self, name) -> bool:
        if name in SpoutGL.SpoutReceiver().getSenderList():
            return False
        self._native.setSenderName(name)
        return True

    def keep(self, tensor):
        return tensor.copy()

    def show(self, kept) -> None:
        height, width = kept.shape[:2]
        self._native.sendImage(kept.reshape(-1), width, height, 0x1908, False, 0)

    def release(self) -> None:
        self._native.releaseSender()

    def close(self) -> None:
        self._native.closeOpenGL()
