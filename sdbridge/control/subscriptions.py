"""Who wants to hear of changes, and what each of them is told: one bundle a client every 33 ms."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from sdbridge.clock import Clock
from sdbridge.control.osc_decode import encode_bundles, encode_message
from sdbridge.parameters.addresses import HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.normalized import to_normalized
from sdbridge.parameters.parameter import Parameter, Value
from sdbridge.parameters.store import Change, ParameterStore
from sdbridge.status import Status

Address = tuple[str, int]
GATHER_S = 0.033
STATUS_S = 0.1
DEFAULT_TTL_S = 10
LONGEST_TTL_S = 3600
MOST_CLIENTS = 64
MOST_PREFIXES = 32
_MOST_NORMALIZED = 256
_NEVER = 1 << 62
#: On this machine datagrams of 8 KB pass everywhere; through a network none should be cut in pieces.
_LARGEST_LOCAL, _LARGEST_LAN = 8_192, 1_432


class OscRefusedError(ValueError):
    """A subscription that cannot be; the text says why."""


@dataclass
class _Client:
    """One place that hears of changes. ``sources`` are the sockets it is known to write from."""

    target: Address
    prefixes: dict[str, int] = field(default_factory=dict)  # prefix -> when it ends, monotonic ns
    sources: set[str] = field(default_factory=set)
    known: dict[str, Value] = field(default_factory=dict)  # status topics as told last
    dump: list[str] = field(default_factory=list)  # prefixes asked to be told whole
    normalized: bool = False

    def hears(self, address: str) -> bool:
        return any(under(address, prefix) for prefix in self.prefixes)


def under(address: str, prefix: str) -> bool:
    """Whether ``address`` is ``prefix`` or stands below it; an empty prefix or / is above everything."""
    prefix = prefix.rstrip("/")
    return not prefix or address == prefix or (address.startswith(prefix) and address[len(prefix)] == "/")


class Subscriptions:
    """The clients of one OSC server.

    ``on_change`` may be called from any thread and only notes the change; everything else belongs to
    the server's thread, which calls ``flush`` whenever ``next_in_s`` is over.
    """

    def __init__(
        self,
        store: ParameterStore,
        clock: Clock,
        status: Callable[[], Status],
        send: Callable[[bytes, Address], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._status = status
        self._send = send
        self._clients: dict[Address, _Client] = {}
        self._changes: deque[Change] = deque()
        self._flush_at_ns = 0
        self._status_at_ns = 0
        self._beat = 0
        self._beat_at_ns = 0
        self._normalized: dict[Address, None] = {}  # senders that speak 0 to 1, oldest first
        self.last_refusal = ""
        self._unsubscribe = store.subscribe(self.on_change)

    def close(self) -> None:
        self._unsubscribe()
        self._clients.clear()

    def __len__(self) -> int:
        return len(self._clients)

    def clients(self) -> list[tuple[str, tuple[str, ...]]]:
        """``("ip:port", prefixes)`` of everyone who hears of changes, for the page."""
        return [
            (f"{ip}:{port}", tuple(client.prefixes)) for (ip, port), client in tuple(self._clients.items())
        ]

    # --- who ---

    def add(self, sender: Address, port: int = 0, prefix: str = "", ttl_s: float = DEFAULT_TTL_S) -> None:
        """Begin or renew. Raises OscRefusedError."""
        target = (sender[0], port or sender[1])
        if not 0 < target[1] < 65536:
            raise OscRefusedError(f"port {port} is not between 1 and 65535")
        if prefix and not prefix.startswith("/"):
            raise OscRefusedError(f"the prefix {prefix[:40]!r} must begin with /")
        if not _is_near(sender[0]):
            raise OscRefusedError(f"answers are sent to private networks only, not to {sender[0]}")
        if not ttl_s > 0:
            raise OscRefusedError(f"a subscription of {ttl_s:g} s is none")
        client = self._clients.get(target)
        if client is None:
            if len(self._clients) >= MOST_CLIENTS:
                raise OscRefusedError(f"{MOST_CLIENTS} clients are subscribed already")
            if not self._clients:
                self._changes.clear()  # left from a client that went; what came since was not noted
            client = self._clients[target] = _Client(target)
        if prefix not in client.prefixes:
            if len(client.prefixes) >= MOST_PREFIXES:
                raise OscRefusedError(f"this client has {MOST_PREFIXES} prefixes already")
        client.known.clear()  # datagrams get lost: each renewal tells the status topics again
        if client.prefixes.get(prefix) != _NEVER:
            client.prefixes[prefix] = self._clock.now_ns() + int(min(ttl_s, LONGEST_TTL_S) * 1e9)
        if len(client.sources) > 64:
            client.sources.clear()
        client.sources |= {source_of(sender), source_of(target)}
        client.normalized = client.normalized or sender in self._normalized

    def add_fixed(self, target: Address) -> None:
        """A client from the config: it hears everything, always. Its whole machine counts as the writer."""
        sources = {source_of(target)} if _is_local(target[0]) else {f"osc:{target[0]}"}
        self._clients[target] = _Client(target, {"": _NEVER}, sources)

    def remove(self, sender: Address, port: int = 0) -> None:
        """End one target, or everything that this sender has begun."""
        for target, client in list(self._clients.items()):
            mine = source_of(sender) in client.sources or (target[0] == sender[0] and port == target[1])
            if mine and port in (0, target[1]) and _NEVER not in client.prefixes.values():
                del self._clients[target]

    def reply_to(self, sender: Address) -> tuple[Address, ...]:
        """Where answers for this sender go: back, and to its subscription if that is elsewhere.

        Many programs listen on another port than the one they send from.
        """
        if not _is_near(sender[0]):
            raise OscRefusedError(f"answers are sent to private networks only, not to {sender[0]}")
        source = source_of(sender)
        mine = [client.target for client in self._clients.values() if source in client.sources]
        return (sender,) if not mine or mine[-1] == sender else (sender, mine[-1])

    def is_normalized(self, sender: Address) -> bool:
        """Whether this sender's numbers are 0 to 1."""
        return sender in self._normalized

    def set_normalized(self, sender: Address, on: bool) -> None:
        """Numbers from this sender and to its subscriptions are 0 to 1, or as they are."""
        self._normalized.pop(sender, None)
        if on:
            if len(self._normalized) >= _MOST_NORMALIZED:
                self._normalized.pop(next(iter(self._normalized)))
            self._normalized[sender] = None
        source = source_of(sender)
        for client in self._clients.values():
            if source in client.sources:
                client.normalized = on

    def ask_dump(self, sender: Address, prefix: str = "") -> None:
        """Tell everything under ``prefix`` at the next flush; a sender without subscription gets it once."""
        target = self.reply_to(sender)[-1]
        client = self._clients.get(target)
        if client is None:
            self.send_dump(_Client(target), prefix)
        else:
            client.dump.append(prefix)

    # --- what ---

    def on_change(self, change: Change) -> None:
        if self._clients and change.values:
            self._changes.append(change)

    def next_in_s(self) -> float | None:
        """Seconds until ``flush`` is due; None while nobody listens."""
        if not self._clients:
            return None
        return max(self._flush_at_ns - self._clock.now_ns(), 0) / 1e9

    def flush(self) -> None:
        """Tell every client what is new for it, if the time has come."""
        now = self._clock.now_ns()
        if now < self._flush_at_ns or not self._clients:
            return
        self._flush_at_ns = now + int(GATHER_S * 1e9)
        self._expire(now)
        merged: dict[str, tuple[Value, str]] = {}
        for _ in range(len(self._changes)):
            change = self._changes.popleft()
            for name, value in change.values.items():
                merged[name] = (value, change.source)
        status: Mapping[str, Value] = {}
        if now >= self._status_at_ns:
            self._status_at_ns = now + int(STATUS_S * 1e9)
            status = self._topics(now)
        rendered: dict[tuple[str, bool], bytes] = {}
        for client in tuple(self._clients.values()):
            self._tell(client, merged, status, rendered)

    def _tell(
        self,
        client: _Client,
        merged: Mapping[str, tuple[Value, str]],
        status: Mapping[str, Value],
        rendered: dict[tuple[str, bool], bytes],
    ) -> None:
        for prefix in client.dump:
            self.send_dump(client, prefix)
        client.dump.clear()
        messages: list[bytes] = []
        for name, (value, source) in merged.items():
            if _wrote(client, source):
                continue
            row = self._store.table.rows[name]
            for address in addresses_of(row):
                if not client.hears(address):
                    continue
                key = (address, client.normalized)
                if key not in rendered:
                    shown = to_normalized(row, value) if client.normalized else value
                    rendered[key] = encode_message(address, (shown,))
                messages.append(rendered[key])
        for address, value in status.items():
            if client.known.get(address) != value and client.hears(address):
                client.known[address] = value
                messages.append(encode_message(address, (value,)))
        self._send_all(messages, client.target)

    def send_dump(self, client: _Client, prefix: str) -> None:
        """Every parameter and topic under a prefix, as they stand."""
        values, _ = self._store.snapshot()
        messages = [
            encode_message(
                address, (to_normalized(row, values[name]) if client.normalized else values[name],)
            )
            for name, row in self._store.table.rows.items()
            if name in values
            for address in addresses_of(row)
            if under(address, prefix)
        ]
        topics = self._topics(self._clock.now_ns())
        messages += [encode_message(a, (v,)) for a, v in topics.items() if under(a, prefix)]
        self._send_all(messages, client.target)

    def _topics(self, now: int) -> dict[str, Value]:
        if now >= self._beat_at_ns:
            self._beat += 1
            self._beat_at_ns = now + 1_000_000_000
        status = self._status()
        topics: dict[str, Value] = {HEARTBEAT: self._beat}
        topics.update((topic.address, topic.value(status)) for topic in STATUS_TOPICS)
        if self.last_refusal and not status.errors:
            topics["/sdbridge/status/error"] = self.last_refusal
        return topics

    def _expire(self, now: int) -> None:
        for target, client in list(self._clients.items()):
            for prefix in [prefix for prefix, ends in client.prefixes.items() if ends <= now]:
                del client.prefixes[prefix]
            if not client.prefixes:
                del self._clients[target]
        if not self._clients:
            self._changes.clear()

    def _send_all(self, messages: Iterable[bytes], target: Address) -> None:
        largest = _LARGEST_LOCAL if _is_local(target[0]) else _LARGEST_LAN
        for datagram in encode_bundles(list(messages), largest):
            self._send(datagram, target)


def addresses_of(row: Parameter) -> tuple[str, ...]:
    """Where a parameter is heard: a fader bound to ``/sdbridge/seed`` follows as well as one on slot 1."""
    return (row.address, *("/sdbridge/" + alias.replace(".", "/") for alias in row.aliases))


def source_of(sender: Address) -> str:
    """How the store knows this socket."""
    return f"osc:{sender[0]}:{sender[1]}"


def _wrote(client: _Client, source: str) -> bool:
    return source in client.sources or source.rpartition(":")[0] in client.sources


def _is_local(ip: str) -> bool:
    return ip.startswith("127.")


def _is_near(ip: str) -> bool:
    """Loopback, private or link-local: a forged sender cannot make us shout at the internet."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_link_local
