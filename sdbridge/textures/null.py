"""A sender that shows nobody anything: for measuring, and for runs watched on the page only."""

from __future__ import annotations

from collections.abc import Mapping

from sdbridge.frame import Frame
from sdbridge.textures import stub
from sdbridge.textures.options import NoOptions, read_options


class Sender(stub.Sender):
    """Counts frames and keeps none."""

    def __init__(self, name: str, options: Mapping[str, stub.Option]) -> None:
        super().__init__(name, options)
        self.sent = 0

    @classmethod
    def available(cls) -> tuple[bool, str]:
        return True, "it needs nothing"

    def open(self) -> None:
        read_options(NoOptions, self.options, "null")

    def send(self, frame: Frame, about: Mapping[str, str]) -> None:
        self.sent += 1

    @property
    def receivers(self) -> int:
        return 0

    def describe(self) -> str:
        return f"null {self.name}, {self.sent} frames counted"

    def close(self) -> None:
        """Nothing is held."""
