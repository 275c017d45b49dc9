"""SdBridgeMonitor: input and output beside each other, the numbers below, red when something is wrong.

It only looks: nothing of it lies on the way of the program's picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .ext_base import BaseExt, never_raises
from .link import monotonic
from .network import set_par
from .pages import PageSpec, Spec, find_par

if TYPE_CHECKING:
    import td

MONITOR_PAGES: tuple[PageSpec, ...] = (
    (
        "Monitor",
        (
            Spec("Bridge", "COMP", "SdBridge", "The SdBridge component to watch.", ""),
            Spec("Status", "Str", "Status", "What is going on.", "", read_only=True),
            Spec("Showtext", "Toggle", "Show Text", "The numbers under the pictures.", True),
            Spec(
                "Alarm",
                "Toggle",
                "Alarm",
                "On while the daemon is away or the output is not live.",
                read_only=True,
            ),
        ),
    ),
)
_UPDATE_S = 0.25
_CALM, _RED = (0.05, 0.05, 0.05), (0.6, 0.0, 0.0)


class MonitorExt(BaseExt):
    """The extension of SdBridgeMonitor."""

    def __init__(self, comp: td.COMP, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(comp, clock)
        self._next = 0.0

    @never_raises
    def Frame(self) -> None:
        now = self.clock()
        if now < self._next:
            return
        self._next = now + _UPDATE_S
        par = find_par(self.comp, "Bridge")
        bridge = par.eval() if par is not None else None
        if not bridge:
            self._write("name the SdBridge component in the parameter SdBridge", True)
            return
        status, picture = _said(bridge, "Status"), _said(bridge, "Picture")
        numbers = ", ".join(
            f"{label} {_said(bridge, name)}{unit}"
            for label, name, unit in (
                ("fps", "Daemonfps", ""),
                ("latency", "Daemonlatency", " ms"),
                ("queue", "Daemonqueue", ""),
                ("VRAM", "Daemonvram", " MB"),
                ("output", "Daemonoutput", ""),
                ("picture", "Picture", ""),
            )
            if _said(bridge, name) != ""
        )
        error = _said(bridge, "Daemonerror")
        wrong = not status.startswith("online") or picture != "live" or bool(error)
        self._write("\n".join(line for line in (status, numbers, error) if line), wrong)

    def _write(self, text: str, wrong: bool) -> None:
        words: Any = self.comp.op("words")
        shown = text if self.value("Showtext", True) else ""
        set_par(words, "text", shown)
        for name, value in zip(("bgcolorr", "bgcolorg", "bgcolorb"), _RED if wrong else _CALM, strict=True):
            set_par(words, name, value)
        self.show("Alarm", wrong)
        self.say(text.splitlines()[0])


def _said(bridge: Any, name: str) -> str:
    par = find_par(bridge, name)
    if par is None:
        return ""
    value = par.eval()
    return f"{value:.1f}" if isinstance(value, float) else str(value)
