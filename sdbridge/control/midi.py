"""MIDI: controllers steer parameters, learnt by touch, and motor faders follow what else moves them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

from sdbridge import paths
from sdbridge.control.midi_controls import RELATIVE, Control, MidiMessage, Position, recognise
from sdbridge.control.midi_map import MidiMap, preset_of
from sdbridge.control.midi_ports import MidiPort, MidiPorts, MidoPorts
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.normalized import from_normalized, has_range, to_normalized
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.parameters.store import Change

log = logging.getLogger(__name__)

GATHER_S = 0.033
_RESCAN_S = 2.0
_NEVER = 1 << 62
_LEARN_FOR_S = 0.4  # one movement, from its first message on
_MOST_WAITING = 4_096
_TURNS = 128.0  # steps of an encoder from one end of a range to the other


class MidiSurface:
    """Every connected controller, from ``start`` to ``close``. Devices may come and go meanwhile.

    One thread reads, applies and answers; what the devices' own threads bring only waits in a queue.
    """

    def __init__(self, view: BridgeView, ports: MidiPorts | None = None, file: Path | None = None) -> None:
        self._view = view
        self._store = view.store
        self._ports = ports or MidoPorts()
        self._map = MidiMap(file or paths.config_dir() / "midi.yaml", view.store.table)
        self._positions: dict[Control, Position] = {}
        self._open: dict[str, MidiPort] = {}
        self._heard: queue.Queue[MidiMessage] = queue.Queue(_MOST_WAITING)
        self._lock = threading.RLock()  # around the map and learning, which the page reaches into
        self._touched = ""
        self._learning = False
        self._movement: list[MidiMessage] = []
        self._movement_ends_ns = 0
        self._moved: dict[str, tuple[Value, str]] = {}  # changes to show on the devices: value and source
        self._rescan_at_ns = 0
        self._flush_at_ns = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._unsubscribe = view.store.subscribe(self._on_change)

    # --- life ---

    def start(self) -> None:
        """Begin; devices are looked for at once and every two seconds."""
        self._thread = threading.Thread(target=self._run, name="midi", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of all devices. May be called twice."""
        self._closing.set()
        self._unsubscribe()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None
        for port in self._open.values():
            port.close()
        self._open.clear()

    # --- for the page ---

    @property
    def devices(self) -> Sequence[str]:
        return tuple(self._open)

    @property
    def learning(self) -> bool:
        return self._learning

    @property
    def mappings(self) -> Sequence[tuple[str, str]]:
        """``(control, parameter)`` for people."""
        with self._lock:
            return tuple((str(control), target) for control, target in self._map.targets.items())

    def learn(self, on: bool) -> None:
        """While on, the next control that moves is bound to the parameter that was touched last."""
        with self._lock:
            self._learning = on
            self._movement = []

    def forget(self, control: str) -> None:
        """Unbind one control, named as in ``mappings``."""
        with self._lock:
            self._map.forget(Control.parse(control))

    # --- the thread ---

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                first = self._heard.get(timeout=GATHER_S)
                self.take([first, *self._waiting()])
            except queue.Empty:
                pass
            except Exception:  # edge: control; a fault with one message must not end MIDI
                log.exception("a MIDI message could not be handled")
            try:
                self.tick()
            except Exception:  # edge: control; a device that is pulled out must not end MIDI
                log.exception("MIDI goes on after a fault")

    def _waiting(self) -> list[MidiMessage]:
        return [self._heard.get_nowait() for _ in range(self._heard.qsize())]

    def hear(self, message: MidiMessage) -> None:
        """Called by a device's thread."""
        try:
            self._heard.put_nowait(message)
        except queue.Full:
            return  # a flood; the fader's next position says it all

    def take(self, messages: Sequence[MidiMessage]) -> None:
        """What the devices sent, in order: learnt from, or applied as one change for each control."""
        with self._lock:
            if self._learning:
                self._learn_from(messages)
                return
            targets = dict(self._map.targets)
        for message in messages:
            for control, target in targets.items():
                if control.takes(message):
                    self._apply(control, target, message)

    def tick(self) -> None:
        """What is due by the clock: end of a learning movement, devices come or gone, feedback."""
        now = self._view.clock.now_ns()
        with self._lock:
            if self._movement and now >= self._movement_ends_ns:
                self._finish_learning()
        if now >= self._rescan_at_ns:
            self._rescan_at_ns = now + int(_RESCAN_S * 1e9)
            self._rescan()
        if now >= self._flush_at_ns:
            self._flush_at_ns = now + int(GATHER_S * 1e9)
            self._show_moved()

    # --- learning ---

    def _learn_from(self, messages: Sequence[MidiMessage]) -> None:
        if not self._touched:
            return
        for message in messages:
            if message.kind == "note" and message.value == 0:
                continue
            if not self._movement:
                self._movement_ends_ns = self._view.clock.now_ns() + int(_LEARN_FOR_S * 1e9)
            self._movement.append(message)

    def _finish_learning(self) -> None:
        control = recognise(self._movement)
        self._movement = []
        if control is None:
            return
        self._learning = False
        try:
            self._map.bind(control, self._touched)
        except SdbridgeError as error:
            log.warning("%s", error)
        self._positions.pop(control, None)
        log.info("MIDI %s steers %s", control, self._touched)

    # --- applying ---

    def _apply(self, control: Control, target: str, message: MidiMessage) -> None:
        row = self._store.table.rows.get(target)
        if row is not None:
            value = self._value(control, row, message)
            if value is not None:
                self._store.set(row.name, value, _source(control))
        elif message.value >= 64 or (message.kind == "note" and message.value > 0):
            self._act(target)

    def _act(self, target: str) -> None:
        preset = preset_of(target)
        show = self._view.show
        try:
            if preset is not None:
                show.recall(preset, source="midi")
            elif target == "cue/next":
                show.next("midi")
            elif target == "cue/previous":
                show.previous("midi")
            else:
                show.stop_all()
        except SdbridgeError as error:
            log.warning("MIDI: %s", error)

    def _value(self, control: Control, row: Parameter, message: MidiMessage) -> object | None:
        """The value that a movement asks for, or None for a button let go."""
        now = self._store.get(row.name)
        if control.kind == "note":
            if message.value == 0:
                return None
            if row.kind == "bool":
                return not now
            if row.kind == "enum":
                return row.choices[(row.choices.index(str(now)) + 1) % len(row.choices)]
            return True if row.kind == "trigger" else from_normalized(row, message.value / 127)
        if control.kind in RELATIVE:
            return _turned(row, now, control.turn(message))
        if row.kind == "str":
            return None
        position = self._positions.setdefault(control, Position(control)).after(message)
        if row.kind == "trigger":
            return True if position >= 0.5 else None
        return position >= 0.5 if row.kind == "bool" else from_normalized(row, position)

    # --- devices and feedback ---

    def _on_change(self, change: Change) -> None:
        """Called in the setter's thread: note what was touched last and what devices should show."""
        midi = change.source.startswith("midi:")
        if not midi and not change.source.startswith(("show:", "config")):
            touched = (*change.values, *change.triggers)
            if len(touched) == 1:
                self._touched = touched[0]
        for name, value in change.values.items():
            self._moved[name] = (value, change.source)

    def _show_moved(self) -> None:
        with self._store.steady():  # changes are noted with it held, so none falls between
            moved, self._moved = self._moved, {}
        if not moved or not self._open:
            return
        with self._lock:
            targets = list(self._map.targets.items())
        for control, target in targets:
            # An action is no parameter and so never among what moved.
            if target not in moved or moved[target][1] == _source(control):
                continue
            share = _share(self._store.table.rows[target], moved[target][0])
            if share is None:
                continue
            for message in control.position_messages(share):
                self._send(message)

    def _send(self, message: MidiMessage) -> None:
        for name, port in list(self._open.items()):
            try:
                port.send(message)
            except (OSError, ValueError, RuntimeError) as error:
                log.warning("MIDI device %s is gone: %s", name, error)
                self._open.pop(name).close()

    def _rescan(self) -> None:
        wanted = self._view.config.midi.devices
        try:
            there = self._ports.names()
        except OSError as error:
            # A machine without a MIDI system (a server, a container) would say so every two seconds.
            log.info("no MIDI on this machine: %s", error)
            self._rescan_at_ns = _NEVER
            return
        names = [n for n in there if not wanted or any(w.lower() in n.lower() for w in wanted)]
        for gone in set(self._open) - set(names):
            log.info("MIDI device %s was disconnected", gone)
            self._open.pop(gone).close()
        for name in names:
            if name in self._open:
                continue
            try:
                self._open[name] = self._ports.open(name, self.hear)
                log.info("MIDI device %s", name)
            except (OSError, ValueError, RuntimeError) as error:
                log.warning("MIDI device %s cannot be opened: %s", name, error)
            else:
                values, _ = self._store.snapshot()  # a device that comes is brought to where things stand
                with self._store.steady():
                    self._moved = {**{name: (value, "") for name, value in values.items()}, **self._moved}


def _turned(row: Parameter, now: Value, steps: int) -> object | None:
    """The value some steps of an encoder away."""
    if steps == 0 or row.kind == "str":
        return None
    if row.kind == "trigger":
        return True if steps > 0 else None
    if row.kind == "bool":
        return steps > 0
    if row.kind == "enum":
        at = row.choices.index(str(now)) + (1 if steps > 0 else -1)
        return row.choices[min(max(at, 0), len(row.choices) - 1)]
    if not has_range(row):
        return float(now) + steps
    span = float(row.maximum or 0.0) - float(row.minimum or 0.0)
    step = max(span / _TURNS, float(row.multiple_of or 1)) if row.kind == "int" else span / _TURNS
    return float(now) + steps * step


def _share(row: Parameter, value: Value) -> float | None:
    """Where a fader stands for this value, None if a fader says nothing about it."""
    if row.kind == "bool":
        return 1.0 if value else 0.0
    return float(to_normalized(row, value)) if has_range(row) else None


def _source(control: Control) -> str:
    return f"midi:{control}"
