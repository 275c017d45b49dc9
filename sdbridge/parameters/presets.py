"""Presets on disk: one YAML file each that a person can edit, written so that nothing is ever lost."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.fade import check_easing, check_seconds
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection
from sdbridge.parameters.table import ParameterTable

log = logging.getLogger(__name__)

LONGEST_NAME = 100
LARGEST_FILE = 1_000_000  # bytes; a preset with every prompt slot full is a third of that
_ENDING = ".yaml"
_UNFINISHED = ".sdbridge-unfinished"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_HEAD = """\
# A preset of sdbridge. Edit it freely: names and ranges are listed by `sdbridge osc`.
# complete: true sets everything that is not named here to its default; false leaves it alone.
"""


@dataclass(frozen=True)
class Preset:
    """One file. ``error`` is empty, or says why the file cannot be recalled."""

    name: str
    number: int
    values: Mapping[str, object]
    complete: bool = False
    fade_s: float = 0.0
    easing: str = "linear"
    file: str = ""
    error: str = ""


class PresetFolder:
    """The presets of one folder. Every method may be called from any thread.

    A preset's identity is its name without regard to case, so that it is the same one on every
    file system. Files edited, added or removed by hand are seen at the next call.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._read: dict[str, tuple[tuple[int, int], Preset]] = {}
        self._sweep()

    def list(self) -> tuple[Preset, ...]:
        """All presets by number, then name; those that cannot be read carry their error."""
        with self._lock:
            found: Sequence[Preset] = sorted(
                self._scan(), key=lambda preset: (preset.number <= 0, preset.number, preset.file)
            )
            taken: set[int] = set()
            names: set[str] = set()
            result = []
            for preset in found:
                if preset.number <= 0 or preset.number in taken:
                    preset = replace(preset, number=_lowest_free(taken | {p.number for p in found}))
                if _identity(preset.name) in names:
                    preset = replace(preset, error=preset.error or f"another file is named {preset.name!r}")
                taken.add(preset.number)
                names.add(_identity(preset.name))
                result.append(preset)
            return tuple(sorted(result, key=lambda preset: preset.number))

    def find(self, name_or_number: str | int | float) -> Preset:
        """By name, or by number where no preset has that name. Raises SDB-PRESET-UNKNOWN or -BROKEN."""
        preset = self._look_up(name_or_number)
        if preset is None:
            known = ", ".join(f"{one.number} {one.name}" for one in self.list()[:12]) or "none are saved"
            raise SdbridgeError(
                "SDB-PRESET-UNKNOWN", f"there is no preset {str(name_or_number)[:80]!r} (known: {known})"
            )
        if preset.error:
            raise SdbridgeError("SDB-PRESET-BROKEN", f"preset file {preset.file}: {preset.error}")
        return preset

    def save(self, name: str, values: Mapping[str, Value], complete: bool = True) -> Preset:
        """Write a preset, over the one of that name if there is one (its number and fade stay)."""
        name = check_name(name)
        with self._lock:
            old = self._look_up(name, by_number=False)
            if old is None:
                number = _lowest_free({preset.number for preset in self.list()})
                fresh = Preset(name, number, dict(values), complete, file=self._file_for(name))
            else:
                fresh = replace(old, name=name, values=dict(values), complete=complete, error="")
                if old.error:  # somebody's edit that does not parse yet: keep it beside
                    self._set_aside(old.file)
            self._write(fresh)
            return fresh

    def rename(self, name_or_number: str | int | float, new_name: str) -> Preset:
        """Give a preset another name. The file is written under the new name before the old one goes."""
        new_name = check_name(new_name)
        with self._lock:
            old = self.find(name_or_number)
            other = self._look_up(new_name, by_number=False)
            if other is not None and other.file != old.file:
                raise SdbridgeError(
                    "SDB-PRESET-EXISTS", f"preset {other.number} is already named {new_name!r}"
                )
            same = _identity(old.name) == _identity(new_name)
            renamed = replace(old, name=new_name, file=old.file if same else self._file_for(new_name))
            self._write(renamed)
            if renamed.file != old.file:
                (self.folder / old.file).unlink(missing_ok=True)
            return renamed

    def delete(self, name_or_number: str | int | float) -> Preset:
        """Move the file to the folder ``deleted`` beside it, where a person can still fetch it."""
        with self._lock:
            preset = self._look_up(name_or_number)
            if preset is None:
                return self.find(name_or_number)  # raises with the list of known ones
            try:
                (self.folder / "deleted").mkdir(exist_ok=True)
                os.replace(self.folder / preset.file, self.folder / "deleted" / preset.file)
            except OSError as error:
                raise _not_written(preset.file, error) from error
            return preset

    def _look_up(self, name_or_number: str | int | float, by_number: bool = True) -> Preset | None:
        every = self.list()
        wanted = _identity(str(name_or_number))
        if isinstance(name_or_number, str):
            named = [preset for preset in every if _identity(preset.name) == wanted]
            if named:
                return next((preset for preset in named if not preset.error), named[0])
        if by_number:
            try:
                number = float(name_or_number)
            except ValueError:
                return None
            return next((preset for preset in every if preset.number == number), None)
        return None

    def _scan(self) -> Sequence[Preset]:
        """Every preset file, read anew only where size or time of change differ."""
        try:
            entries = [e for e in os.scandir(self.folder) if e.name.lower().endswith(_ENDING) and e.is_file()]
        except FileNotFoundError:
            entries = []
        except OSError as error:
            log.warning("preset folder %s cannot be read: %s", self.folder, error)
            entries = []
        seen: dict[str, tuple[tuple[int, int], Preset]] = {}
        for entry in entries:
            try:
                stat = entry.stat()
            except OSError:
                continue  # gone since the listing
            stamp = (stat.st_mtime_ns, stat.st_size)
            known = self._read.get(entry.name)
            if known is None or known[0] != stamp:
                known = (stamp, _read_preset(self.folder / entry.name, stat.st_size))
            seen[entry.name] = known
        self._read = seen
        return [preset for _, preset in seen.values()]

    def _file_for(self, name: str) -> str:
        """A file name of plain lower-case letters that no other preset has."""
        taken = {file.lower() for file in os.listdir(self.folder)} if self.folder.is_dir() else set()
        stem = file_stem(name)
        file, count = stem + _ENDING, 1
        while file in taken:
            count += 1
            file = f"{stem}-{count}{_ENDING}"
        return file

    def _write(self, preset: Preset) -> None:
        body = {
            "name": preset.name,
            "number": preset.number,
            "complete": preset.complete,
            "fade": preset.fade_s,
            "easing": preset.easing,
            "values": dict(preset.values),
        }
        text = _HEAD + yaml.safe_dump(body, allow_unicode=True, sort_keys=False, width=100)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / preset.file, text.encode("utf-8"))
        except OSError as error:
            raise _not_written(preset.file, error) from error
        self._read.pop(preset.file, None)

    def _set_aside(self, file: str) -> None:
        try:
            os.replace(self.folder / file, self.folder / (file + ".broken"))
        except OSError as error:
            raise _not_written(file, error) from error

    def _sweep(self) -> None:
        """Take away what a crash in the middle of a save left, once it is surely nobody's."""
        for left in self.folder.glob(f".*{_UNFINISHED}") if self.folder.is_dir() else ():
            try:
                if time.time() - left.stat().st_mtime > 60:
                    left.unlink()
            except OSError:
                continue  # another daemon was quicker


