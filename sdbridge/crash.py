"""Reports of crashes, for bug threads: what happened and how the bridge stood, without names and tokens."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from sdbridge.clock import Clock
from sdbridge.control.diagnostics import diagnostics, redact
from sdbridge.control.view import BridgeView

log = logging.getLogger(__name__)

REPORTS_KEPT = 10
#: A fault that repeats itself is worth one report a minute, not one each time.
APART_S = 60.0


class CrashReports:
    """Catches what no one caught, in any thread, from enter to exit; also writes on request.

    Writing happens in a thread of its own: neither a full disk nor a slow one reaches the show.
    """

    def __init__(self, view: BridgeView, folder: Path, clock: Clock) -> None:
        self._view = view
        self._folder = folder
        self._clock = clock
        self._written_ns: int | None = None
        self._writing: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = (sys.excepthook, threading.excepthook)
        sys.excepthook = self._on_uncaught
        threading.excepthook = self._on_uncaught_in_thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.excepthook, threading.excepthook = self._before
        self.join()

    def write(self, title: str, trace: str = "") -> None:
        """Write a report soon; at most one a minute."""
        now = self._clock.now_ns()
        if self._written_ns is not None and now - self._written_ns < APART_S * 1e9:
            return
        self._written_ns = now
        self._writing = threading.Thread(
            target=self._write, args=(title, trace), name="crash-report", daemon=True
        )
        self._writing.start()

    def join(self) -> None:
        """Wait for a report under way."""
        if self._writing is not None:
            self._writing.join(5.0)

    def _write(self, title: str, trace: str) -> None:
        head = redact(f"{title}\n\n{trace}\n" if trace else f"{title}\n\n", self._view.config.token)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt"
            file.write_text(head + diagnostics(self._view), encoding="utf-8")
            for old in sorted(self._folder.glob("crash-*.txt"))[:-REPORTS_KEPT]:
                old.unlink(missing_ok=True)
            log.warning("a report was written: %s", file)
        except OSError as error:
            log.warning("SDB-CRASH-WRITE: no report in %s: %s", self._folder, error)

    def _on_uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            self._catch("uncaught in the main thread", error)
        self._before[0](kind, error, trace)

    def _on_uncaught_in_thread(self, hooked: threading.ExceptHookArgs) -> None:
        name = hooked.thread.name if hooked.thread is not None else "?"
        if hooked.exc_value is not None:
            self._catch(f"uncaught in thread {name}", hooked.exc_value)

    def _catch(self, where: str, error: BaseException) -> None:
        trace = "".join(traceback.format_exception(error))
        log.error("%s:\n%s", where, trace)
        self.write(f"{where}: {type(error).__name__}: {error}", trace)
