"""An input that nobody named while nothing could be received: the test pattern until a source shows up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np

from sdbridge.errors import SdbridgeError
from sdbridge.textures import auto, registry, stub, test_pattern

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0


class Receiver(stub.Receiver):
    """Looks for sources beside, every two seconds. The first one found is kept, even when it ends."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.choose: Callable[[str], tuple[str, str]] = auto.choose_receiver
        self.class_of: Callable[[str], type[stub.Receiver]] = registry.receiver_class
        self._inner: stub.Receiver = test_pattern.Receiver("", {})
        self._found: tuple[str, str] | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "the test pattern is drawn here"

    @classmethod
    def list_sources(cls) -> tuple[stub.Source, ...]:
        return ()

    def open(self) -> None:
        self._ended.clear()
        self._inner = test_pattern.Receiver("", {})
        self._inner.open()
        self._thread = threading.Thread(target=self._look, name="look for a source", daemon=True)
        self._thread.start()

    def receive(self, timeout_s: float) -> np.ndarray | None:
        if self._found is not None:
            self._take(*self._found)
        return self._inner.receive(timeout_s)

    @property
    def connected(self) -> bool:
        return self._inner.connected

    def describe(self) -> str:
        return self._inner.describe()

    def close(self) -> None:
        self._ended.set()
        self._inner.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(3.0)

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            if self._found is None:
                backend, why = self.choose("")
                if backend != "test_pattern":
                    self._found = (backend, why)

    def _take(self, backend: str, why: str) -> None:
        """In the thread that receives: contexts of OpenGL belong to it."""
        taken = self.class_of(backend)("", self.options)
        try:
            taken.open()
        except SdbridgeError as error:
            log.warning("input auto cannot take %s: %s", backend, error)
            taken.close()
            self._found = None
            return
        log.info("input auto leaves the test pattern for %s: %s", backend, why)
        self._ended.set()
        self._found = None
        self._inner.close()
        self._inner = taken