#: How the engine is run on this machine, which is no part of a look and costs seconds to change.
_HOW_IT_RUNS = frozenset({"acceleration", "vae", "width", "height", "frame_batch"})


def presettable(table: ParameterTable) -> tuple[str, ...]:
    """What a preset holds: the look. Not the operator's own switches (output, hold), nor how it is run."""
    return tuple(name for name in _allowed(table) if name not in _HOW_IT_RUNS)


def _allowed(table: ParameterTable) -> tuple[str, ...]:
    """What a file may name: a person who writes ``width: 768`` into a preset wants it."""
    return tuple(row.name for row in table if row.kind != "trigger" and row.effect != "bridge")


def values_of(preset: Preset, table: ParameterTable) -> tuple[dict[str, Value], list[Rejection]]:
    """The values that a recall sets, coerced, and what in the file had to be left out."""
    allowed = set(_allowed(table))
    values: dict[str, Value] = {}
    rejected: list[Rejection] = []
    if preset.complete:
        values = {name: table.rows[name].default for name in presettable(table)}
    for name, raw in preset.values.items():
        try:
            row = table.find(str(name))
            if row.name not in allowed:
                raise SdbridgeError("SDB-PARAM-UNKNOWN", f"{row.address} is not part of presets")
            values[row.name] = row.coerce(raw)
        except SdbridgeError as error:
            rejected.append(Rejection(str(name), error.code, str(error)))
    return values, rejected


