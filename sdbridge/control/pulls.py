"""Models being pulled on behalf of the page: one thread each, with progress and the last error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError
from sdbridge.models import download

log = logging.getLogger(__name__)

MOST_AT_ONCE = 2

Pull = Callable[[str, Callable[[Progress], None]], Path]


@dataclass(frozen=True)
class PullStatus:
    """How one pull stands: ``progress`` while it runs, ``error`` once it has failed."""

    progress: Progress | None = None
    error: str = ""


class Pulls:
    """Every method may be called from any thread. What is under way at exit is resumed by the next pull."""

    def __init__(self, pull: Pull = download.pull) -> None:
        self._pull = pull
        self._lock = threading.Lock()
        self._known: dict[str, PullStatus] = {}

    def start(self, model: str) -> None:
        """Begin to pull ``model``; asking again while it runs changes nothing. Raises SDB-PULL-BUSY."""
        with self._lock:
            running = [name for name, status in self._known.items() if status.progress is not None]
            if model in running:
                return
            if len(running) >= MOST_AT_ONCE:
                raise SdbridgeError("SDB-PULL-BUSY", f"{' and '.join(running)} are being pulled already")
            self._known[model] = PullStatus(Progress("download", 0, 0, f"asking for {model}"))
        threading.Thread(target=self._run, args=(model,), name=f"pull {model[:20]}", daemon=True).start()

    def statuses(self) -> dict[str, PullStatus]:
        """What runs and what failed, by id."""
        with self._lock:
            return dict(self._known)

    def _run(self, model: str) -> None:
        try:
            self._pull(model, lambda progress: self._note(model, PullStatus(progress)))
            self._note(model, None)
        except SdbridgeError as error:
            log.warning("%s", error)
            self._note(model, PullStatus(error=str(error)))
        except Exception:  # edge: control; a pull must not stay "running" for ever
            log.exception("pulling %s failed", model)
            self._note(
                model, PullStatus(error=str(SdbridgeError("SDB-WEB-FAULT", f"pulling {model} failed")))
            )

    def _note(self, model: str, status: PullStatus | None) -> None:
        with self._lock:
            if status is None:
                self._known.pop(model, None)
            else:
                self._known[model] = status
