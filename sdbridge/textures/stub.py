"""The contract of every texture backend, as the two smallest classes that keep it.

A backend is a module named in ``registry.py`` with a ``Receiver`` or a ``Sender`` or both, having
exactly these methods and arguments; a test holds each backend's syntax tree against this file.
All calls after the constructor come from one thread, which the bridge owns (GL contexts and
native handles stay there). Constructors only keep their arguments: work starts in ``open``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame

Option = bool | int | float | str


@dataclass(frozen=True)
class Source:
    """Something that can be received: the exact name to configure, and where it is, for people."""

    name: str
    detail: str = ""


class Receiver:
    """Gives frames of one source. A source that is absent or ends is normal: ``receive`` gives None."""

    def __init__(self, name: str, options: Mapping[str, Option]) -> None:
        self.name = name
        self.options = options

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """Whether this machine can run the backend, and the reason in one sentence. Never raises."""
        return True, "the stub runs everywhere"

    @classmethod
    def list_sources(cls) -> tuple[Source, ...]:
        """The sources that can be seen now. May take up to a second; never raises."""
        return ()

    def open(self) -> None:
        """Take hold of what is needed. Raises SdbridgeError SDB-TEXTURE-... if that can never work."""

    def receive(self, timeout_s: float) -> np.ndarray | None:
        """The newest frame, uint8 RGBA ``[H, W, 4]`` top row first, owned by the caller.

        Waits up to ``timeout_s`` for one; None if none came. A source that went away is looked for
        again by itself.
        """
        return None

    def lend(self, timeout_s: float) -> Frame | None:
        """``receive`` for the bridge, which numbers and stamps the frame itself.

        A backend whose frames lie in memory that others write too may show them there, with a loan
        (``sdbridge/frame.py``); the others leave this as it is.
        """
        pixels = self.receive(timeout_s)
        return None if pixels is None else Frame(pixels, 0, 0)

    @property
    def connected(self) -> bool:
        """Whether a source is delivering now."""
        return False

    def describe(self) -> str:
        """One line for status and log: the source, its size and rate, or what is being waited for."""
        return f"stub {self.name}"

    def close(self) -> None:
        """Let go of everything; may be called twice."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sender:
    """Offers frames under one name, the same for the whole show."""

    #: Whether ``send`` takes frames that are lent: read within the call, thrown away if the loan broke.
    takes_loans = False
    #: What ended this sender for good (a recording whose disk is full). It stays open and sends nothing.
    fault: SdbridgeError | None = None

    def __init__(self, name: str, options: Mapping[str, Option]) -> None:
        self.name = name
        self.options = options

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """Whether this machine can run the backend, and the reason in one sentence. Never raises."""
        return True, "the stub runs everywhere"

    def open(self) -> None:
        """Appear to others under ``name``. Raises SdbridgeError SDB-TEXTURE-... if that can never work."""

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        """Offer a frame. Sizes may change from frame to frame. ``about`` is for per-frame metadata.

        Must return within a frame time; a receiver that is slow or gone is not waited for.
        """

    @property
    def mounts(self) -> Mapping[str, object]:
        """ASGI apps to serve on the bridge's own port, by path (MJPEG, WebRTC); most have none."""
        return {}

    @property
    def receivers(self) -> int:
        """How many are connected; -1 where the transport cannot tell."""
        return -1

    def describe(self) -> str:
        """One line for status and log: the exact name to type elsewhere, and the size."""
        return f"stub {self.name}"

    def close(self) -> None:
        """Disappear; may be called twice."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
