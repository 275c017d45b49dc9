"""Loading beside the frames: shown while it takes long, and tried again once the file is mended."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdbridge.engine.image.beside import LOOK_S, SHOWN_AFTER_S, SHOWN_EVERY_S, Arrived, Beside
from sdbridge.engine.image.share import UnderWay, counted_in, share_here
from sdbridge.engine.image.weight_file import mark_of
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models import catalog
from tests.engine.image.conditioning import Bench, make_bench


class Place:
    """A Beside whose clock and thread stand still until they are moved."""

    def __init__(self) -> None:
        self.bench: Bench = make_bench()
        self.shown: list[tuple[str, Progress | None]] = []
        self.now = 0.0

        def tell(work: str, progress: Progress | None) -> None:
            self.shown.append((work, progress))

        self.beside: Beside[str] = Beside(
            replace(self.bench.context, progress=tell), "LoRA 1", now=lambda: self.now
        )

    def look(self) -> Arrived[str] | None:
        """A second later, with what the thread was given done."""
        self.now += LOOK_S
        arrived = self.beside.poll()
        self.bench.finish_loading()
        return arrived or self.beside.poll()

    def looks(self, count: int = 5) -> list[str | None]:
        return [arrived.thing for _ in range(count) if (arrived := self.look()) is not None]


def test_what_takes_long_is_shown_with_its_share_and_its_end() -> None:
    place = Place()
    place.beside.start(lambda: "done")
    running: Future[Any] | None = place.beside._running
    assert running is not None
    assert place.beside.poll() is None and not place.shown
    place.now = SHOWN_AFTER_S
    place.beside._share.expect(200.0)
    place.beside._share.did(50.0)
    for _ in range(3):
        place.beside.poll()  # told once, not in every frame
    place.now += SHOWN_EVERY_S
    place.beside._share.did(500.0)
    place.beside.poll()
    place.bench.finish_loading()
    assert place.beside.poll() == Arrived("done")
    first, second = (Progress("LoRA 1", done, 200.0, "is loading") for done in (50.0, 200.0))
    assert place.shown == [("LoRA 1", first), ("LoRA 1", second), ("LoRA 1", None)]


def test_what_is_over_at_once_is_never_shown_and_a_wish_that_goes_takes_its_bar_along() -> None:
    place = Place()
    place.beside.start(lambda: "done")
    place.bench.finish_loading()
    assert place.beside.poll() == Arrived("done") and not place.shown
    place.beside.start(lambda: "never")
    place.now += SHOWN_AFTER_S
    place.beside.poll()
    place.beside.cancel()
    assert [progress is None for _, progress in place.shown] == [False, True]


def test_the_job_counts_where_its_own_place_looks() -> None:
    place = Place()

    def job() -> str:
        share_here().expect(4)
        share_here().did(1)
        return "done"

    place.beside.start(job)
    share = place.beside._share
    place.bench.finish_loading()
    assert (share.done, share.total) == (1, 4)
    with counted_in(share):
        assert share_here() is share
    assert share_here() is not share


def test_of_several_works_the_one_that_spoke_last_is_shown_until_all_are_over() -> None:
    told: list[str | None] = []
    works = UnderWay(lambda progress: told.append(progress and progress.stage))
    works.tell("acceleration", Progress("compile", 0, 9))
    works.tell("ControlNet 1", Progress("ControlNet 1", 0, 0))
    works.tell("LoRA 2", None)  # it never spoke
    works.tell("ControlNet 1", None)
    works.tell("acceleration", None)
    works.tell("acceleration", None)
    assert told == ["compile", "ControlNet 1", "compile", None]


def test_a_file_that_failed_is_tried_again_once_another_lies_there_and_nobody_writes_on_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_text("half")

    def read() -> str:
        if file.read_text() != "whole":
            raise SdbridgeError("SDB-FILE-BROKEN", f"{file} is cut short")
        return file.read_text()

    place = Place()
    place.beside.start(read, lambda: mark_of(str(file)))
    assert place.looks() == [None] and len(place.bench.reports) == 1, "told once, read once"
    assert place.beside.loads == 1 and place.beside.waits and not place.beside.busy
    file.write_text("longer, but not")
    assert place.look() is None and place.beside.loads == 1  # it may still be written on
    assert place.looks() == [None] and place.beside.loads == 2 and len(place.bench.reports) == 2
    file.write_text("whole")
    assert place.looks() == ["whole"]
    file.write_text("another one: what is in use stays")
    assert place.looks() == [] and place.beside.loads == 3 and not place.beside.waits


def test_a_failed_wish_that_was_taken_back_is_looked_after_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"

    def read() -> str:
        raise SdbridgeError("SDB-FILE-MISSING", f"there is no {file}")

    place = Place()
    place.beside.start(read, lambda: mark_of(str(file)))
    assert place.looks(2) == [None]
    place.beside.cancel()
    file.write_text("here")
    assert place.looks() == [] and place.beside.loads == 1
    place.beside.start(read)  # what cannot be looked at is read once
    assert place.looks() == [None] and not place.beside.waits


def test_a_mark_follows_files_folders_and_what_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net"
    assert mark_of(str(folder)) is None
    folder.mkdir()
    empty = mark_of(str(folder))
    (folder / "config.json").write_text("{}")
    one = mark_of(str(folder))
    assert empty == () and one not in (None, empty)
    (folder / "config.json").write_text('{"a": 1}')
    assert mark_of(str(folder)) != one
    known = next(entry.id for entry in catalog.entries() if entry.kind == "lora")
    assert mark_of(known) is None and mark_of(str(folder), known) is None
    monkeypatch.setattr(catalog, "local_path", lambda model: folder)
    assert mark_of(known) == mark_of(str(folder), "")
