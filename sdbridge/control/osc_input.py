"""What an OSC packet changes: every message judged, parameters gathered into one revision, commands run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sdbridge.control import compat_streamdiffusiontd
from sdbridge.control.osc_commands import OscCommands, OscUsageError, Released
from sdbridge.control.osc_decode import (
    Argument,
    OscBundle,
    OscDecodeError,
    OscMessage,
    decode,
    encode_message,
)
from sdbridge.control.osc_log import OscLog, Verdict
from sdbridge.control.osc_patterns import AddressTree, OscPatternError, is_pattern
from sdbridge.control.osc_schedule import OscSchedule, OscTooFarError
from sdbridge.control.subscriptions import Address, OscRefusedError, Subscriptions, source_of
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.addresses import HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.normalized import from_normalized, to_normalized
from sdbridge.parameters.parameter import Parameter, Value

log = logging.getLogger(__name__)

NORMALIZED = "/sdbridge/normalized/"
_HINTS_A_SECOND = 10  # looking for the nearest name costs a millisecond


class OscInput:
    """Judges packets for one server. It belongs to the server's thread.

    ``take`` reads a packet; parameters wait in ``_pairs`` until ``apply``, so that a burst of
    datagrams is one revision in which the last value wins and every trigger counts.
    """

    def __init__(
        self,
        view: BridgeView,
        subscriptions: Subscriptions,
        send: Callable[[bytes, Address], None],
        schedule: OscSchedule,
    ) -> None:
        self.log = OscLog()
        self.schedule = schedule
        self._store = view.store
        self._table = view.store.table
        self._status = view.status
        self._compat = "streamdiffusiontd" in view.config.compat
        self._subscriptions = subscriptions
        self._send = send
        self._commands = OscCommands(view.show, subscriptions, send)
        self._tree = AddressTree(row.address for row in self._table)
        self._read_only = {HEARTBEAT, *(topic.address for topic in STATUS_TOPICS)}
        self._pairs: list[tuple[str, object]] = []
        self._sender: Address = ("", 0)
        self._hints = (0, 0)

    def take(self, packet: bytes, sender: Address) -> None:
        """Read one packet. Never raises for anything that is in it."""
        try:
            bundles = decode(packet)
        except OscDecodeError as error:
            text = f"{len(packet)} bytes from {sender[0]}:{sender[1]}: {error}"
            self._refuse("", (), sender, str(SdbridgeError("SDB-OSC-MALFORMED", text)))
            return
        for bundle in bundles:
            try:
                waits = self.schedule.put_off(bundle, sender)
            except OscTooFarError as error:
                text = f"a bundle of {len(bundle.messages)} messages was left out: {error}"
                first = bundle.messages[0]
                reason = str(SdbridgeError("SDB-OSC-DATED", text))
                self._refuse(first.address, first.args, sender, reason)
                continue
            if not waits:
                self.take_bundle(bundle, sender)

    def take_due(self) -> None:
        """Read the dated bundles whose time has come."""
        for bundle, sender in self.schedule.take_due():
            self.take_bundle(bundle, sender)

    def take_bundle(self, bundle: OscBundle, sender: Address) -> None:
        if sender != self._sender:
            self.apply()
            self._sender = sender
        for message in bundle.messages:
            try:
                self._take_message(message, sender)
            except Exception:  # edge: control; one message must not take the rest along
                log.exception("OSC message %r could not be handled", message.address[:120])
                self._refuse(message.address, message.args, sender, "an inner fault, see the log")

    def apply(self) -> None:
        """Set everything gathered, as one revision."""
        if self._pairs:
            pairs, self._pairs = self._pairs, []
            try:
                self._store.set_sequence(pairs, source_of(self._sender))
            except Exception:  # edge: control; a fault in setting must not end OSC
                log.exception("a change by OSC failed")

    # --- one message ---

    def _take_message(self, message: OscMessage, sender: Address) -> None:
        address, args = message.address, message.args
        row = self._table.by_address.get(address)
        if row is not None:
            self._judge(message, sender, lambda: self._set(row, args, sender))
        elif address.endswith("/z"):
            self._note(message, sender, "ignored", "touch message")
        elif self._commands.find(address):
            self.apply()  # what came before a recall counts before it
            self._judge(message, sender, lambda: self._commands.run(address, args, sender))
        elif address.startswith(NORMALIZED):
            self._judge(message, sender, lambda: self._set_by_name(address, args, sender))
        elif address in self._read_only:
            self._judge(message, sender, lambda: self._read(address, args, sender))
        elif self._compat and compat_streamdiffusiontd.is_theirs(address):
            self._judge(message, sender, lambda: self._set_theirs(address, args))
        elif is_pattern(address):
            self._judge(message, sender, lambda: self._set_matches(address, args, sender))
        else:
            self._unknown(message, sender)

    def _judge(self, message: OscMessage, sender: Address, act: Callable[[], str]) -> None:
        """Do what a message asks and note the verdict."""
        try:
            said = act()
        except Released:
            self._note(message, sender, "ignored", "button released")
            return
        except SdbridgeError as error:
            reason = str(error)
        except OscUsageError as error:
            reason = str(SdbridgeError("SDB-OSC-USAGE", str(error)))
        except OscRefusedError as error:
            reason = str(SdbridgeError("SDB-OSC-SUBSCRIBE", str(error)))
        except OscPatternError as error:
            reason = str(SdbridgeError("SDB-OSC-PATTERN", str(error)))
        else:
            self._note(message, sender, "ok", said)
            return
        self._refuse(message.address, message.args, sender, reason)

    def _set(
        self, row: Parameter, args: tuple[Argument, ...], sender: Address, normalized: bool | None = None
    ) -> str:
        """Put one parameter's value with the others; without an argument answer with the present one."""
        if normalized is None:
            normalized = self._subscriptions.is_normalized(sender)
        if row.kind == "trigger" and (not args or args == (None,)):
            self._pairs.append((row.name, True))
            return ""
        if not args:
            self.apply()  # the answer counts what came before the question
            value = self._store.get(row.name)
            self._answer(row.address, to_normalized(row, value) if normalized else value, sender)
            return "asked"
        raw = _one_value(row, args)
        value = row.coerce(from_normalized(row, raw) if normalized else raw)
        if row.kind == "trigger" and not value:
            raise Released
        self._pairs.append((row.name, value))
        remark = None if normalized else row.adjusted(raw, value)
        if remark is None:
            return ""
        self.log.remark(row.address, f"{sender[0]}:{sender[1]}", str(remark))
        return remark.what

    def _set_by_name(self, address: str, args: tuple[Argument, ...], sender: Address) -> str:
        row = self._table.find("/sdbridge/" + address[len(NORMALIZED) :])
        return self._set(row, args, sender, True)

    def _set_matches(self, address: str, args: tuple[Argument, ...], sender: Address) -> str:
        matches = self._tree.matches(address)
        if not matches:
            raise OscPatternError(f"{address[:80]} matches no address")
        rows = [self._table.by_address[match] for match in matches]
        values = [row for row in rows if row.kind != "trigger"]
        refused: list[SdbridgeError] = []
        # A pattern for values that happens to cover a trigger must not fire it: /sdbridge/* holds panic.
        for row in values or rows:
            try:
                self._set(row, args, sender)
            except SdbridgeError as error:
                refused.append(error)
        if len(refused) == len(values or rows):
            raise refused[0]
        return f"{len(values or rows) - len(refused)} addresses" + (
            f", {len(refused)} refused: {refused[0].what}" if refused else ""
        )

    def _set_theirs(self, address: str, args: tuple[Argument, ...]) -> str:
        """What an address of another program means here. All of it is checked before any of it counts."""
        checked: list[tuple[str, object]] = []
        for name, raw in compat_streamdiffusiontd.translate(address, args):
            row = self._table.find(name)
            checked.append((row.name, row.coerce(raw)))
        self._pairs += checked
        return ", ".join(name for name, _ in checked[:4])

    def _read(self, address: str, args: tuple[Argument, ...], sender: Address) -> str:
        if args:
            raise SdbridgeError("SDB-PARAM-READONLY", f"{address} was sent a value")
        status = self._status()
        topic = next((one for one in STATUS_TOPICS if one.address == address), None)
        self._answer(address, topic.value(status) if topic else int(status.uptime_s), sender)
        return "asked"

    def _answer(self, address: str, value: Value, sender: Address) -> None:
        for target in self._subscriptions.reply_to(sender):
            self._send(encode_message(address, (value,)), target)

    def _unknown(self, message: OscMessage, sender: Address) -> None:
        second = int(time.monotonic())
        count = self._hints[1] + 1 if self._hints[0] == second else 1
        self._hints = (second, count)
        hint = ""
        if count <= _HINTS_A_SECOND and (near := self._table.nearest(message.address)):
            hint = f"; the nearest is {near}"
        error = SdbridgeError("SDB-OSC-UNKNOWN", f"there is no address {message.address[:80]!r}{hint}")
        self.log.add(message.address, message.args, f"{sender[0]}:{sender[1]}", "unknown", str(error))

    def _note(self, message: OscMessage, sender: Address, verdict: Verdict, reason: str) -> None:
        self.log.add(message.address, message.args, f"{sender[0]}:{sender[1]}", verdict, reason)

    def _refuse(self, address: str, args: tuple[Argument, ...], sender: Address, reason: str) -> None:
        self._subscriptions.last_refusal = reason[:300]
        self.log.add(address, args, f"{sender[0]}:{sender[1]}", "invalid", reason)


def _one_value(row: Parameter, args: tuple[Argument, ...]) -> object:
    """The one value of a message. Texts of several words come from Max and Pure Data as several arguments."""
    if len(args) == 1:
        return args[0]
    if row.kind != "str":
        raise SdbridgeError("SDB-PARAM-TYPE", f"{row.address} takes one value, not {len(args)}")
    if any(not isinstance(a, str | int | float) for a in args):
        raise SdbridgeError("SDB-PARAM-TYPE", f"{row.address} takes text")
    words = [a if isinstance(a, str) else format(a, "g") for a in args]
    return (" " if any(isinstance(a, str) for a in args) else ",").join(words)
