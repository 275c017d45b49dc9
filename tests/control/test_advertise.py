"""Announced by zeroconf: found by another library in this process's network, and by avahi-browse."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sdbridge.config import Config
from sdbridge.control.advertise import Advertisement
from tests.control.fake_view import FakeView
from tests.namespaces import why_not

NEEDED = ("dbus-daemon", "avahi-daemon", "avahi-browse")


def test_the_services_are_found_on_this_machine_and_taken_back(tmp_path: Path) -> None:
    from zeroconf import ServiceBrowser, Zeroconf

    seen: list[tuple[str, int, list[str]]] = []

    class Listener:
        def add_service(self, zeroconf: Zeroconf, kind: str, name: str) -> None:
            info = zeroconf.get_service_info(kind, name)
            if info is not None and "stage-left-test" in name:
                seen.append((kind, info.port or 0, info.parsed_addresses()))

        update_service = remove_service = lambda self, *arguments: None

    advertisement = Advertisement(FakeView(tmp_path, Config(port=9124, name="stage-left-test")), after_s=0.0)
    advertisement.start()
    if not advertisement.announced.wait(20):
        advertisement.close()
        pytest.skip("this machine has no multicast on its loopback")
    zeroconf = Zeroconf(interfaces=["127.0.0.1"])
    try:
        ServiceBrowser(zeroconf, ["_oscjson._tcp.local.", "_osc._udp.local."], Listener())  # type: ignore[arg-type]
        for _ in range(200):
            if len(seen) >= 2:
                break
            time.sleep(0.05)
    finally:
        zeroconf.close()
        advertisement.close()
    assert sorted(seen) == [
        ("_osc._udp.local.", 9124, ["127.0.0.1"]),
        ("_oscjson._tcp.local.", 9124, ["127.0.0.1"]),
    ]


def test_closing_at_once_and_twice_is_harmless(tmp_path: Path) -> None:
    advertisement = Advertisement(FakeView(tmp_path, Config(port=9125)))
    advertisement.start()
    advertisement.close()
    advertisement.close()


_IN_NAMESPACE = """
    set -e
    ip link set lo up
    ip link add veth0 type veth peer name veth1
    ip addr add 10.77.0.1/24 dev veth0
    ip link set veth0 up; ip link set veth1 up
    mount -t tmpfs none /run
    mkdir -p /run/dbus
    dbus-daemon --system --nopidfile --fork >/dev/null 2>&1
    avahi-daemon --no-drop-root --no-chroot --no-rlimits >/tmp/avahi.log 2>&1 &
    sleep 1
    "$1" -c "$2" &
    for i in 1 2 3 4 5 6 7 8; do
        sleep 1
        avahi-browse -rpt _oscjson._tcp > "$3"
        avahi-browse -rpt _osc._udp >> "$3"
        [ "$(grep -c '^=' "$3")" -ge 2 ] && break
    done
    kill %1 %2 2>/dev/null || true
"""

_ANNOUNCE = """
import pathlib, tempfile, time
from sdbridge.config import Config
from sdbridge.control.advertise import Advertisement
from tests.control.fake_view import FakeView
from tests.namespaces import why_not
view = FakeView(pathlib.Path(tempfile.mkdtemp()), Config(port=9126, name="stage right", lan=True, token="t"))
advertisement = Advertisement(view)
advertisement.start()
time.sleep(30)
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not(*NEEDED)), reason=why_not(*NEEDED))
def test_avahi_browse_lists_both_services(tmp_path: Path) -> None:
    found = tmp_path / "browse.txt"
    script = textwrap.dedent(_IN_NAMESPACE)
    subprocess.run(
        [
            "unshare",
            "-n",
            "-m",
            "-p",
            "-f",
            "--mount-proc",
            "bash",
            "-c",
            script,
            "bash",
            sys.executable,
            _ANNOUNCE,
            str(found),
        ],
        cwd=Path(__file__).parents[2],
        timeout=90,
        check=False,
    )
    lines = [line.split(";") for line in found.read_text().splitlines() if line.startswith("=")]
    assert {(line[4], line[7], line[8]) for line in lines} == {
        ("_oscjson._tcp", "10.77.0.1", "9126"),
        ("_osc._udp", "10.77.0.1", "9126"),
    }
