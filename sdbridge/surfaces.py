"""Which control surfaces the bridge opens, and on which port."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Protocol

from sdbridge.config import Config
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)


class Surface(Protocol):
    """Something that may write parameters."""

    def start(self) -> None: ...
    def close(self) -> None: ...


def _always(config: Config) -> bool:
    return True


def _has_midi(config: Config) -> bool:
    """MIDI runs where its optional packages are installed."""
    return config.midi.enabled and all(importlib.util.find_spec(name) for name in ("mido", "rtmidi"))


#: name -> (import string of a class called with the view, whether this config wants it)
SURFACES: Mapping[str, tuple[str, Callable[[Config], bool]]] = {
    "web": ("sdbridge.control.web:WebServer", _always),
    "osc": ("sdbridge.control.osc:OscServer", _always),
    "advertise": ("sdbridge.control.advertise:Advertisement", lambda config: config.osc.advertise),
    "midi": ("sdbridge.control.midi:MidiSurface", _has_midi),
    "dmx": ("sdbridge.control.dmx:DmxInput", lambda config: config.dmx.protocol != "off"),
}


#: Without these nobody could steer; the others may fail with one line in the log.
INDISPENSABLE = frozenset({"web", "osc"})


def open_surfaces(view: BridgeView) -> ExitStack:
    """Start every surface that the config wants; closing the stack closes them in reverse order.

    A port that cannot be had raises its SDB- error, and what had been opened is closed again.
    A surface with a method ``meet`` is told of all of them: the page shows what came in over OSC.
    """
    opened: dict[str, Surface] = {}
    with ExitStack() as stack:
        for name, (target, wanted) in SURFACES.items():
            if not wanted(view.config):
                continue
            module, _, attribute = target.partition(":")
            surface: Surface = getattr(importlib.import_module(module), attribute)(view)
            stack.callback(surface.close)
            try:
                surface.start()
            except SdbridgeError as error:
                if name in INDISPENSABLE:
                    raise
                log.warning("%s", error)
                continue
            opened[name] = surface
            log.debug("surface %s is open", name)
        for surface in opened.values():
            meet = getattr(surface, "meet", None)
            if meet is not None:
                meet(opened)
        return stack.pop_all()


def free_port(lan: bool) -> int:
    """A number that is free on TCP and on UDP at once, for ``port: 0``."""
    host = "0.0.0.0" if lan else "127.0.0.1"
    for _attempt in range(20):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.bind((host, 0))
            port = int(tcp.getsockname()[1])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                try:
                    udp.bind((host, port))
                except OSError:
                    continue
                return port
    raise SdbridgeError("SDB-PORT-NONE", "no port was free on both TCP and UDP in 20 attempts")
