"""The OSC server on real sockets: hostile packets, large ones, TCP, taken ports, and foreign programs."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdbridge.clock import SystemClock
from sdbridge.config import Config, OscSection
from sdbridge.control.osc import RECEIVE_BUFFER, OscServer
from sdbridge.control.osc_decode import encode_message
from sdbridge.control.osc_tcp import OscFramingError, Unframer, frame
from sdbridge.errors import SdbridgeError
from tests.control.fake_view import FakeView
from tests.control.hostile import hostile_datagrams
from tests.control.osc_rig import read


class Client:
    """A UDP socket that talks to a server."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.socket.settimeout(1)

    def send(self, packet: bytes) -> None:
        self.socket.sendto(packet, self._to)

    def say(self, address: str, *args: object) -> None:
        self.send(encode_message(address, args, booleans=True))  # type: ignore[arg-type]

    def receive(self) -> list[tuple[str, object]]:
        return read(self.socket.recv(65_535))

    def round_trip(self, mark: object) -> None:
        """Wait until everything sent so far has been handled.

        Asks again where no answer comes: UDP may lose one, if what we subscribed to fills our own buffer.
        """
        for _ in range(20):
            self.say("/sdbridge/ping", mark)
            try:
                while not any(answer == ("/sdbridge/pong", mark) for answer in self.receive()):
                    pass
            except TimeoutError:
                continue
            return
        raise AssertionError(f"no answer to ping {mark!r}")


def real_view(folder: Path, config: Config | None = None) -> FakeView:
    return FakeView(folder, config, clock=SystemClock())  # type: ignore[arg-type]  # the real one serves as well


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    return real_view(tmp_path)


