"""Crash reports: from any thread, without names and secrets, never more than a few, never in the way."""

import getpass
import threading
from pathlib import Path

import pytest

from sdbridge.bridge import Bridge
from sdbridge.config import Config
from sdbridge.crash import REPORTS_KEPT, CrashReports
from sdbridge.testing import FakeClock, FakeReceiver, FakeSender, FakeTextures


@pytest.fixture
def view(tmp_path, monkeypatch):
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "home"))
    config = Config.model_validate(
        {
            "token": "very-secret-token",
            "input": {"main": {"backend": "video_file", "name": "rtsp://bob:hunter2@camera/live"}},
        }
    )
    textures = FakeTextures({"main": FakeReceiver("main")}, [FakeSender()])
    line = f"token=very-secret-token in {Path.home()} of {getpass.getuser()}"
    with Bridge(config, textures=textures, control=False, log_lines=lambda count: [line]) as bridge:
        yield bridge


def reports(folder):
    return sorted(folder.glob("crash-*.txt"))


def crash():
    raise ValueError(f"no such file {Path.home()}/show/secret.yaml token=very-secret-token")


def test_a_fault_in_any_thread_is_reported_without_names_and_secrets(view, tmp_path):
    with CrashReports(view, tmp_path, FakeClock()) as crashes:
        thread = threading.Thread(target=crash, name="worker-7")
        thread.start()
        thread.join()
        crashes.join()
    (file,) = reports(tmp_path)
    text = file.read_text()
    assert "worker-7" in text and "ValueError" in text and "sdbridge" in text
    for secret in ("very-secret-token", "hunter2", str(Path.home()) + "/show"):
        assert secret not in text


def test_one_report_a_minute(view, tmp_path):
    clock = FakeClock()
    with CrashReports(view, tmp_path, clock) as crashes:
        for _ in range(5):
            crashes.write("again")
            crashes.join()
        assert len(reports(tmp_path)) == 1
        reports(tmp_path)[0].rename(tmp_path / "crash-1.txt")  # the next may fall into the same second
        clock.advance(61)
        crashes.write("later")
    assert len(reports(tmp_path)) == 2


def test_old_reports_make_room(view, tmp_path):
    for number in range(20):
        (tmp_path / f"crash-1999{number:04}-000000.txt").write_text("old")
    with CrashReports(view, tmp_path, FakeClock()) as crashes:
        crashes.write("new")
    assert len(reports(tmp_path)) == REPORTS_KEPT
    assert "new" in reports(tmp_path)[-1].read_text()


def test_a_folder_that_cannot_be_written_is_one_line(view, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with CrashReports(view, tmp_path / "file", FakeClock()) as crashes:
        crashes.write("lost")
    assert "SDB-CRASH-WRITE" in caplog.text


def test_the_hooks_are_put_back(view, tmp_path):
    before = threading.excepthook
    with CrashReports(view, tmp_path, FakeClock()):
        assert threading.excepthook is not before
    assert threading.excepthook is before
