"""Preset files: names on every file system, edits by hand, crashes and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdbridge.errors import SdbridgeError
from sdbridge.parameters import presets as presets_module
from sdbridge.parameters.presets import LONGEST_NAME, PresetFolder, file_stem, write_whole

RESERVED = {"con", "prn", "aux", "nul", "com1", "lpt9"}


@pytest.mark.parametrize(
    "name",
    [
        "CON", "nul", "com1", "Lpt9", "a/b", "a\\b", "../../etc/passwd", "C:\\x", "x:y", "?*<>|\"", ".", "..",
        ".hidden", "trailing.", "Ünïcödé", "夕焼け", "🌇", "e\u0301", "a" * LONGEST_NAME, "-", "true", "1",
        "1.5", "no", "null", "a: b", "'quoted'", "# comment", "two words",
    ],
)  # fmt: skip
def test_any_name_makes_a_safe_file_and_comes_back_whole(tmp_path: Path, name: str) -> None:
    folder = PresetFolder(tmp_path)
    saved = folder.save(name, {"strength": 0.5, "prompt.1.text": "émigré 夜 🌃\n'x': #y"})
    assert [file.name for file in tmp_path.iterdir()] == [saved.file]
    stem = saved.file.removesuffix(".yaml")
    assert stem.isascii() and stem == stem.lower() and stem not in RESERVED and len(saved.file) <= 64
    assert all(letter.isalnum() or letter in "-_" for letter in stem)
    again = PresetFolder(tmp_path).find(name)
    assert again.values == {"strength": 0.5, "prompt.1.text": "émigré 夜 🌃\n'x': #y"}
    assert again.name == saved.name


@settings(max_examples=150, deadline=None)
@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_two_different_names_never_share_a_file(one: str, other: str) -> None:
    same = presets_module._identity(one) == presets_module._identity(other)
    assert (file_stem(one) == file_stem(other)) == same


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a\x00b", "x" * (LONGEST_NAME + 1), "\u202e\u202e"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SdbridgeError, match="SDB-PRESET-NAME"):
        PresetFolder(tmp_path).save(name, {})
    assert list(tmp_path.iterdir()) == []


def test_case_does_not_tell_presets_apart(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    folder.save("Sunset", {"strength": 0.1})
    folder.save("SUNSET", {"strength": 0.2})
    assert [(p.number, p.name) for p in folder.list()] == [(1, "SUNSET")]
    assert folder.find("sunset").values == {"strength": 0.2}


def test_numbers_stay_and_are_found(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    for name in ("a", "b", "c"):
        folder.save(name, {})
    folder.delete("b")
    assert [(p.number, p.name) for p in folder.list()] == [(1, "a"), (3, "c")]
    assert folder.find(3).name == folder.find("3").name == folder.find(3.0).name == "c"
    assert folder.save("d", {}).number == 2
    folder.save("3", {"strength": 0.3})
    assert folder.find("3").values == {"strength": 0.3}, "a name goes before a number"
    assert folder.find(3).name == "c"


def test_what_is_deleted_can_still_be_fetched(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    file = folder.save("gone", {"strength": 0.4}).file
    folder.delete("gone")
    assert folder.list() == ()
    assert "0.4" in (tmp_path / "deleted" / file).read_text(encoding="utf-8")
    with pytest.raises(SdbridgeError, match="SDB-PRESET-UNKNOWN"):
        folder.delete("gone")


def test_rename_keeps_number_and_values(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    folder.save("first", {})
    folder.save("Draft", {"strength": 0.7})
    with pytest.raises(SdbridgeError, match="SDB-PRESET-EXISTS"):
        folder.rename("Draft", "FIRST")
    folder.rename("draft", "Final/1")
    found = folder.find("final/1")
    assert (found.number, found.values) == (2, {"strength": 0.7})
    folder.rename("Final/1", "FINAL/1")
    assert [p.name for p in folder.list()] == ["first", "FINAL/1"]
    assert len(list(tmp_path.glob("*.yaml"))) == 2


def test_files_written_by_hand_are_presets(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    (tmp_path / "My look.yaml").write_text("values:\n  strength: 0.5\n  prompt: a fox\n  prompt.2.text:\n")
    found = folder.find("my LOOK")
    assert (found.number, found.complete) == (1, False)
    assert found.values == {"strength": 0.5, "prompt": "a fox", "prompt.2.text": ""}
    (tmp_path / "My look.yaml").write_text("number: 9\nfade: 2.5\nvalues:\n  strength: 0.25\n")
    assert (folder.find(9).fade_s, folder.find(9).values) == (2.5, {"strength": 0.25})


@pytest.mark.parametrize(
    "text",
    [
        "values: [1, 2", "- a\n- b\n", "just words", "vlaues: {}", "values: [1]", "values: {a: [1]}",
        "easing: bouncy", "fade: soon", "fade: .nan", "1: 2", "? [a, b]\n: c", "name: ''", "\x00",
        "!!python/object:os.system {}",
        "a: &a [1]\nb: &b [*a, *a]\nvalues: {x: *b}", "[" * 3000,
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_listed_with_its_reason_and_left_alone(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    folder = PresetFolder(tmp_path)
    (listed,) = folder.list()
    assert listed.error
    with pytest.raises(SdbridgeError, match="SDB-PRESET-BROKEN"):
        folder.find("odd")
    assert path.read_text(encoding="utf-8") == text
    folder.save("odd", {"strength": 0.1})
    assert (tmp_path / "odd.yaml.broken").read_text(encoding="utf-8") == text, "an edit under way is kept"
    assert folder.find("odd").values == {"strength": 0.1}


def test_bytes_that_are_no_text_and_huge_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").write_bytes(b"#" * (presets_module.LARGEST_FILE + 1))
    assert all(preset.error for preset in PresetFolder(tmp_path).list())


def test_two_files_of_one_name_are_both_kept_and_the_second_is_named(tmp_path: Path) -> None:
    for file in ("a", "b"):
        (tmp_path / f"{file}.yaml").write_text("name: Same\nnumber: 4\nvalues: {strength: 0.5}\n")
    one, other = PresetFolder(tmp_path).list()
    assert {one.number, other.number} == {4, 1}
    assert "another file" in (one.error or other.error)
    assert PresetFolder(tmp_path).find("same").file in {"a.yaml", "b.yaml"}


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PresetFolder(tmp_path)
    file = tmp_path / folder.save("keep", {"strength": 0.1}).file
    before = file.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(presets_module.os, "fsync", full)
    with pytest.raises(SdbridgeError, match=r"SDB-PRESET-WRITE.*No space left"):
        folder.save("keep", {"strength": 0.9})
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [file.name], "nothing unfinished is left lying about"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_write_whole_reports_a_truly_full_device(tmp_path: Path) -> None:
    with pytest.raises(OSError), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")  # the positive control: the device does refuse
    target = tmp_path / "no-such-folder" / "x.yaml"
    with pytest.raises(OSError):
        write_whole(target, b"x")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="rights do not bind root")
def test_a_folder_without_rights_is_reported(tmp_path: Path) -> None:
    folder = PresetFolder(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SdbridgeError, match="SDB-PRESET-WRITE"):
            folder.save("x", {})
    finally:
        tmp_path.chmod(0o700)


_SAVER = """
import sys
from pathlib import Path
from sdbridge.parameters.presets import PresetFolder
folder = PresetFolder(Path(sys.argv[1]))
count = 0
while True:
    count += 1
    folder.save("show", {"prompt.1.text": f"{count} " + "x" * 20000, "strength": 0.5})
    if count == 1:
        print("saving", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_process_killed_during_a_save_leaves_the_old_or_the_new_file_whole(tmp_path: Path) -> None:
    for attempt in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _SAVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        ) as saver:
            assert saver.stdout is not None and saver.stdout.readline() == b"saving\n"
            time.sleep(0.011 * attempt)  # another place in the save each time; any is as good
            saver.send_signal(signal.SIGKILL)
        (preset,) = PresetFolder(tmp_path).list()
        text = str(preset.values["prompt.1.text"])
        assert preset.error == "" and int(text.split()[0]) >= 1 and len(text.split()[1]) == 20000
        tree = yaml.safe_load((tmp_path / preset.file).read_text(encoding="utf-8"))
        assert tree["values"]["strength"] == 0.5


def test_what_a_crash_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    old, fresh = (tmp_path / f".x.{n}.sdbridge-unfinished" for n in (1, 2))
    for file in (old, fresh):
        file.write_text("half")
    os.utime(old, (1, 1))
    PresetFolder(tmp_path)
    assert (old.exists(), fresh.exists()) == (False, True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_content_of_a_file_stops_the_listing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.yaml").write_bytes(content)
    assert len(PresetFolder(tmp_path).list()) == 1
