"""The way of the pictures through SdBridge: who sends and receives, fitted and flipped how, held when.

Looks at the parameters of the pages Bridge and Safety, and sets the operators inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .hold import HOLDING, Hold, HoldSettings, Shown
from .network import TRANSPORT_INPUT, set_par

if TYPE_CHECKING:
    import td

#: What the Bridge page says of pictures; looked at every frame, and put right once a second.
_WIRING = (
    ("Fitmode", "fill"),
    ("Inputname", ""),
    ("Controlname", ""),
    ("Outputname", ""),
    ("Controlsource", ""),
    ("Ndiextraips", ""),
    ("Flipinput", False),
    ("Flipoutput", False),
)
_REWIRE_S = 1.0
_FITS = {"fill": "fitoutside", "fit": "fitbest", "stretch": "fill", "native": "nativeres"}


class Pictures:
    """The operators of one SdBridge. ``value`` gives what a parameter evaluates to, or a default."""

    def __init__(self, comp: td.COMP, value: Callable[[str, Any], Any]) -> None:
        self.comp = comp
        self.hold = Hold()
        self.shown = Shown(HOLDING, False, 0.0, 0)
        self.missing: list[str] = []  # operators and parameters that this TouchDesigner does not have
        self.source_note = ""
        self._value = value
        self._wired: tuple[Any, ...] = ()
        self._wire_at = 0.0

    def wire(self, now: float) -> None:
        """Senders, receivers and switches as the Bridge page says."""
        transport = str(self._value("Transport", "spoutsyphon"))
        active = bool(self._value("Active", True))
        width, height = self._value("Width", 512), self._value("Height", 512)
        asked = (transport, active, width, height, *(self._value(*word) for word in _WIRING))
        asked += (_has_input(self.comp, 0), _has_input(self.comp, 1))
        if asked == self._wired and now < self._wire_at:
            return
        self._wired, self._wire_at = asked, now + _REWIRE_S
        native = self._value("Fitmode", "fill") == "native"
        for prefix, name in (("image", "Inputname"), ("control", "Controlname")):
            wired = _has_input(self.comp, 0 if prefix == "image" else 1)
            sender = str(self._value(name, ""))
            send = active and wired and bool(sender)
            self._set(f"fit_{prefix}", fit=_FITS.get(str(self._value("Fitmode", "fill")), "fitoutside"))
            self._set(f"fit_{prefix}", outputresolution="useinput" if native else "custom")
            if not native:
                self._set(f"fit_{prefix}", resolutionw=width, resolutionh=height)
            self._set(f"flip_{prefix}", flipy=bool(self._value("Flipinput", False)))
            self._set(f"spout_{prefix}_out", sendername=sender, active=send and transport == "spoutsyphon")
            self._set(f"ndi_{prefix}_out", name=sender, active=send and transport == "ndi")
            self._set(f"sharedmem_{prefix}_out", name=sender, active=send and transport == "sharedmem")
        for prefix, name in (("generated", "Outputname"), ("processed", "Controlsource")):
            source = str(self._value(name, ""))
            self._set(f"{prefix}_transport", index=TRANSPORT_INPUT.get(transport, 0))
            self._set(f"flip_{prefix}", flipy=bool(self._value("Flipoutput", False)))
            self._set(f"spout_{prefix}_in", sendername=source if transport == "spoutsyphon" else "")
            self._set(f"ndi_{prefix}_in", name=source, active=active and transport == "ndi")
            self._set(f"ndi_{prefix}_in", extraips=str(self._value("Ndiextraips", "")))
            self._set(f"sharedmem_{prefix}_in", name=source if transport == "sharedmem" else "")

    def show(self, now: float, alive: bool) -> None:
        """Hold, fade and return, as the Safety page says. ``alive``: the daemon is heard."""
        error = self._receiver_error()
        settings = HoldSettings(
            action=self._value("Holdaction", "hold"),
            after_s=self._value("Holdafter", 2.0),
            fade_s=self._value("Holdfade", 1.0),
            recover_frames=self._value("Holdrecover", 5),
            freeze=self._value("Outputfreeze", False),
            black=self._value("Outputblack", False),
        )
        self.shown = self.hold.step(now, alive and not error, settings)
        self._set("hold", active=self.shown.capture)
        self._set("fade", cross=self.shown.cross)
        self._set("fallback", index=self.shown.fallback)
        self._set("fallback_image", file=str(self._value("Holdimage", "")))

    def _receiver_error(self) -> str:
        """What TouchDesigner says of the operator that receives; its warnings are shown, errors also hold."""
        transport = str(self._value("Transport", "spoutsyphon")).replace("spoutsyphon", "spout")
        name = f"{transport}_generated_in"
        receiver = self.comp.op(name)
        if receiver is None:
            self.source_note = f"{name} is missing: this licence has no shared memory operators"
            return self.source_note
        error, warning = receiver.errors(), receiver.warnings()
        said = " ".join(str(error or warning).split())
        source = self._value("Outputname", "")
        self.source_note = f"source {source!r}: {said[:120]}" if said else ""
        return str(error)

    def _set(self, op: str, **values: Any) -> None:
        """Set an operator's parameters where they differ; an operator that is not there is left out."""
        node = self.comp.op(op)
        if node is None:
            return
        for name, value in values.items():
            if not set_par(node, name, value) and f"{node.opType}.{name}" not in self.missing:
                self.missing.append(f"{node.opType}.{name}")


def _has_input(comp: td.COMP, index: int) -> bool:
    """Whether something is wired into the component's connector."""
    connectors = comp.inputConnectors
    return index < len(connectors) and bool(connectors[index].connections)