@pytest.fixture
def server(view: FakeView) -> Iterator[OscServer]:
    server = OscServer(view)
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: OscServer) -> Iterator[Client]:
    client = Client(server.port)
    yield client
    client.socket.close()


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for another process or thread, with an end that only a fault reaches."""
    for _ in range(2000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


def test_a_message_through_the_socket_changes_the_store(client: Client, view: FakeView) -> None:
    client.say("/sdbridge/strength", 0.25)
    client.round_trip("a")
    assert view.store.get("strength") == 0.25


def test_a_datagram_of_65507_bytes_arrives(client: Client, view: FakeView) -> None:
    text = "x" * 60_000
    packet = encode_message("/sdbridge/prompt", (text[:19_000],))
    head = b"#bundle\x00" + struct.pack(">Q", 1) + struct.pack(">i", len(packet)) + packet
    filler = 65_507 - len(head) - 4
    filler_message = encode_message("/sdbridge/negative_prompt", ("y" * (filler - 40),))
    filler_message += b"\x00" * (filler - len(filler_message))
    whole = head + struct.pack(">i", filler) + filler_message
    assert len(whole) == 65_507
    client.send(whole)
    client.round_trip("big")
    assert view.store.get("prompt") == text[:19_000]


@pytest.mark.timeout(60)
def test_the_hostile_packets_of_the_reference_harm_nothing(
    client: Client, server: OscServer, view: FakeView
) -> None:
    """Star patterns froze every thread for 46 s, bundles dated ahead blocked whole servers."""
    threads = threading.active_count()
    for packet in hostile_datagrams(0, 400, largest=65_507):
        client.send(packet)
        time.sleep(0)
    client.round_trip("alive")
    client.say("/sdbridge/delta", 0.125)
    client.round_trip("still")
    assert view.store.get("delta") == 0.125
    assert threading.active_count() == threads
    assert server.counts["invalid"] > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_hostile_datagrams(client: Client, server: OscServer, view: FakeView) -> None:
    import psutil

    view.show.save("precious")
    kept = view.show.presets.find("precious").values
    process = psutil.Process()
    resident = 0
    for n, packet in enumerate(hostile_datagrams(1, 100_000, largest=2_000)):
        client.send(packet)
        if n % 100 == 99:
            client.round_trip(n)
        if n == 20_000:
            resident = process.memory_info().rss
    assert server.counts["packets"] >= 100_000
    assert process.memory_info().rss - resident < 20_000_000, "memory stays where it was"
    assert view.show.presets.find("precious").values == kept
    until(lambda: server.counts["waiting"] == 0, "the bundles dated ahead were taken")
    client.say("/sdbridge/normalized", False)  # what was dated ahead may have left it on
    client.say("/sdbridge/delta", 0.125)
    client.round_trip("end")
    assert view.store.get("delta") == 0.125


def test_ten_thousand_messages_all_arrive(client: Client, server: OscServer, view: FakeView) -> None:
    fired = 0

    def count(change: object) -> None:
        nonlocal fired
        fired += len(change.triggers)  # type: ignore[attr-defined]

    view.store.subscribe(count)
    for n in range(10_000):
        client.say("/sdbridge/engine/reset", 1)
        if n % 200 == 199:
            client.round_trip(n)  # paced: no more in flight than any system's buffer holds
    assert fired == 10_000


def test_a_taken_port_is_one_clear_line(server: OscServer, tmp_path: Path) -> None:
    second = OscServer(real_view(tmp_path, Config(port=server.port)))
    with pytest.raises(
        SdbridgeError, match=f"SDB-OSC-PORT: UDP port {server.port} .* another program has it"
    ):
        second.start()
    second.close()


def test_a_taken_tcp_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = OscServer(real_view(tmp_path, Config(port=0, osc=OscSection(tcp_port=port))))
        with pytest.raises(SdbridgeError, match=f"SDB-OSC-PORT: TCP port {port}"):
            server.start()
        server.close()


def test_the_port_is_free_again_after_close(view: FakeView, tmp_path: Path) -> None:
    first = OscServer(view)
    first.start()
    port = first.port
    first.close()
    first.close()
    second = OscServer(real_view(tmp_path, Config(port=port)))
    second.start()
    assert second.port == port
    second.close()


def test_only_this_machine_is_served_unless_lan_is_on(tmp_path: Path) -> None:
    for lan, host in ((False, "127.0.0.1"), (True, "0.0.0.0")):
        server = OscServer(real_view(tmp_path, Config(port=0, lan=lan, token="t")))
        server.start()
        assert server._udp is not None and server._udp.getsockname()[0] == host
        server.close()


def test_a_fault_in_a_subscriber_does_not_end_osc(client: Client, view: FakeView) -> None:
    def broken(change: object) -> None:
        raise ZeroDivisionError

    unsubscribe = view.store.subscribe(broken)
    client.say("/sdbridge/strength", 0.1)
    client.round_trip(1)
    unsubscribe()
    client.say("/sdbridge/strength", 0.2)
    client.round_trip(2)
    assert view.store.get("strength") == pytest.approx(0.2)


# --- TCP ---


@pytest.fixture
def tcp_server(tmp_path: Path) -> Iterator[tuple[OscServer, FakeView]]:
    view = real_view(tmp_path, Config(port=0, osc=OscSection(tcp_port=0)))
    server = OscServer(view)
    server.start()
    yield server, view
    server.close()


@pytest.mark.parametrize("slip", [False, True])
def test_osc_over_tcp_in_both_framings(tcp_server: tuple[OscServer, FakeView], slip: bool) -> None:
    server, view = tcp_server
    text = "ÀÛ" * 9_000  # holds the bytes that SLIP must escape
    with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=20) as peer:
        stream = frame(encode_message("/sdbridge/prompt", (text,)), slip) + frame(
            encode_message("/sdbridge/ping", (1,)), slip
        )
        for at in range(0, len(stream), 1000):
            peer.sendall(stream[at : at + 1000])
        unframer, packets = Unframer(), []
        while not packets:
            packets = unframer.feed(peer.recv(65_536))
        assert read(packets[0]) == [("/sdbridge/pong", 1)]
    assert view.store.get("prompt") == text


def test_a_tcp_client_can_subscribe_over_its_own_connection(tcp_server: tuple[OscServer, FakeView]) -> None:
    server, view = tcp_server
    with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=20) as peer:
        peer.sendall(frame(encode_message("/sdbridge/subscribe", (0, "/sdbridge/strength", 60)), False))
        until(lambda: len(server.subscriptions) == 1, "the subscription")
        view.store.set("strength", 0.25)
        unframer, packets = Unframer(), []
        while not packets:
            packets = unframer.feed(peer.recv(65_536))
        assert ("/sdbridge/strength", 0.25) in read(packets[0])


@pytest.mark.parametrize(
    "stream", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\xff\xff", b"\xc0" + b"x" * 1_100_000]
)
def test_a_stream_that_is_no_osc_is_disconnected(
    tcp_server: tuple[OscServer, FakeView], stream: bytes
) -> None:
    server, _ = tcp_server
    with socket.create_connection(("127.0.0.1", server.tcp_port), timeout=20) as peer:
        try:
            peer.sendall(stream)
            assert peer.recv(10) == b""
        except ConnectionError:
            pass
    client = Client(server.port)
    client.round_trip("alive")
    client.socket.close()


@pytest.mark.parametrize("slip", [False, True])
def test_packets_come_out_whole_however_the_stream_is_cut(slip: bool) -> None:
    packets = [b"/a\x00\x00,\x00\x00\x00", b"/\xc0\xdb\xdc\xdd" * 5, b"/x" * 500]
    stream = b"".join(frame(packet, slip) for packet in packets)
    for size in (1, 2, 3, 7, 64, len(stream)):
        unframer = Unframer()
        found = [p for at in range(0, len(stream), size) for p in unframer.feed(stream[at : at + size])]
        assert found == packets


def test_a_length_beyond_reason_is_refused_at_once() -> None:
    with pytest.raises(OscFramingError, match="the most"):
        Unframer().feed(struct.pack(">I", 2_000_000))


# --- programs that others wrote ---


@pytest.mark.skipif(
    not shutil.which("oscsend") or not shutil.which("oscdump"), reason="needs Debian's liblo-tools"
)
def test_oscsend_moves_a_parameter_and_oscdump_sees_the_echo(
    server: OscServer, view: FakeView, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dump = tmp_path / "dump.txt"

    def oscsend(*arguments: str) -> None:
        subprocess.run(["oscsend", "127.0.0.1", str(server.port), *arguments], check=True, timeout=20)

    with (
        open(dump, "wb") as out,
        subprocess.Popen(["stdbuf", "-oL", "oscdump", str(port)], stdout=out) as oscdump,
    ):
        try:

            def subscribed() -> bool:
                oscsend("/sdbridge/subscribe", "isi", str(port), "/sdbridge", "60")
                time.sleep(0.05)
                return "heartbeat" in dump.read_text()

            until(subscribed, "oscdump hears the heartbeat")
            oscsend("/sdbridge/strength", "f", "0.25")
            oscsend("/sdbridge/seed", "h", "77")
            oscsend("/sdbridge/guidance_scale", "d", "1.5")
            oscsend("/sdbridge/output/freeze", "T")
            oscsend("/sdbridge/prompt", "s", "ein Füchslein")
            for line in (
                "/sdbridge/strength f 0.250000",
                "/sdbridge/seed i 77",
                "/sdbridge/guidance_scale f 1.5",
                "/sdbridge/output/freeze i 1",
                '/sdbridge/prompt s "ein Füchslein"',
                "/sdbridge/status/fps f 30.0",
            ):
                until(lambda line=line: line in dump.read_text(), line)
        finally:
            oscdump.kill()
    assert (view.store.get("strength"), view.store.get("seed"), view.store.get("output.freeze")) == (
        0.25,
        77,
        True,
    )
