"""One bridge per port: found while it runs, forgotten when it is gone, however it went."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.instance import Instance, find_running

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from sdbridge.instance import Instance
    with Instance(9123, "other", Path(sys.argv[1])):
        print("ready", flush=True)
        sys.stdin.read()
""")


@pytest.fixture
def other(tmp_path):
    """Another process that runs a bridge, as far as the lock goes."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_second_start_finds_the_first_and_says_so(tmp_path, other):
    with pytest.raises(SdbridgeError) as caught, Instance(9123, "mine", tmp_path):
        pass
    assert caught.value.code == "SDB-INSTANCE-RUNNING"
    assert str(other.pid) in str(caught.value) and "http://127.0.0.1:9123/" in str(caught.value)
    running = find_running(9123, tmp_path)
    assert running is not None and (running.pid, running.name) == (other.pid, "other")


def test_another_port_is_free(tmp_path, other):
    with Instance(9124, "mine", tmp_path):
        assert find_running(9124, tmp_path).pid == os.getpid()
        assert find_running(9123, tmp_path).pid == other.pid
    assert find_running(9124, tmp_path) is None


def test_a_bridge_that_was_killed_is_not_in_the_way(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / "9123.json").exists()  # it could not tidy up
    assert find_running(folder=tmp_path) is None
    with Instance(9123, "mine", tmp_path):
        assert find_running(folder=tmp_path).name == "mine"


def test_the_discovery_file_holds_no_more_than_is_needed(tmp_path):
    with Instance(9125, "mine", tmp_path):
        about = json.loads((tmp_path / "9125.json").read_text())
    assert sorted(about) == ["name", "pid", "port", "started", "version"]


def test_a_broken_discovery_file_is_no_running_bridge(tmp_path):
    (tmp_path / "9000.json").write_text('{"pid": ')
    assert find_running(folder=tmp_path) is None


def test_a_folder_that_cannot_be_written_does_not_keep_the_show_from_starting(tmp_path, caplog):
    place = tmp_path / "file"
    place.write_text("in the way")
    with Instance(9126, "mine", place / "run"):
        pass
    assert "SDB-INSTANCE-WRITE" in caplog.text
