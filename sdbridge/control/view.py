"""What the control surfaces may ask of the bridge, so that neither side knows the other's inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sdbridge.clock import Clock
from sdbridge.config import Config
from sdbridge.frame import Frame, OutputRole, Role
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import ParameterStore
from sdbridge.status import Status


class BridgeView(Protocol):
    """The bridge as seen from ``control/``. Every member may be used from any thread.

    ``input_frame`` and ``output_frame`` ask the preview relay: at most ten fresh copies a second,
    made only while someone asks. ``sources`` may take a second. ``choose_input`` and
    ``choose_output`` swap a texture while the show runs, or add one; ``drop_input`` and ``drop_output``
    end one. A bad choice raises SdbridgeError and leaves the old one running.
    """

    store: ParameterStore
    config: Config
    clock: Clock
    show: Show

    def status(self) -> Status: ...
    def input_frame(self, role: Role = "main") -> Frame | None: ...
    def output_frame(self, role: Role = "generated") -> Frame | None: ...
    def backends(self, direction: str) -> Sequence[tuple[str, bool, str]]:
        """``(name, available, reason)`` of each receiver (``"in"``) or sender (``"out"``) backend."""

    def sources(self, backend: str) -> Sequence[tuple[str, str]]:
        """``(name, detail)`` of what a receiver backend can see now."""

    def choose_input(self, role: Role, backend: str, name: str) -> None: ...
    def drop_input(self, role: Role) -> None: ...
    def choose_output(self, index: int, backend: str, name: str, role: OutputRole | None = None) -> None: ...
    def drop_output(self, index: int) -> None: ...
    def mounts(self) -> Mapping[str, object]:
        """ASGI apps that senders offer, by path, such as ``/output.mjpeg``."""

    def log_lines(self, count: int) -> Sequence[str]:
        """The newest lines of the log, oldest first, for "copy diagnostics" and the page."""
