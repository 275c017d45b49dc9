"""The OSC server: one thread that receives, applies, keeps dated bundles and tells subscribers."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from sdbridge.control.osc_input import OscInput
from sdbridge.control.osc_log import OscLogEntry
from sdbridge.control.osc_schedule import OscSchedule
from sdbridge.control.osc_tcp import OscTcp
from sdbridge.control.subscriptions import Address, Subscriptions
from sdbridge.control.view import BridgeView
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 * 1024 * 1024  # a burst of 30,000 messages passes whole where the system grants it
#: Packets wait here and not in the system's buffer, which overflows in silence: reading one takes a
#: fraction of judging it, so between a few judged all that came meanwhile is read.
_MOST_WAITING, _MOST_BYTES_WAITING = 65_536, 32_000_000
_JUDGED_BETWEEN_READS, _JUDGED_BETWEEN_FLUSHES = 128, 1_024
_LARGEST = 65_535


class OscServer:
    """OSC on UDP (and TCP if the config names a port), bound to this machine unless ``lan`` is on.

    Whatever comes in, the server goes on; ``log`` tells what became of the last messages. No message
    can make it wait: dated bundles are kept, patterns are bounded, sending never blocks.
    """

    def __init__(self, view: BridgeView, wall_s: Callable[[], float] = time.time) -> None:
        self._view = view
        self._closing = False
        self._udp: socket.socket | None = None
        self._tcp: OscTcp | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._thread: threading.Thread | None = None
        self._waiting: deque[tuple[bytes, Address]] = deque()
        self._waiting_bytes = 0
        self._received = 0
        self._unsent = 0
        self.subscriptions = Subscriptions(view.store, view.clock, view.status, self.send)
        self._input = OscInput(view, self.subscriptions, self.send, OscSchedule(view.clock, wall_s))

    @property
    def port(self) -> int:
        """The UDP port in use, which differs from the config's only if that is 0."""
        return 0 if self._udp is None else int(self._udp.getsockname()[1])

    @property
    def tcp_port(self) -> int:
        """The port of OSC over TCP, 0 if there is none."""
        return self._tcp.port if self._tcp else 0

    def start(self) -> None:
        """Bind and begin. Raises SDB-OSC-PORT if a port is taken."""
        config = self._view.config
        host = "0.0.0.0" if config.lan else "127.0.0.1"
        self._udp = _bind_udp(host, config.port)
        self._selector.register(self._udp, selectors.EVENT_READ, self._read_udp)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._wake)
        if config.osc.tcp_port is not None:
            try:
                self._tcp = OscTcp(host, config.osc.tcp_port, self._selector, self._take)
            except OSError as error:
                raise SdbridgeError(
                    "SDB-OSC-PORT", f"TCP port {config.osc.tcp_port} for OSC cannot be had: {error}"
                ) from error
        for target in config.osc.feedback:
            self._add_fixed(target)
        self._thread = threading.Thread(target=self._run, name="osc", daemon=True)
        self._thread.start()
        log.info("OSC on UDP %s:%d", host, self.port)

    def close(self) -> None:
        """Stop the thread and give the ports back. May be called twice."""
        self._closing = True
        if self._thread is not None:
            self._wake_in.send(b"x")
            self._thread.join(timeout=5)
            self._thread = None
        self.subscriptions.close()
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    @property
    def log(self) -> Sequence[OscLogEntry]:
        """The last 200 messages with their verdicts, oldest first."""
        return self._input.log.entries()

    @property
    def counts(self) -> dict[str, int]:
        """Packets received, verdicts, dated bundles waiting and late, clients, answers not sent."""
        return {
            "packets": self._received,
            **{
                verdict: self._input.log.counts[verdict]
                for verdict in ("ok", "unknown", "invalid", "ignored")
            },
            "late": self._input.schedule.late,
            "waiting": len(self._input.schedule),
            "clients": len(self.subscriptions),
            "unsent": self._unsent,
        }

    def send(self, packet: bytes, target: Address) -> None:
        """One packet out, over TCP to a connected peer, else by UDP; dropped and counted if it cannot go."""
        if self._tcp is not None and self._tcp.send(packet, target):
            return
        if self._udp is None:
            return
        try:
            self._udp.sendto(packet, target)
        except OSError:
            self._unsent += 1

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._wait_s()):
                key.data()
            try:
                self._judge_waiting()
                self._input.take_due()
                self._input.apply()
                self._input.log.flush()
                self.subscriptions.flush()
            except Exception:  # edge: control; a fault in a subscriber must not end OSC
                log.exception("OSC goes on after a fault")

    def _wait_s(self) -> float | None:
        if self._waiting:
            return 0.0
        waits = [
            w for w in (self._input.schedule.next_in_s(), self.subscriptions.next_in_s()) if w is not None
        ]
        if self._input.log.held_back:
            waits.append(1.0)
        return min(waits) if waits else None

    def _read_udp(self) -> None:
        assert self._udp is not None
        while len(self._waiting) < _MOST_WAITING and self._waiting_bytes < _MOST_BYTES_WAITING:
            try:
                packet, sender = self._udp.recvfrom(_LARGEST)
            except OSError:  # nothing more to read; Windows also reports an earlier answer that found nobody
                return
            self._waiting.append((packet, (str(sender[0]), int(sender[1]))))
            self._waiting_bytes += len(packet)

    def _judge_waiting(self) -> None:
        for count in range(min(len(self._waiting), _JUDGED_BETWEEN_FLUSHES)):
            packet, sender = self._waiting.popleft()
            self._waiting_bytes -= len(packet)
            self._take(packet, sender)
            if count % _JUDGED_BETWEEN_READS == _JUDGED_BETWEEN_READS - 1:
                self._read_udp()

    def _take(self, packet: bytes, sender: Address) -> None:
        self._received += 1
        self._input.take(packet, sender)

    def _wake(self) -> None:
        self._wake_out.recv(64)

    def _add_fixed(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        try:
            self.subscriptions.add_fixed((socket.gethostbyname(host), int(port)))
        except (OSError, ValueError) as error:
            log.warning("osc.feedback %s cannot be reached and is left out: %s", target, error)


def _bind_udp(host: str, port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if sys.platform == "win32":  # or a second program could take our messages away unnoticed
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        udp.setblocking(False)
        udp.bind((host, port))
    except OSError as error:
        udp.close()
        why = "another program has it" if error.errno == errno.EADDRINUSE else str(error)
        raise SdbridgeError("SDB-OSC-PORT", f"UDP port {port} on {host} cannot be had: {why}") from error
    return udp
