"""The line to the daemon: one UDP socket, a subscription kept alive, and the heartbeat watched.

Nothing here blocks: the socket is non-blocking, and a host name is looked up in a thread that touches
nothing of TouchDesigner. Nothing here raises: what goes wrong stands in ``problem`` for the Status.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence

from .osc_codec import LARGEST_BUNDLE, Argument, Message, OscError, decode, encode_bundles, encode_message

HEARTBEAT_S = 1.0  # how often the daemon beats
LATE_S = 2.0  # how late a beat may be before the daemon counts as gone
TTL_S = 10  # of the subscription; renewed long before, and often while nothing is heard
RENEW_S = 2.0
RENEW_LOST_S = 0.5
MOST_DATAGRAMS = 256  # a frame reads at most so many: a flood must not stop TouchDesigner
HEARTBEAT = "/sdbridge/status/heartbeat"

Resolver = Callable[[str], str]


def look_up(host: str) -> str:
    """The first IPv4 address of a host name. May take seconds: never call it from a cook."""
    return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0])


class Link:
    """One daemon, as heard and spoken to. ``now`` is always passed in, in seconds."""

    def __init__(self, resolver: Resolver = look_up) -> None:
        self._resolver = resolver
        self._socket: socket.socket | None = None
        self._wanted: tuple[str, int, int] | None = None
        self._ip = ""
        self._looking_up: threading.Thread | None = None
        self._looked_up: tuple[str, str, str] | None = None  # host, ip, what went wrong
        self._renew_at = 0.0
        self._opened_at = 0.0
        self._last_beat_at: float | None = None
        self._beat = 0
        self.problem = ""
        self.note = ""
        self._died = False  # its port was found closed, so that whoever beats next is another one
        self.restarts = 0  # times that another daemon answered where one was before
        self.datagrams_sent = 0
        self.undecodable = 0

    # --- opening and closing ---

    def open(self, host: str, port: int, local_port: int, now: float) -> None:
        """Speak to this daemon from now on. The same place as before changes nothing."""
        wanted = (host.strip(), port, local_port)
        if wanted == self._wanted:
            return
        self.close()
        self._wanted = wanted
        self._opened_at = now
        self._start_look_up(wanted[0])

    def close(self) -> None:
        """End the subscription and let go of the socket; ``open`` begins anew."""
        if self._socket is not None:
            self.send([("/sdbridge/unsubscribe", ())])
            self._socket.close()
        self._socket = None
        self._wanted = None
        self._ip = ""
        self._renew_at = 0.0
        self._last_beat_at = None
        self._beat = 0
        self._died = False
        self.problem = self.note = ""

    @property
    def is_open(self) -> bool:
        return self._wanted is not None

    @property
    def place(self) -> str:
        return f"{self._wanted[0]}:{self._wanted[1]}" if self._wanted else "nowhere"

    @property
    def local_port(self) -> int:
        """The port that answers come to; 0 without a socket."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    # --- once a frame ---

    def tick(self, now: float) -> None:
        """Keep the subscription alive."""
        if self._wanted is None:
            return
        if self._socket is None:
            if now < self._renew_at:
                return
            if not self._connect():
                self._renew_at = now + (RENEW_LOST_S if self.problem else 0.0)
                return
        if now >= self._renew_at:
            self._renew_at = now + (RENEW_S if self.alive(now) else RENEW_LOST_S)
            self.send([("/sdbridge/subscribe", (0, PREFIX_ALL, TTL_S))])

    def receive(self, now: float) -> list[Message]:
        """What came since the last frame, oldest first."""
        messages: list[Message] = []
        for _ in range(MOST_DATAGRAMS):
            packet = self._datagram()
            if packet is None:
                break
            try:
                messages += decode(packet)
            except OscError:
                self.undecodable += 1
        for address, args in messages:
            if address == HEARTBEAT and args and isinstance(args[0], int):
                if self._beat and (self._died or args[0] < self._beat):
                    self.restarts += 1
                self._died = False
                self._beat = args[0]
                self._last_beat_at = now
                self.problem = ""
        return messages

    def send(self, messages: Sequence[tuple[str, Sequence[Argument]]]) -> bool:
        """All of it in as few bundles as hold it; a lone message goes as it is. False if it did not go."""
        packets = [encode_message(address, args) for address, args in messages]
        if self._socket is None or not packets:
            return False
        sent = [self._put(p) for p in (packets if len(packets) == 1 else encode_bundles(packets))]
        return all(sent)

    def alive(self, now: float) -> bool:
        """Whether the daemon's heartbeat is on time, give or take LATE_S."""
        return self._last_beat_at is not None and now - self._last_beat_at <= HEARTBEAT_S + LATE_S

    def lose(self, problem: str) -> None:
        """The daemon is known to be gone: do not wait for its heartbeat to be late."""
        self.problem = problem
        self._last_beat_at = None
        self._died = True

    @property
    def heartbeat(self) -> int:
        return self._beat

    # --- below ---

    def _start_look_up(self, host: str) -> None:
        try:
            self._ip = str(ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host))
            return
        except ValueError:
            pass
        if not host:
            self.problem = "no host is given"
            return
        self._looked_up = None

        def work() -> None:
            try:
                self._looked_up = (host, self._resolver(host), "")
            except (OSError, UnicodeError) as error:
                self._looked_up = (host, "", str(error))

        self._looking_up = threading.Thread(target=work, name="sdbridge-look-up", daemon=True)
        self._looking_up.start()

    def _connect(self) -> bool:
        assert self._wanted is not None
        host, port, local_port = self._wanted
        if not self._ip and self._looked_up and self._looked_up[0] == host:
            _, self._ip, wrong = self._looked_up
            if wrong:
                self.problem = f"the host {host} is not found ({wrong})"
        if not self._ip:
            return False
        line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.setblocking(False)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        try:
            if local_port:
                try:
                    line.bind(("", local_port))
                except OSError as error:
                    self.note = f"feedback port {local_port} is taken ({_word(error)}); another is used"
            # Connected: only the daemon is heard, and a dead port answers with an error at once.
            line.connect((self._ip, port))
        except (OSError, OverflowError) as error:
            self.problem = f"{self.place} cannot be reached ({_word(error)})"
            line.close()
            return False
        self._socket = line
        return True

    def _datagram(self) -> bytes | None:
        if self._socket is None:
            return None
        try:
            return self._socket.recv(65_535)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._note_dead(error)
            return None

    def _put(self, packet: bytes) -> bool:
        assert self._socket is not None
        for _ in range(2):  # the first call may report the death that an earlier datagram met
            try:
                self._socket.send(packet)
                self.datagrams_sent += 1
                return True
            except (BlockingIOError, InterruptedError):
                self.note = "the network takes no more for the moment; a change was not sent"
                return False
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self.note = f"a message of {len(packet)} bytes is too large for this system's UDP"
                    return False
                self._note_dead(error)
        return False

    def _note_dead(self, error: OSError) -> None:
        refused = isinstance(error, ConnectionRefusedError | ConnectionResetError)
        if refused:
            self.lose(f"nothing listens on {self.place}")
        else:
            self.problem = f"{self.place} cannot be reached ({_word(error)})"


PREFIX_ALL = "/sdbridge"


def monotonic() -> float:
    """The clock that components run on; tests pass their own."""
    return time.monotonic()


def _word(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


__all__ = ["LARGEST_BUNDLE", "Link", "look_up", "monotonic"]
