"""NDI by name between two machines made of namespaces, with avahi: found, lost, found again."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbridge.textures.ndi import library
from tests.namespaces import why_not

PEERS = Path(__file__).parent / "peers"
able, why = library.available()
missing = why_not("avahi-daemon", "dbus-daemon")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not able, reason=why),
    pytest.mark.skipif(bool(missing), reason=missing),
]


class Machine:
    """A process in namespaces of its own, at the end of a cable."""

    def __init__(self, number: int, interface: str, *command: object) -> None:
        self.interface = interface
        self.space = ""  # its network namespace, once it has left ours
        script = [str(PEERS / "namespace.sh"), f"10.98.0.{number}", f"sdb-test-{number}", interface]
        self.process = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--mount",
                "--uts",
                "--propagation",
                "private",
                "sh",
                *script,
                *map(str, command),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float = 60.0) -> str:
        """The next line; readline alone would wait for ever."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"nothing was said in {seconds} s; exit code {self.process.poll()}"
        line = self.process.stdout.readline()
        assert line, f"it ended with exit code {self.process.wait(10)}"
        return line.strip()

    def end(self) -> None:
        members = subprocess.run(
            ["ps", "-o", "pid=", "-s", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        for member in members.stdout.split():
            subprocess.run(["kill", "-9", member], check=False, stderr=subprocess.DEVNULL)
        self.process.communicate()


def end_daemons_of(machine: Machine) -> None:
    """Daemons leave the session but not the network namespace: end those found in it, by their ids."""
    space = machine.space
    if not space:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != machine.process.pid:
            try:
                if os.readlink(entry / "ns/net") == space:
                    os.kill(int(entry.name), 9)
            except OSError:
                continue


@pytest.fixture
def machines() -> Iterator:
    started: list[Machine] = []

    def connect(first: tuple, second: tuple) -> tuple[Machine, Machine]:
        mark = f"{os.getpid() % 10000}"
        pair = Machine(1, f"sa{mark}", *first), Machine(2, f"sb{mark}", *second)
        started.extend(pair)
        deadline = time.monotonic() + 60
        while any(
            os.readlink(f"/proc/{one.process.pid}/ns/net") == os.readlink("/proc/self/ns/net") for one in pair
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for one in pair:
            one.space = os.readlink(f"/proc/{one.process.pid}/ns/net")
        done = subprocess.run(
            ["ip", "link", "add", pair[0].interface, "netns", str(pair[0].process.pid), "type", "veth",
             "peer", "name", pair[1].interface, "netns", str(pair[1].process.pid)],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no cable can be made between namespaces here: {done.stderr.strip()}")
        return pair

    yield connect
    for machine in started:
        end_daemons_of(machine)
        machine.end()


def python(script: str, *arguments: object) -> tuple:
    return (sys.executable, PEERS / script, *arguments)


def next_frame(viewer: Machine) -> dict:
    while True:
        seen = json.loads(viewer.hear())
        if seen.get("number") is not None:
            return seen


def test_a_source_is_found_by_name_and_again_after_a_restart_on_another_port(machines) -> None:
    keeper, viewer = machines(
        python("ndi_keeper.py", "stage camera", 512, 384, 30), python("ndi_by_name.py", "stage camera")
    )
    assert json.loads(viewer.hear()) == {"diagnosis": []}, "avahi is there, so nothing is complained of"
    keeper.say("start")
    assert "started SDB-TEST-1 (stage camera)" in keeper.hear()
    first = next_frame(viewer)
    assert "SDB-TEST-1 (stage camera)" in first["line"] and "10.98.0.1" in first["line"]
    took = []
    for _ in range(2):
        keeper.say("kill")
        assert keeper.hear() == "killed"
        while "lost" not in json.loads(viewer.hear()):
            pass
        keeper.say("start")
        assert keeper.hear().startswith("started")
        up = time.monotonic()
        took.append(next_frame(viewer)["at"] - up)
    assert min(took) < 10, f"{took}: pointing the old receiver at the new address took 15 s"
    print(f"reconnected by name {took[0]:.2f} s and {took[1]:.2f} s after the source was up again")


def test_another_binding_sees_our_output_by_name(machines) -> None:
    pytest.importorskip("cyndilib")
    sender, viewer = machines(
        python("our_ndi_sender.py", "sdbridge show", "SDB-TEST-2 (backup)"),
        python("cyndilib_viewer.py", "sdbridge show"),
    )
    assert sender.hear() == "SDB-TEST-1 (sdbridge show)"
    seen = [json.loads(viewer.hear()) for _ in range(20)]
    numbers = [one["number"] for one in seen]
    assert numbers == sorted(numbers) and seen[-1]["size"] == [512, 384]
    assert numbers[-1] - numbers[0] <= 40, "at most every other frame is missed by a polling viewer"


def test_receivers_turn_to_the_failover_source_when_we_die(machines) -> None:
    pytest.importorskip("cyndilib")
    both = (
        f"tail -f /dev/null | {sys.executable} {PEERS / 'ndi_source.py'} backup 256 192 30 >/dev/null & "
        f"exec {sys.executable} {PEERS / 'cyndilib_viewer.py'} 'sdbridge show'"
    )
    sender, viewer = machines(
        python("our_ndi_sender.py", "sdbridge show", "SDB-TEST-2 (backup)"), ("sh", "-c", both)
    )
    assert sender.hear() == "SDB-TEST-1 (sdbridge show)"
    assert json.loads(viewer.hear())["size"] == [512, 384]
    os.kill(sender.process.pid, 9)
    while json.loads(viewer.hear())["size"] != [256, 192]:
        pass


def test_a_group_is_seen_by_its_members_only(machines) -> None:
    looker, _other = machines(python("ndi_groups.py"), ("sleep", "60"))
    seen = json.loads(looker.hear())
    assert seen == {"": ["open"], "stage": ["closed"], "public,stage": ["closed", "open"]}
