"""Recordings: read back by FFmpeg's own program, never over another file, and no fault reaches the frames."""

import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.frame import Frame
from sdbridge.textures.recording import Sender
from sdbridge.textures.test_card import TestCard, read_number

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffmpeg is not installed")


class StepClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def record(path: Path, frames: int = 10, **options: object) -> Sender:
    sender = Sender(str(path), options)
    sender.clock = clock = StepClock()
    with sender:
        for number in range(frames):
            sender.send(Frame(TestCard(320, 240).draw(number), number, 0), {})
            clock.sleep(0.04)
    return sender


def numbers_in(path: Path) -> list[int | None]:
    with av.open(str(path)) as film:
        return [read_number(frame.to_ndarray(format="rgba")) for frame in film.decode(video=0)]


@needs_ffmpeg
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_ffmpeg_reads_every_frame_in_order_at_its_time(tmp_path: Path, ending: str) -> None:
    sender = record(tmp_path / f"show.{ending}")
    assert sender.written == 10 and sender.dropped == 0 and "10 frames" in sender.describe()
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v",
        "-show_frames",
        "-show_streams",
        "-of",
        "json",
    ]
    shown = json.loads(subprocess.run([*command, str(sender.path)], capture_output=True, check=True).stdout)
    assert (shown["streams"][0]["width"], shown["streams"][0]["height"]) == (320, 240)
    times = [round(float(frame["best_effort_timestamp_time"]), 2) for frame in shown["frames"]]
    assert times == [round(0.04 * number, 2) for number in range(10)]
    assert numbers_in(sender.path) == list(range(10))


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    names = [record(tmp_path / "show.mkv", 2).path.name for _ in range(3)]
    assert names == ["show.mkv", "show-2.mkv", "show-3.mkv"]


def test_a_word_becomes_a_file_with_the_time_in_the_folder(tmp_path: Path) -> None:
    sender = Sender("my/show", {"folder": str(tmp_path / "new")})
    with sender:
        sender.send(Frame(TestCard(64, 64).draw(0), 0, 0), {})
    assert sender.path.parent == tmp_path / "new" and sender.path.name.startswith("my_show-2")
    assert sender.path.stat().st_size > 0


def test_later_sizes_are_fitted_into_the_first_and_odd_ones_made_even(tmp_path: Path) -> None:
    with Sender(str(tmp_path / "sizes.mkv"), {}) as sender:
        for number, (width, height) in enumerate(((321, 241), (640, 100), (1, 1), (2000, 2000))):
            sender.send(Frame(np.full((height, width, 4), 200, np.uint8), number, 0), {})
    with av.open(str(sender.path)) as film:
        frames = [frame.to_ndarray(format="rgba") for frame in film.decode(video=0)]
    assert len(frames) == 4 and all(frame.shape == (242, 322, 4) for frame in frames)
    assert frames[1][5, 160, 0] < 30 and frames[1][121, 160, 0] > 170, "bars above and below"


def test_a_lossless_codec_keeps_what_yuv_can(tmp_path: Path) -> None:
    sender = record(tmp_path / "exact.mkv", 3, codec="ffv1")
    assert numbers_in(sender.path) == [0, 1, 2]


def test_a_place_that_cannot_be_written_ends_the_film_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sender = record(tmp_path / "file" / "show.mkv", 3)
    assert sender.written == 0 and "ended" in sender.describe() and "\n" not in sender.describe()
    assert sender.receivers == 0


def test_nothing_sent_leaves_no_file(tmp_path: Path) -> None:
    with Sender(str(tmp_path / "empty.mkv"), {}) as sender:
        pass
    assert sender.path is None and list(tmp_path.iterdir()) == []


def test_frames_that_the_disk_cannot_take_are_counted_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    import threading

    gate = threading.Event()
    monkeypatch.setattr(Sender, "_free_path", lambda self: gate.wait(20) and tmp_path / "slow.mkv")
    with Sender("slow", {}) as sender:
        for number in range(60):
            sender.send(Frame(TestCard(64, 64).draw(number), number, 0), {})
        assert sender.dropped >= 29 and "dropped" in sender.describe()
        gate.set()
    assert sender.written == 60 - sender.dropped


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(SdbridgeError, match="no codec 'h263000'"):
        Sender("x", {"codec": "h263000"}).open()