def check_name(name: object) -> str:
    """A preset's name, tidied: spaces trimmed, Unicode composed. Raises SDB-PRESET-NAME."""
    text = unicodedata.normalize("NFC", str(name)).strip()
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise SdbridgeError("SDB-PRESET-NAME", f"{text[:40]!r} ({len(text)} characters) cannot name a preset")
    return text


def file_stem(name: str) -> str:
    """The file name without ending: readable, lower case ASCII, reserved nowhere, unique.

    Windows forbids con, aux and trailing dots, macOS decomposes letters, many file systems know no
    case: so only a-z, 0-9, - and _ are used, and a name that loses something gets six hex digits.
    """
    whole = _identity(name)
    plain = unicodedata.normalize("NFKD", whole).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:48]
    if stem == whole and stem not in _RESERVED:
        return stem
    return f"{stem or 'preset'}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` so that at every moment, power cut included, it holds the old or the new content."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{_UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)  # gone already where all went well
    if os.name == "posix":  # the new name itself must reach the disk; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _replace(source: Path, target: Path) -> None:
    """``os.replace``, patient with Windows, where a virus scanner may hold the file for a moment."""
    for attempt in range(10):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or attempt == 9:
                raise
            time.sleep(0.02)


def _read_preset(path: Path, size: int) -> Preset:
    """The preset in a file; a file that cannot be understood becomes a preset with an error."""
    try:
        if size > LARGEST_FILE:
            raise ValueError(f"{size} bytes are more than {LARGEST_FILE}")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it must hold keys and values")
        return _preset_of(tree, path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError, SdbridgeError) as error:
        return Preset(path.stem, 0, {}, file=path.name, error=" ".join(str(error).split())[:300])


def _preset_of(tree: Mapping[Any, Any], path: Path) -> Preset:
    if not all(isinstance(key, str) for key in tree):
        raise ValueError("every key must be a word")
    unknown = set(tree) - {"name", "number", "complete", "fade", "easing", "values"}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}; parameters belong under values:")
    values = tree.get("values") or {}
    if not isinstance(values, dict):
        raise ValueError("values must hold names and values")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float | bool | None):
            raise ValueError("under values each line must be one name and one value")
    number = tree.get("number", 0)
    easing = str(tree.get("easing") or "linear")
    check_easing(easing)
    return Preset(
        name=check_name(tree.get("name") if tree.get("name") is not None else path.stem),
        number=number if isinstance(number, int) and not isinstance(number, bool) else 0,
        values={name: "" if value is None else value for name, value in values.items()},
        complete=tree.get("complete") is True,
        fade_s=check_seconds(tree.get("fade") or 0.0),
        easing=easing,
        file=path.name,
    )


def _identity(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip().casefold())


def _lowest_free(taken: set[int]) -> int:
    return next(number for number in range(1, len(taken) + 2) if number not in taken)


def _not_written(file: str, error: OSError) -> SdbridgeError:
    return SdbridgeError("SDB-PRESET-WRITE", f"preset file {file} could not be written: {error}")
