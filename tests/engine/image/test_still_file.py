"""A still picture's file: read when asked for, again when another lies there, and never by a frame."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sdbridge.engine.image import still_file
from sdbridge.engine.image.still_file import LOOK_S, StillFile
from tests.engine.image.conditioning import Bench, make_bench


class Place:
    """A file in use, and the time by which it is looked at."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench: Bench = make_bench()
        self.path = path
        self.seconds = 0.0
        self.looks = 0
        self.writes = 0
        self.still = StillFile(self.bench.context, "the picture", now=lambda: self.seconds)
        ask_disk = still_file._mark

        def counted(path: Path):
            self.looks += 1
            return ask_disk(path)

        monkeypatch.setattr(still_file, "_mark", counted)

    def write(self, colour: int) -> None:
        Image.new("L", (4, 4), colour).save(self.path)
        self.writes += 1  # the clock of a file system may be coarse
        os.utime(self.path, ns=(0, self.writes * 1_000_000))

    def edge(self, watch: bool = True) -> float | None:
        """One frame edge; the red of the picture that it brought, if any."""
        arrived = self.still.poll(watch)
        self.bench.finish_loading()
        thing = None if arrived is None else arrived.thing
        return None if thing is None else round(float(thing[0, 0, 0, 0]), 2)

    def edges(self, looks: int) -> list[float]:
        """What came while ``looks`` looks at the disk were made, 50 frames between two."""
        found = []
        for _ in range(looks):
            self.seconds += LOOK_S
            found += [self.edge() for _ in range(50)]
        return [each for each in found if each is not None]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "still.png", monkeypatch)


def test_it_is_read_again_when_another_picture_lies_there_and_only_then(place: Place) -> None:
    place.write(0)
    place.still.ask(str(place.path))
    assert place.edge() is None and place.edge() == 0.0
    assert place.edges(5) == [] and place.still.loads == 1
    place.write(255)
    assert place.edges(3) == [1.0] and place.still.loads == 2
    assert not place.bench.reports


def test_the_disk_is_looked_at_once_a_second_and_not_for_a_picture_that_nobody_wants(place: Place) -> None:
    place.write(0)
    place.still.ask(str(place.path))
    place.edge()
    place.edge()
    before = place.looks
    place.edges(10)
    assert place.looks - before == 10
    for _ in range(10):
        place.seconds += LOOK_S
        assert place.edge(watch=False) is None
    assert place.looks - before == 10


def test_a_picture_that_is_still_being_written_is_waited_for(place: Place) -> None:
    place.write(0)
    place.still.ask(str(place.path))
    place.edge()
    place.edge()
    for _ in range(5):
        place.path.write_bytes(place.path.read_bytes()[:-1])
        assert place.edges(1) == [] and place.still.loads == 1
    place.write(255)
    assert place.edges(3) == [1.0] and not place.bench.reports


@pytest.mark.parametrize("first", ["", "I am no picture"])
def test_what_failed_is_told_once_and_read_when_it_is_there(place: Place, first: str) -> None:
    if first:
        place.path.write_text(first)
    place.still.ask(str(place.path))
    assert place.edge() is None and place.edge() is None and place.still.failed
    assert place.edges(5) == []
    ((code, _),) = place.bench.reports
    assert code == ("SDB-IMAGE-FORMAT" if first else "SDB-FILE-MISSING")
    place.write(255)
    assert place.edges(3) == [1.0] and not place.still.failed
    assert len(place.bench.reports) == 1


def test_a_file_that_goes_is_kept_as_it_was_and_its_successor_is_read(place: Place) -> None:
    place.write(0)
    place.still.ask(str(place.path))
    place.edge()
    place.edge()
    place.path.unlink()
    assert place.edges(5) == [] and not place.bench.reports
    place.write(255)
    assert place.edges(3) == [1.0]


def test_what_is_no_longer_asked_for_is_never_handed_over(place: Place) -> None:
    place.write(0)
    place.still.ask(str(place.path))
    place.still.ask("")
    assert place.edge() is None and place.edges(3) == [] and place.looks == 0
