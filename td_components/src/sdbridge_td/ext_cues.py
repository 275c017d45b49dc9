"""SdBridgeCues: a cue list, presets and a morph fader for the daemon; it sends OSC and shows no picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .ext_base import BaseExt, never_raises
from .link import monotonic
from .mapping import STATUS_PREFIX
from .network import CUE_COLUMNS
from .osc_codec import Argument
from .pages import PageSpec, Spec

if TYPE_CHECKING:
    import td

CUES_PAGES: tuple[PageSpec, ...] = (
    (
        "Cues",
        (
            Spec("Active", "Toggle", "Active", "Off: nothing is sent.", True),
            Spec("Status", "Str", "Status", "What is going on.", "", read_only=True),
            Spec(
                "Source",
                "Menu",
                "Cue List",
                "daemon: the cue list of the daemon's config. table: the Table DAT cues in this component; "
                "its columns past follow are the daemon's parameters by name: strength, prompt.1.text.",
                "table",
                menu=("daemon", "table"),
                section=True,
            ),
            Spec("Go", "Pulse", "Go", "Go to the cue named below; without a name, to the next."),
            Spec("Next", "Pulse", "Next", "Go to the next cue."),
            Spec("Previous", "Pulse", "Previous", "Go back one cue."),
            Spec("Stop", "Pulse", "Stop", "Stop every fade where it is; no cue follows."),
            Spec("Cue", "Str", "Cue", "Name or number of the cue that Go goes to.", ""),
            Spec(
                "Autofollow",
                "Toggle",
                "Auto Follow",
                "Cues of the table follow after their follow time.",
                True,
            ),
            Spec("Current", "Str", "Current Cue", "The cue that stands.", "", read_only=True),
            Spec("Preset", "Str", "Preset", "Name or number of a preset.", "", section=True),
            Spec("Fade", "Float", "Fade (s)", "Seconds that a recall takes.", 1.0, 0.0, 60.0),
            Spec("Recall", "Pulse", "Recall", "Go to the preset."),
            Spec("Snapshot", "Pulse", "Snapshot", "Save the look of now under the preset's name."),
            Spec("Morphfrom", "Str", "Morph From", "Preset at the fader's 0.", "", section=True),
            Spec("Morphto", "Str", "Morph To", "Preset at the fader's 1.", ""),
            Spec("Morph", "Float", "Morph", "Between the two presets.", 0.0, 0.0, 1.0),
        ),
    ),
    (
        "Bridge",
        (
            Spec(
                "Connection",
                "Menu",
                "Connection",
                "auto: the daemon that runs on this machine. manual: host and port.",
                "auto",
                menu=("auto", "manual"),
            ),
            Spec("Host", "Str", "Host", "Machine that the daemon runs on.", "127.0.0.1"),
            Spec("Oscport", "Int", "OSC Port", "UDP port of the daemon.", 9000, 1, 65535),
        ),
    ),
)
_FIXED = ("id", "name", "preset", "fade", "follow")
Out = tuple[str, tuple[Argument, ...]]


class CuesExt(BaseExt):
    """The extension of SdBridgeCues. A cue leaves as one bundle, so the daemon applies it at one frame."""

    def __init__(self, comp: td.COMP, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(comp, clock)
        self._row = 0
        self._follow_at: float | None = None
        self._problem = ""
        self._cue = ""

    @never_raises
    def Frame(self) -> None:
        now = self.clock()
        self.keep_link(now)
        for address, args in self.link.receive(now):
            if address == STATUS_PREFIX + "cue" and args and self.value("Source", "table") == "daemon":
                self._cue = str(args[0])
        if self._follow_at is not None and now >= self._follow_at:
            self._follow_at = None
            if self.value("Autofollow", True):
                self._go_row(self._row + 1, now)
        self.show("Current", self._cue)
        state = (
            f"online: {self.link.place}"
            if self.link.alive(now)
            else f"offline: {self.link.problem or 'waiting'}"
        )
        self.say("; ".join(s for s in (state if self.link.is_open else "off", self._problem) if s))

    @never_raises
    def ValuesChanged(self, changes: Any) -> None:
        for change in changes:
            if change.par.name == "Morph":
                ends = (self.value("Morphfrom", ""), self.value("Morphto", ""))
                names: tuple[Argument, ...] = ends if all(ends) else ()
                self._send([("/sdbridge/morph", (*names, float(self.value("Morph", 0.0))))])

    @never_raises
    def Pulse(self, par: td.Par) -> None:
        now = self.clock()
        wanted = self.value("Cue", "").strip()
        preset = self.value("Preset", "").strip()
        if par.name in ("Recall", "Snapshot") and not preset:
            self._problem = "no preset is named"
        elif par.name == "Recall":
            self._send([("/sdbridge/preset/recall", (preset, float(self.value("Fade", 1.0))))])
        elif par.name == "Snapshot":
            self._send([("/sdbridge/preset/save", (preset,))])
        elif par.name == "Stop":
            self._follow_at = None
            self._send([("/sdbridge/cue/stop", ())])
        elif self.value("Source", "table") == "daemon":
            command = {"Go": "go", "Next": "next", "Previous": "previous"}[par.name]
            self._send([(f"/sdbridge/cue/{command}", (wanted,) if par.name == "Go" and wanted else ())])
        elif par.name == "Go" and wanted:
            self._go_row(self._find(wanted), now)
        else:
            self._go_row(self._row + (-1 if par.name == "Previous" else 1), now)

    def _find(self, wanted: str) -> int:
        table = self._table()
        for row in range(1, table.numRows):
            if wanted in (table[row, 0].val, table[row, 1].val):
                return row
        self._problem = f"there is no cue {wanted!r} in the table"
        return 0

    def _go_row(self, row: int, now: float) -> None:
        """Send one row of the table as one bundle."""
        table = self._table()
        if not 1 <= row < table.numRows:
            if row:
                self._problem = "the cue list ends here"
            return
        self._problem = ""
        self._row = row
        columns = [table[0, column].val for column in range(table.numCols)]
        cells = dict(zip(columns, (table[row, c].val for c in range(table.numCols)), strict=True))
        fade = _number(cells.get("fade", ""), 0.0)
        messages: list[Out] = []
        if cells.get("preset"):
            messages.append(("/sdbridge/preset/recall", (cells["preset"], fade)))
        for column, cell in cells.items():
            if column and column not in _FIXED and cell:
                messages.append(self._value(column, cell, fade))
        self._send(messages)
        self._cue = cells.get("name") or cells.get("id") or str(row)
        follow = _number(cells.get("follow", ""), -1.0)
        self._follow_at = now + follow if follow >= 0 else None

    def _value(self, column: str, cell: str, fade: float) -> Out:
        number = _number(cell, None)
        if number is not None and fade > 0:
            return "/sdbridge/fade", (column, float(number), fade)
        return "/sdbridge/" + column.replace(".", "/"), (cell if number is None else float(number),)

    def _send(self, messages: list[Out]) -> None:
        if messages and not self.link.send(messages):
            self._problem = "not sent: the daemon is away"

    def _table(self) -> Any:
        return self.comp.op("cues")


def _number(cell: str, default: Any) -> Any:
    try:
        return float(cell)
    except ValueError:
        return default


__all__ = ["CUES_PAGES", "CUE_COLUMNS", "CuesExt"]
