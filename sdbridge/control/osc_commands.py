"""What the OSC addresses beyond parameters do: subscribe, presets, cues, fades, ping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdbridge.control.osc_decode import Argument, encode_message
from sdbridge.control.subscriptions import DEFAULT_TTL_S, Address, Subscriptions
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.addresses import COMMANDS
from sdbridge.parameters.show import Show
from sdbridge.parameters.store import Outcome

Send = Callable[[bytes, Address], None]
NameOrNumber = str | int | float


class OscUsageError(ValueError):
    """Arguments that a command cannot take; the text shows how it goes."""


class Released(Exception):  # noqa: N818 - no error: the message meant nothing
    """The button that fires this command was let go: nothing is to happen."""


class OscCommands:
    """The commands of ``parameters/addresses.py``, bound to one show and its subscribers."""

    def __init__(self, show: Show, subscriptions: Subscriptions, send: Send) -> None:
        self._show = show
        self._subscriptions = subscriptions
        self._send = send
        self._morph: tuple[NameOrNumber, NameOrNumber] | None = None
        self._by_address: dict[str, Callable[[list[Argument], Address], str]] = {
            "/sdbridge/subscribe": self._subscribe,
            "/sdbridge/unsubscribe": self._unsubscribe,
            "/sdbridge/refresh": self._refresh,
            "/sdbridge/normalized": self._normalized,
            "/sdbridge/ping": self._ping,
            "/sdbridge/fade": self._fade,
            "/sdbridge/preset/recall": self._recall,
            "/sdbridge/preset/save": self._save,
            "/sdbridge/preset/rename": self._rename,
            "/sdbridge/preset/delete": self._delete,
            "/sdbridge/preset/list": self._list,
            "/sdbridge/morph": self._morph_to,
            "/sdbridge/cue/go": self._go,
            "/sdbridge/cue/next": self._next,
            "/sdbridge/cue/previous": self._previous,
            "/sdbridge/cue/stop": self._stop,
        }
        self._by_segment = {c.address + "/": c.address for c in COMMANDS if c.by_segment}

    def find(self, address: str) -> str | None:
        """The command that an address means, or None."""
        if address in self._by_address:
            return address
        if address.startswith("/sdbridge/morph/") and address.count("/") == 4:
            return "/sdbridge/morph"
        for start, command in self._by_segment.items():
            if address.startswith(start) and len(address) > len(start):
                return command
        return None

    def run(self, address: str, args: Sequence[Argument], sender: Address) -> str:
        """Do it; the answer is what the log says beside "ok".

        Raises SdbridgeError, OscUsageError or OscRefusedError with the reason, Released for a button let go.
        """
        command = self.find(address)
        if command is None:
            raise OscUsageError(f"there is no command {address[:80]}")
        given = list(args)
        if command != address:
            segments = address[len(command) + 1 :]
            if command == "/sdbridge/morph":
                given = [*segments.split("/"), *given]
            else:  # a button: its name is in the address, its argument says pressed or released
                _check_pressed(given[:1])
                given = [segments, *given[1:]]
        return self._by_address[command](given, sender)

    # --- who hears ---

    def _subscribe(self, args: list[Argument], sender: Address) -> str:
        numbers = [one for one in args if not isinstance(one, str)]
        texts = [one for one in args if isinstance(one, str)]
        if len(numbers) > 2 or len(texts) > 1:
            raise OscUsageError("subscribe [port] [prefix] [seconds]")
        port = _whole(numbers, 0, 0, "subscribe [port] [prefix] [seconds]")
        seconds = _seconds(numbers[1]) if len(numbers) > 1 else DEFAULT_TTL_S
        self._subscriptions.add(sender, port, texts[0] if texts else "", seconds)
        return ""

    def _unsubscribe(self, args: list[Argument], sender: Address) -> str:
        self._subscriptions.remove(sender, _whole(args, 0, 0, "unsubscribe [port]"))
        return ""

    def _refresh(self, args: list[Argument], sender: Address) -> str:
        prefix = next((a for a in args if isinstance(a, str)), "")
        self._subscriptions.ask_dump(sender, prefix)
        return ""

    def _normalized(self, args: list[Argument], sender: Address) -> str:
        on = not args or bool(_whole(args, 0, 1, "normalized 0|1"))
        self._subscriptions.set_normalized(sender, on)
        return "numbers are 0 to 1 from now on" if on else "numbers are as they are from now on"

    def _ping(self, args: list[Argument], sender: Address) -> str:
        self._reply(encode_message("/sdbridge/pong", args), sender)
        return ""

    def _reply(self, packet: bytes, sender: Address) -> None:
        for target in self._subscriptions.reply_to(sender):
            self._send(packet, target)

    # --- presets ---

    def _recall(self, args: list[Argument], sender: Address) -> str:
        if not args:
            raise OscUsageError("preset/recall name|number [seconds] [easing]")
        if _is_zero(args[0]):
            raise Released
        seconds = _seconds(args[1]) if len(args) > 1 else None
        easing = str(args[2]) if len(args) > 2 else ""
        return _said(self._show.recall(_name(args[0]), seconds, easing, _source(sender)))

    def _save(self, args: list[Argument], sender: Address) -> str:
        if not args:
            raise OscUsageError("preset/save name")
        preset = self._show.save(_words(args))
        return f"preset {preset.number} in {preset.file}"

    def _rename(self, args: list[Argument], sender: Address) -> str:
        if len(args) != 2:
            raise OscUsageError("preset/rename name|number new-name")
        self._show.rename(_name(args[0]), _words(args[1:]))
        return ""

    def _delete(self, args: list[Argument], sender: Address) -> str:
        if not args:
            raise OscUsageError("preset/delete name|number")
        if _is_zero(args[0]):
            raise Released
        self._show.delete(_name(args[0]))
        return ""

    def _list(self, args: list[Argument], sender: Address) -> str:
        presets = self._show.list()
        for preset in presets:
            self._reply(encode_message("/sdbridge/preset/list", (preset.number, preset.name)), sender)
        self._reply(encode_message("/sdbridge/preset/count", (len(presets),)), sender)
        return ""

    def _morph_to(self, args: list[Argument], sender: Address) -> str:
        if len(args) == 3:
            self._morph = (_name(args[0]), _name(args[1]))
        elif len(args) != 1 or self._morph is None:
            raise OscUsageError("morph a b position (the names may be left out once they were given)")
        position = args[-1]
        if isinstance(position, str | bytes) or position is None:
            raise OscUsageError("morph a b position: the position is a number from 0 to 1")
        return _said(self._show.morph(*self._morph, position, _source(sender)))

    # --- cues and fades ---

    def _go(self, args: list[Argument], sender: Address) -> str:
        if args and _is_zero(args[0]):
            raise Released
        return _said(self._show.go(_name(args[0]) if args else None, _source(sender)))

    def _next(self, args: list[Argument], sender: Address) -> str:
        _check_pressed(args)
        return _said(self._show.next(_source(sender)))

    def _previous(self, args: list[Argument], sender: Address) -> str:
        _check_pressed(args)
        return _said(self._show.previous(_source(sender)))

    def _stop(self, args: list[Argument], sender: Address) -> str:
        _check_pressed(args)
        self._show.stop_all()
        return ""

    def _fade(self, args: list[Argument], sender: Address) -> str:
        if not 3 <= len(args) <= 4 or not isinstance(args[0], str):
            raise OscUsageError("fade parameter target seconds [easing]")
        value = self._show.store.table.find(args[0]).coerce(args[1])
        easing = str(args[3]) if len(args) > 3 else "linear"
        self._show.fade({args[0]: value}, _seconds(args[2]), easing, _source(sender))
        return ""


def _check_pressed(args: Sequence[Argument]) -> None:
    """A button sends 0 when it is let go; that must never fire."""
    if args and _is_zero(args[0]):
        raise Released


def _is_zero(value: Argument) -> bool:
    return isinstance(value, bool | int | float) and value < 0.5


def _whole(args: Sequence[Argument], at: int, default: int, usage: str) -> int:
    if len(args) <= at:
        return default
    value = args[at]
    if not isinstance(value, bool | int | float) or value != value or abs(value) > 2**31:
        raise OscUsageError(usage)
    return int(value)


def _seconds(value: Argument) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    try:
        return float(value or "")
    except (ValueError, TypeError):
        raise SdbridgeError("SDB-FADE-SECONDS", f"a fade takes seconds, not {str(value)[:40]!r}") from None


def _name(value: Argument) -> NameOrNumber:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise OscUsageError("a preset or cue goes by name or number")
    return value


def _words(args: Sequence[Argument]) -> str:
    """Max and Pure Data send a name of several words as several symbols."""
    return " ".join(format(a, "g") if isinstance(a, float) else str(a) for a in args)


def _source(sender: Address) -> str:
    return f"{sender[0]}:{sender[1]}"


def _said(outcome: Outcome) -> str:
    """What had to be left out, if anything."""
    return "; ".join(one.message for one in outcome.rejected[:3])
