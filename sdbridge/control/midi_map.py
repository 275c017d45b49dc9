"""Which MIDI control steers what: learnt by touch, kept in a file that a person can edit."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from sdbridge.control.midi_controls import Control
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.presets import write_whole
from sdbridge.parameters.table import ParameterTable

log = logging.getLogger(__name__)

#: What a button may do besides steering a parameter.
ACTIONS = ("cue/next", "cue/previous", "cue/stop")
_RECALL = "preset/recall/"
_HEAD = """\
# MIDI controls of sdbridge, learnt on the page. Edit freely: control: parameter.
# cc CHANNEL/NUMBER, cc14 (fine half at +32), bend CHANNEL, note CHANNEL/KEY,
# turn2, turn64, turn-sign for endless encoders. A note or cc may also be given
# cue/next, cue/previous, cue/stop or preset/recall/NAME.
"""


class MidiMap:
    """The mappings of one file. It belongs to the MIDI surface, which guards it."""

    def __init__(self, file: Path, table: ParameterTable) -> None:
        self._file = file
        self._table = table
        self.targets: dict[Control, str] = {}
        self._load()

    def bind(self, control: Control, target: str) -> None:
        """Steer ``target`` by ``control`` from now on, in place of what overlaps with it."""
        target = self._check(target)
        for old in [old for old in self.targets if _overlap(old, control)]:
            del self.targets[old]
        self.targets[control] = target
        self._save()

    def forget(self, control: Control) -> None:
        """Unbind. Raises SDB-MIDI-CONTROL if it was not bound."""
        if self.targets.pop(control, None) is None:
            raise SdbridgeError("SDB-MIDI-CONTROL", f"{control} steers nothing")
        self._save()

    def _check(self, target: str) -> str:
        """The target as it is kept: an action as written, a parameter by its name."""
        if target in ACTIONS or (target.startswith(_RECALL) and len(target) > len(_RECALL)):
            return target
        return self._table.find(target).name

    def _load(self) -> None:
        try:
            tree = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            log.warning("MIDI map %s cannot be read, nothing is mapped: %s", self._file, error)
            return
        for name, target in tree.items() if isinstance(tree, dict) else ():
            try:
                self.targets[Control.parse(str(name))] = self._check(str(target))
            except SdbridgeError as error:
                log.warning("MIDI map %s: %s", self._file, error)

    def _save(self) -> None:
        tree = {str(control): target for control, target in self.targets.items()}
        text = _HEAD + yaml.safe_dump(tree, allow_unicode=True, sort_keys=True)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, text.encode("utf-8"))
        except OSError as error:
            raise SdbridgeError("SDB-MIDI-WRITE", f"{self._file} could not be written: {error}") from error


def preset_of(target: str) -> str | None:
    """The preset that a target recalls, or None."""
    return target.removeprefix(_RECALL) if target.startswith(_RECALL) else None


def _overlap(one: Control, other: Control) -> bool:
    """Whether one movement could mean both."""
    if one.channel != other.channel or (one.kind in ("note", "bend")) != (other.kind in ("note", "bend")):
        return False
    if one.kind in ("note", "bend"):
        return one.kind == other.kind and one.number == other.number
    return not _numbers(one).isdisjoint(_numbers(other))


def _numbers(control: Control) -> set[int]:
    return {control.number, control.number + 32} if control.kind == "cc14" else {control.number}
