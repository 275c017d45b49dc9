"""Running a show on the parameters: recalls with fades, morphs, cues, and everything stopped at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbridge.clock import Clock
from sdbridge.config import CueConfig
from sdbridge.errors import SdbridgeError
from sdbridge.parameters.cues import CueList
from sdbridge.parameters.fade import BLENDS, Transition, check_easing, check_seconds, claimed, ease, plan
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.presets import Preset, PresetFolder, presettable, values_of
from sdbridge.parameters.store import Change, Outcome, ParameterStore, Rejection
from sdbridge.parameters.telling import tell

log = logging.getLogger(__name__)

#: What the show writes carries this source, so that it can tell an operator's hand from its own.
SOURCE = "show:"


@dataclass
class _Run:
    """A transition under way."""

    transition: Transition
    begun_ns: int
    lasts_ns: int
    easing: str

    def share(self, now_ns: int) -> float:
        return (now_ns - self.begun_ns) / self.lasts_ns


class Show:
    """Presets, fades, morphs and cues over one store. Every method may be called from any thread.

    The bridge calls ``tick`` about a hundred times a second. A parameter that somebody else sets
    while it fades is theirs: its fade ends there. A newer recall takes over what it names; what it
    does not name goes on fading as before.
    """

    def __init__(
        self,
        store: ParameterStore,
        presets_dir: Path | str,
        clock: Clock,
        cues: Sequence[CueConfig] = (),
    ) -> None:
        self.store = store
        self.presets = PresetFolder(Path(presets_dir))
        self._clock = clock
        self._cues = CueList(cues)
        self._runs: list[_Run] = []  # this and all below: guarded by store.steady()
        self._preset = ""
        self._put_off: dict[str, object] = {}  # values to bring back at the next tick, after a panic
        self._planned: tuple[Preset, Preset, Transition] | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._unsubscribe = store.subscribe(self._on_change)

    def close(self) -> None:
        """Stop listening to the store; fades stay where they are."""
        self._unsubscribe()

    # --- what is going on ---

    @property
    def preset(self) -> str:
        """Name of the preset recalled last; "" before one, and once a cue went elsewhere."""
        return self._preset

    @property
    def cue(self) -> str:
        """Name of the cue that stands, or ""."""
        cue = self._cues.current
        return cue.name if cue else ""

    @property
    def cue_position(self) -> int:
        """Place of the cue that stands, counted from 1; 0 before the first."""
        return self._cues.position

    @property
    def cues(self) -> tuple[CueConfig, ...]:
        return self._cues.cues

    @property
    def cue_follows(self) -> bool:
        """Whether the next cue comes by itself; not once somebody has written a prompt."""
        return self._cues.follow_at_ns is not None

    @property
    def fading(self) -> bool:
        return bool(self._runs)

    def progress(self) -> float:
        """How far the newest fade is, 0 to 1; 1 when nothing fades."""
        with self.store.steady():
            if not self._runs:
                return 1.0
            return min(max(self._runs[-1].share(self._clock.now_ns()), 0.0), 1.0)

    def subscribe(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with ``presets``, ``preset`` or ``cue`` when that changes, until unsubscribed."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    # --- presets ---

    def list(self) -> tuple[Preset, ...]:
        """All presets by number, those with a broken file included."""
        return self.presets.list()

    def recall(
        self,
        name_or_number: str | int | float,
        fade_s: float | None = None,
        easing: str = "",
        source: str = "",
    ) -> Outcome:
        """Go to a preset over ``fade_s`` seconds (None: the preset's own time, which is 0 unless edited).

        Raises SDB-PRESET-UNKNOWN or -BROKEN, SDB-FADE-SECONDS or -EASING. Values in the file that no
        parameter takes are left out and reported in the outcome.
        """
        preset = self.presets.find(name_or_number)
        values, rejected = values_of(preset, self.store.table)
        for one in rejected:
            log.warning("preset %s: %s", preset.name, one.message)
        seconds = preset.fade_s if fade_s is None else check_seconds(fade_s)
        with self.store.steady():
            outcome = self._go(values, seconds, easing or preset.easing, f"recall {preset.name}", source)
            self._preset = preset.name
        self._tell("preset")
        return Outcome(outcome.revision, (*outcome.rejected, *rejected))

    def save(self, name: str) -> Preset:
        """Write the look of now under a name. While a fade runs, its target is saved, not the way there."""
        names = presettable(self.store.table)
        defaults = self.store.table.defaults()
        with self.store.steady():
            values, _ = self.store.snapshot()
            for run in self._runs:
                values.update(run.transition.end)
        different = {n: values[n] for n in names if values[n] != defaults[n]}
        preset = self.presets.save(name, different, complete=True)
        with self.store.steady():
            self._preset = preset.name
        self._tell("presets")
        return preset

    def rename(self, name_or_number: str | int | float, new_name: str) -> Preset:
        old = self.presets.find(name_or_number)
        preset = self.presets.rename(name_or_number, new_name)
        with self.store.steady():
            if self._preset == old.name:
                self._preset = preset.name
        self._tell("presets")
        return preset

    def delete(self, name_or_number: str | int | float) -> Preset:
        """The file goes to the folder ``deleted`` beside the presets."""
        preset = self.presets.delete(name_or_number)
        self._tell("presets")
        return preset

    def morph(self, a: str | int | float, b: str | int | float, position: float, source: str = "") -> Outcome:
        """Between two presets on one fader: 0 is exactly ``a``, 1 exactly ``b``."""
        first, second = self.presets.find(a), self.presets.find(b)
        share = _check_position(position)
        with self.store.steady():
            transition = self._between(first, second)
            values = transition.whole_at(share)
            self._claim(claimed(values))
            self._preset = first.name if share <= 0.0 else second.name if share >= 1.0 else self._preset
            outcome = self.store.set_many(values, f"{SOURCE}morph {source}".strip())
        if share in (0.0, 1.0):
            self._tell("preset")
        return outcome

    # --- fades ---

    def fade(
        self, values: Mapping[str, object], seconds: float, easing: str = "linear", source: str = ""
    ) -> Outcome:
        """Take some parameters to values over seconds. What cannot fade switches at once.

        A prompt or seed fades as a blend over the engine's slots.
        """
        seconds = check_seconds(seconds)
        accepted: dict[str, Value] = {}
        rejected: list[Rejection] = []
        for name, raw in values.items():
            try:
                row = self.store.table.find(name)
                value = row.coerce(raw)
            except SdbridgeError as error:
                rejected.append(Rejection(name, error.code, str(error)))
                continue
            if row.kind != "trigger":
                accepted[row.name] = value
            elif value:
                self.store.set(row.name, True, source)
        with self.store.steady():
            outcome = self._go(accepted, seconds, easing, "fade", source)
        return Outcome(outcome.revision, (*outcome.rejected, *rejected))

    def stop_all(self) -> None:
        """Every fade stands still where it is, and no cue follows by itself."""
        with self.store.steady():
            self._halt()
            if self._put_off:
                self.store.set_many(self._put_off, f"{SOURCE}stop")
                self._put_off = {}

    # --- cues ---

    def go(self, name_or_number: str | int | float | None = None, source: str = "") -> Outcome:
        """Recall a cue by name or place; None is the next one."""
        if name_or_number is None:
            return self.next(source)
        return self._cue(self._cues.find(name_or_number), source)

    def next(self, source: str = "") -> Outcome:
        return self._cue(self._cues.beside(1), source)

    def previous(self, source: str = "") -> Outcome:
        return self._cue(self._cues.beside(-1), source)

    # --- time ---

    def tick(self) -> None:
        """Move every fade to where it belongs now, as one revision, and let a due cue follow."""
        with self.store.steady():
            now = self._clock.now_ns()
            if self._put_off:
                self.store.set_many(self._put_off, f"{SOURCE}stop")
                self._put_off = {}
            if self._runs:
                self._step(now)
            due = self._cues.follows(now)
        if due:
            try:
                # a follow time on the last cue begins the list again
                self._cue(self._cues.position % len(self._cues.cues) + 1, "follow")
            except SdbridgeError as error:
                log.warning("no cue follows: %s", error)

    def _step(self, now: int) -> None:
        values: dict[str, Value] = {}
        still: list[_Run] = []
        for run in self._runs:
            share = run.share(now)
            if share >= 1.0:
                values.update(run.transition.end)
            else:
                values.update(run.transition.at(ease(run.easing, share)))
                still.append(run)
        self._runs = still
        if values:
            self.store.set_many(values, f"{SOURCE}fade")

    def _go(
        self, values: Mapping[str, Value], seconds: float, easing: str, what: str, source: str
    ) -> Outcome:
        """Start a transition; the caller holds the store steady."""
        check_easing(easing)
        start, _ = self.store.snapshot()
        names = claimed(values)
        # Slots that an older transition only borrowed must still end where that one would have left them.
        target = {n: v for run in self._runs for n, v in run.transition.end.items() if n in names}
        target.update(values)
        transition = plan(start, target, self.store.table)
        self._claim(names)
        label = f"{SOURCE}{what} {source}".strip()
        if seconds <= 0.0:
            return self.store.set_many(transition.end, label)
        self._runs.append(_Run(transition, self._clock.now_ns(), int(seconds * 1e9), easing))
        return self.store.set_many(transition.opening, label)

    def _halt(self) -> None:
        for run in self._runs:
            self._put_off.update(_pauses_of(run.transition))
        self._runs.clear()
        self._cues.follow_at_ns = None

    def _claim(self, names: set[str]) -> None:
        """Take names out of every transition under way."""
        for run in self._runs:
            for name in names:
                run.transition.release(name)
        self._runs = [run for run in self._runs if run.transition.end]

    def _between(self, first: Preset, second: Preset) -> Transition:
        """The transition of a morph, planned once while the two presets stay as they are."""
        if self._planned and self._planned[0] is first and self._planned[1] is second:
            return self._planned[2]
        table = self.store.table
        a, _ = values_of(first, table)
        b, _ = values_of(second, table)
        start = {**self.store.snapshot()[0], **b, **a}
        transition = plan(start, {**a, **b}, table)
        self._planned = (first, second, transition)
        return transition

    def _cue(self, position: int, source: str) -> Outcome:
        cue = self._cues.cues[position - 1]
        values: dict[str, Value] = {}
        rejected: list[Rejection] = []
        table = self.store.table
        preset = self.presets.find(cue.preset) if cue.preset else None
        if preset:
            values, rejected = values_of(preset, table)
        for name, raw in cue.values.items():
            try:
                row = table.find(name)
                values[row.name] = row.coerce(raw)
            except SdbridgeError as error:
                rejected.append(Rejection(name, error.code, str(error)))
        fired = {n: v for n, v in values.items() if table.rows[n].kind == "trigger"}
        with self.store.steady():
            held = {n: v for n, v in values.items() if n not in fired}
            outcome = self._go(held, cue.fade, "linear", f"cue {cue.name}", source)
            if fired:
                outcome = self.store.set_many(fired, f"{SOURCE}cue {cue.name}")
            self._cues.stand_at(position, self._clock.now_ns())
            before = self._preset
            if preset or held:
                self._preset = preset.name if preset else ""
        self._tell("cue")
        if self._preset != before:
            self._tell("preset")
        return Outcome(outcome.revision, (*outcome.rejected, *rejected))

    def _on_change(self, change: Change) -> None:
        """Called with the store held steady: whoever else touches a value takes it out of its fade."""
        if "panic" in change.triggers:
            self._halt()  # what was put off comes back at the next tick: no writes while being told
        if not change.source.startswith(SOURCE) and any(map(_is_prompt, change.values)):
            self._cues.follow_at_ns = None  # whoever types a prompt wants to keep it
        if self._runs and not change.source.startswith(SOURCE):
            self._claim(set(change.values))

    def _tell(self, topic: str) -> None:
        tell(self._listeners, topic)


def _is_prompt(name: str) -> bool:
    return name.startswith("prompt.") and name.endswith(".text")


def _pauses_of(transition: Transition) -> dict[str, object]:
    """Values that were only put off during a transition and must come back when it is stopped."""
    pauses = [blend.pause for blend in BLENDS if blend.pause]
    return {
        name: transition.end[name] for name in pauses if name in transition.opening and name in transition.end
    }


def _check_position(position: object) -> float:
    try:
        number = float(position)  # type: ignore[arg-type]  # anything may come in over OSC or HTTP
    except (TypeError, ValueError):
        raise SdbridgeError("SDB-PARAM-TYPE", f"morph takes 0 to 1, not {str(position)[:40]!r}") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise SdbridgeError("SDB-PARAM-NAN", f"morph was sent {number}")
    return min(max(number, 0.0), 1.0)
