"""The truth about every parameter: its value now, its revision, and who hears of a change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sdbridge.errors import SdbridgeError
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.table import TABLE, ParameterTable
from sdbridge.parameters.telling import tell


@dataclass(frozen=True)
class Rejection:
    """One refused value: what was asked, the error's code, and the sentence for the sender."""

    name: str
    code: str
    message: str


@dataclass(frozen=True)
class Change:
    """What subscribers hear: every value that changed in one go, and the triggers that fired, in order."""

    values: Mapping[str, Value]
    triggers: tuple[str, ...]
    revision: int
    source: str


@dataclass(frozen=True)
class Outcome:
    """Answer to a ``set``: the revision now in force and what was refused."""

    revision: int
    rejected: tuple[Rejection, ...] = ()


Subscriber = Callable[[Change], None]


class ParameterStore:
    """Holds one value per parameter. Every method may be called from any thread.

    A call to ``set`` or ``set_many`` that changes something makes exactly one revision and one
    ``Change``; a value equal to the present one changes nothing. Subscribers are called in the
    setter's thread, in order of revision, without the value lock held, and must be quick. A fault in one
    is logged with its trace; the value stands, the setter and the other subscribers do not notice.
    """

    def __init__(self, table: ParameterTable = TABLE) -> None:
        self.table = table
        self._values: dict[str, Value] = table.defaults()
        self._revision = 0
        self._lock = threading.Lock()
        self._delivery = threading.RLock()  # keeps changes in order of revision across threads
        self._subscribers: list[Subscriber] = []

    @property
    def revision(self) -> int:
        return self._revision

    def get(self, name: str) -> Value:
        """The value now. Raises SDB-PARAM-UNKNOWN; triggers have no value and give False."""
        row = self.table.find(name)
        with self._lock:
            return self._values.get(row.name, False)

    def snapshot(self) -> tuple[dict[str, Value], int]:
        """All values and the revision they belong to."""
        with self._lock:
            return dict(self._values), self._revision

    def set(self, name: str, value: object, source: str = "") -> Outcome:
        """Set one parameter by name, alias or address; fire it if it is a trigger."""
        return self.set_many({name: value}, source)

    def set_many(self, values: Mapping[str, object], source: str = "") -> Outcome:
        """Set several at once: they share a revision and reach the engine at the same frame edge."""
        return self.set_sequence(list(values.items()), source)

    def set_sequence(self, pairs: list[tuple[str, object]], source: str = "") -> Outcome:
        """As ``set_many``, from pairs: the last value wins, but every trigger fires as often as it came."""
        accepted: dict[str, Value] = {}
        triggers: list[str] = []
        rejected: list[Rejection] = []
        for name, raw in pairs:
            try:
                row = self.table.find(name)
                value = row.coerce(raw)
            except SdbridgeError as error:
                rejected.append(Rejection(name, error.code, str(error)))
                continue
            if row.kind == "trigger":
                if value:
                    triggers.append(row.name)
            else:
                accepted[row.name] = value
        with self._delivery:
            with self._lock:
                changed = {n: v for n, v in accepted.items() if not _same(self._values[n], v)}
                if changed or triggers:
                    self._revision += 1
                    self._values.update(changed)
                revision = self._revision
            if changed or triggers:
                tell(self._subscribers, Change(changed, tuple(triggers), revision, source))
        return Outcome(revision, tuple(rejected))

    @contextmanager
    def steady(self) -> Iterator[None]:
        """While this is held no other thread changes a value: to read, decide and write as one step.

        Setters of other threads wait, so hold it for microseconds and never over disk or network.
        Subscribers are called with it held: what only subscribers and holders touch needs no lock of its own.
        """
        with self._delivery:
            yield

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` with every Change from now on; returns the function that ends it."""
        with self._delivery:
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._delivery:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)

        return unsubscribe


def _same(a: Value, b: Value) -> bool:
    return type(a) is type(b) and a == b
