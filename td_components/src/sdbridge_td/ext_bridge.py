"""SdBridge: pictures and parameters between TouchDesigner and the daemon, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .ext_base import BaseExt, never_raises
from .hold import Shown
from .link import monotonic
from .mapping import STATUS_PREFIX, Names, Schema, Value, clean, from_daemon, to_daemon
from .osc_codec import Message
from .pages import blocks, find_par, set_blocks
from .pictures import Pictures

if TYPE_CHECKING:
    import td

#: An echo that crosses a change of ours on the way is set aside, and asked for again after this time.
CROSSING_S = 0.3
_SYNC_S = 2.0  # within this after a refresh, everything the daemon has is here


class BridgeExt(BaseExt):
    """The extension of SdBridge. PascalCase is for users and callbacks; nothing of that ever raises."""

    def __init__(self, comp: td.COMP, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(comp, clock)
        code: Any = comp.op("code")
        self.schema = Schema(json.loads(code.op("schema").text))
        self.names = Names(self.schema)
        self.pictures = Pictures(comp, self.value)
        self.topics: dict[str, Value] = {}
        self._news: set[str] = set()  # topics that came since they were shown last
        self._known: dict[str, Value] = {}  # what the daemon has, as far as we know
        self._sent_at: dict[str, float] = {}
        self._doubted: dict[str, float] = {}  # name -> when to ask the daemon again
        self._waiting: dict[str, Value] = {}  # texts that wait for Apply Prompt
        self._unsent: set[str] = set()  # changed while the daemon was away
        self._driven: set[str] = set()
        self._refused: dict[str, str] = {}
        self._blocks: dict[str, int] = {}
        self._online = False
        self._was_online = False
        self._restarts = 0
        self._seen: set[str] = set()
        self._sync_ends: float | None = None
        self._refresh_at: float | None = None
        self._hidden: set[str] = set()

    # --- for TouchDesigner ---

    @never_raises
    def Built(self, missing: list[str]) -> None:
        self.pictures.missing = list(missing)
        self._blocks = {sequence: blocks(self.comp, sequence) for sequence in self.names.sequences}

    @never_raises
    def Frame(self) -> None:
        now = self.clock()
        self.keep_link(now)
        self._hear(self.link.receive(now), now)
        self._follow_connection(now)
        self._ask_again(now)
        self._follow_sequences(now)
        self._show_picture(now)
        self._report(now)

    @never_raises
    def ValuesChanged(self, changes: Any) -> None:
        now = self.clock()
        self._send_values(
            {name: value for change in changes for name, value in self._changed(change.par)}, now
        )

    @never_raises
    def Pulse(self, par: td.Par) -> None:
        now = self.clock()
        name = self.names.name(par.name)
        if name is not None:
            if name == "panic":  # holds even if nobody is there to hear it
                self._take_over("Outputblack", True)
            if self.link.alive(now):
                self.link.send([(self.names.address(name), (1,))])
            else:
                self._refused[name] = f"{par.label} was not sent: the daemon is away"
        elif par.name == "Reconnect":
            self.Reconnect()
        elif par.name == "Applyprompt":
            waiting, self._waiting = self._waiting, {}
            self._send_values(waiting, now)
        elif par.name == "Help":
            print(self.About())  # the textport is where a user reads it

    @never_raises
    def Reconnect(self) -> None:
        """Begin anew: look up the host, subscribe, fetch everything."""
        self.link.close()
        self._online = self._was_online = False
        self._refused.clear()
        self._known.clear()

    @never_raises
    def Send(self, address: str, *args: Any) -> None:
        """Send any OSC message to the daemon: ``op('SdBridge').Send('/sdbridge/preset/recall', 'night')``."""
        self.link.send([(address, args)])

    def About(self) -> str:
        """Where the guide is, and what this component knows, for the textport."""
        lines = [
            "sdbridge: docs/touchdesigner.md in the repository, or the daemon's page in a browser.",
            f"component {self.schema.version}, schema {self.schema.hash}, {self.link.place}",
            *(f"{topic}: {value}" for topic, value in sorted(self.topics.items())),
        ]
        return "\n".join(lines)

    @property
    def shown(self) -> Shown:
        """What the output shows in this frame."""
        return self.pictures.shown

    # --- from TouchDesigner to the daemon ---

    def _changed(self, par: td.Par) -> Iterable[tuple[str, Value]]:
        """The parameter's name and new value, unless the daemon has it already or it is not the daemon's."""
        name = self.names.name(par.name)
        if name is None or self.names.rows[name].kind == "trigger":
            return
        row = self.names.rows[name]
        try:
            value = to_daemon(row, par.eval())
        except (TypeError, ValueError) as error:
            self._refused[name] = f"{par.label} was not sent: {error}"
            return
        except Exception as error:  # noqa: BLE001 - a user's expression may raise anything
            self._refused[name] = f"{par.label} cannot be evaluated: {error}"
            return
        self._refused.pop(name, None)
        if name.endswith(".text") and not self.value("Liveprompt", True):
            self._waiting[name] = value
            return
        if self._known.get(name) == value:
            return
        self._set_constant(par, value)  # the daemon will round it so, and will not tell us
        yield name, value

    def _send_values(self, values: dict[str, Value], now: float) -> None:
        """All of it as one bundle: the daemon applies it at one frame edge."""
        if not values:
            return
        sent = self.link.send([(self.names.address(name), (value,)) for name, value in values.items()])
        for name, value in values.items():
            self._known[name] = value
            self._sent_at[name] = now
            if not sent or not self.link.alive(now):
                self._unsent.add(name)

    def _own_values(self) -> dict[str, Value]:
        """Every parameter that is shown, as it stands here."""
        values: dict[str, Value] = {}
        for name, row in self.names.rows.items():
            par = find_par(self.comp, self.names.par(name))
            if par is None or row.kind == "trigger" or name in self._waiting:
                continue
            try:
                values[name] = to_daemon(row, par.eval())
            except Exception as error:  # noqa: BLE001 - a user's expression may raise anything
                self._refused[name] = f"{par.label} cannot be evaluated: {error}"
        return values

    # --- from the daemon to TouchDesigner ---

    def _hear(self, messages: Sequence[Message], now: float) -> None:
        for address, args in messages:
            if not args:
                continue
            if address.startswith(STATUS_PREFIX):
                said = args[0]
                if isinstance(said, bool | int | float | str):
                    topic = address.removeprefix(STATUS_PREFIX)
                    self.topics[topic] = clean(said) if isinstance(said, float) else said
                    self._news.add(topic)
                continue
            name = self.names.name_at(address)
            if name is None:
                continue
            self._seen.add(name)
            value = from_daemon(self.names.rows[name], args[0])
            if value is not None:
                self._take(name, value, now)

    def _take(self, name: str, value: Value, now: float) -> None:
        """The daemon says that a parameter has this value."""
        if value == self._known.get(name):
            return  # nothing new: if the parameter shows something else, that is on its way out
        if now - self._sent_at.get(name, -1e9) < CROSSING_S:
            self._doubted[name] = now + CROSSING_S
            return
        self._known[name] = value
        par = find_par(self.comp, self.names.par(name))
        if par is None:
            place = self.names.block_of(name)
            if place is None or value == self.names.default(name):
                return  # an empty slot need not be shown
            set_blocks(self.comp, self.names, place[0], place[1] + 1)
            self._blocks[place[0]] = blocks(self.comp, place[0])
            par = find_par(self.comp, self.names.par(name))
            if par is None:
                return
        if name not in self._waiting:
            self._set_constant(par, value)

    def _set_constant(self, par: td.Par, value: Value) -> None:
        """Write a parameter, unless an expression, an export or a binding drives it."""
        import td

        if par.mode != td.ParMode.CONSTANT:
            self._driven.add(par.name)
            return
        self._driven.discard(par.name)
        if par.val != value:
            par.val = value

    def _take_over(self, name: str, value: Value) -> None:
        par = find_par(self.comp, name)
        if par is not None:
            self._set_constant(par, value)

    # --- coming and going ---

    def _follow_connection(self, now: float) -> None:
        online = self.link.alive(now)
        if online and not self._online:
            self._arrived(now)
        elif self._online and not online:
            self._call("onDaemon", {"online": False, "place": self.link.place})
        self._online = online
        if self._refresh_at is not None and now >= self._refresh_at and online:
            self._refresh_at = None
            self._seen.clear()
            self._sync_ends = now + _SYNC_S
            self.link.send([("/sdbridge/refresh", ())])
        if self._sync_ends is not None and now >= self._sync_ends:
            self._sync_ends = None
            self._hide_unknown()

    def _arrived(self, now: float) -> None:
        """The daemon is heard: for the first time, again, or another one in its place."""
        how = self.value("Onconnect", "auto")
        fresh = self._was_online and self.link.restarts != self._restarts
        self._restarts = self.link.restarts
        push = how == "push" or (how == "auto" and fresh)
        values = self._own_values() if push else {}
        if not push and self._was_online and how == "auto":  # what was changed while it was away
            values = {name: value for name, value in self._own_values().items() if name in self._unsent}
        self._unsent.clear()
        self._send_values(values, now)
        self._was_online = True
        self._refresh_at = now + (2 * CROSSING_S if values else 0.0)
        self._call("onDaemon", {"online": True, "place": self.link.place, "fresh": fresh})

    def _ask_again(self, now: float) -> None:
        due = [name for name, at in self._doubted.items() if now >= at]
        if due and self.link.alive(now):
            self.link.send([("/sdbridge/refresh", (self.names.address(name),)) for name in due])
        for name in due:
            del self._doubted[name]

    def _follow_sequences(self, now: float) -> None:
        """Blocks were added or taken away: the daemon's slots follow."""
        for sequence in self.names.sequences:
            count, before = blocks(self.comp, sequence), self._blocks.get(sequence, 0)
            if count == before:
                continue
            self._blocks[sequence] = count
            values: dict[str, Value] = {}
            for block in range(min(count, self.names.slots(sequence))):  # an insertion moves all below it
                for name in self.names.in_block(sequence, block):
                    par = find_par(self.comp, self.names.par(name))
                    values.update(self._changed(par) if par is not None and block < before else ())
            for block in range(count, before):
                values.update(
                    (name, self.names.default(name))
                    for name in self.names.in_block(sequence, block)
                    if self.names.rows[name].kind != "trigger"
                )
            self._send_values(values, now)
            for block in range(before, count):  # what the daemon has in the slots that now show
                for name in self.names.in_block(sequence, block):
                    self._known.pop(name, None)
                    self._doubted[name] = now

    def _hide_unknown(self) -> None:
        """A daemon of another version may lack parameters: those are greyed out, and come back with it."""
        unknown = set(self.names) - self._seen if self._mismatch() and self._seen else set()
        unknown = {name for name in unknown if self.names.rows[name].kind != "trigger"}
        for name in unknown ^ self._hidden:
            par = find_par(self.comp, self.names.par(name))
            if par is not None and not par.enableExpr:
                par.enable = name not in unknown
        self._hidden = unknown

    def _mismatch(self) -> bool:
        theirs = self.topics.get("schema", "")
        return bool(theirs) and theirs != self.schema.hash

    # --- telling ---

    def _show_picture(self, now: float) -> None:
        self.pictures.wire(now)
        before = self.shown.state
        self.pictures.show(now, self.link.alive(now))
        if self.shown.state != before:
            self._call("onPicture", {"state": self.shown.state, "before": before})

    def _report(self, now: float) -> None:
        for topic in self._news:
            self.show("Daemon" + topic.replace("_", ""), self.topics[topic])
        self._news.clear()
        self.show("Picture", self.shown.state)
        self.show("Sent", self.link.datagrams_sent)
        if self.say("; ".join([self._state(now), *self._notes()])):
            self._call("onStatus", {"status": self._said, "online": self._online})

    def _state(self, now: float) -> str:
        link = self.link
        if not link.is_open:
            return "off"
        if link.alive(now):
            engine = self.topics.get("state", "")
            return f"online: {link.place}" + (f", engine {engine}" if engine else "")
        if link.problem:
            return f"offline: {link.problem}, the picture is {self.shown.state}"
        if self._was_online:
            return f"offline: no heartbeat from {link.place}, the picture is {self.shown.state}"
        return f"connecting to {link.place}"

    def _notes(self) -> list[str]:
        notes = []
        if self._online and self._mismatch():
            notes.append(
                f"the daemon's parameters differ ({self.topics['schema']}, here {self.schema.hash}): "
                f"use the components of version {self.topics.get('version', '?')}"
            )
        if self._online and self._driven:
            first = sorted(self._driven)[0]
            more = f" and {len(self._driven) - 1} more" if len(self._driven) > 1 else ""
            notes.append(f"{first}{more} is driven by an expression, export or binding: not overwritten")
        notes += [note for note in (self.pictures.source_note, self.link.note) if note]
        notes += list(self._refused.values())[:2]
        too_many = [s for s, n in self._blocks.items() if n > self.names.slots(s)]
        notes += [
            f"the daemon has {self.names.slots(s)} slots for {s}, blocks past that do nothing"
            for s in too_many
        ]
        absent = [name for name in self.pictures.missing if not name.startswith("sharedmem_")]
        if len(absent) < len(self.pictures.missing):
            notes.append("no shared memory with this licence")
        if absent:
            notes.append(f"this TouchDesigner has no {', '.join(absent[:3])}: run the self-test")
        if self._waiting:
            notes.append("texts wait for Apply Prompt")
        return notes

    def _call(self, event: str, info: dict[str, Any]) -> None:
        """Tell the user's callbacks. What they raise is theirs, but it must not stop a frame."""
        par = find_par(self.comp, "Callbackdat")
        dat = par.eval() if par is not None else None
        if not dat:
            return
        try:
            function = getattr(dat.module, event, None)
            if function is not None:
                function({"ownerComp": self.comp, **info})
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            self._refused[event] = f"the callback {event} failed: {error}"
