"""Logging: short lines on the console, everything in a rotated file, the newest lines kept for the page."""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.logging import RichHandler

FILE_FORMAT = "%(asctime)s %(levelname)-7s %(processName)s/%(threadName)s %(name)s: %(message)s"
LARGEST_FILE = 10 * 1024 * 1024
FILES_KEPT = 5
LINES_KEPT = 500

#: Talkative libraries whose remarks belong into the file, not on the console.
_TO_FILE_ONLY = (
    "torch",
    "diffusers",
    "transformers",
    "huggingface_hub",
    "httpx",
    "uvicorn",
    "zeroconf",
    "aioice",
    "aiortc",
    "py",
)


class _Recent(logging.Handler):
    """Keeps the newest lines for ``log_lines``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def lines(self, count: int) -> list[str]:
        return list(self._lines)[-count:] if count > 0 else []


class _ForgivingFile(logging.handlers.RotatingFileHandler):
    """A full or vanished disk must not reach the show: the first failure is told once, then silence."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LARGEST_FILE, backupCount=FILES_KEPT, encoding="utf-8", delay=True)
        self._told = threading.Event()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not self._told.is_set():
            self._told.set()
            Console(stderr=True, markup=False, emoji=False).print(
                f"SDB-LOG-WRITE: the log {self.baseFilename} cannot be written. Free the disk, or set "
                "log.folder. The output goes on.",
                soft_wrap=True,
            )


class Logging:
    """Sets the root logger up on enter and puts everything back on exit. One per process."""

    def __init__(self, level: str = "info", folder: Path | None = None, console: bool = True) -> None:
        self._level = getattr(logging, level.upper())
        self._folder = folder
        self._console = console
        self._recent = _Recent()
        self._stack = ExitStack()
        self.file: Path | None = None

    def lines(self, count: int) -> Sequence[str]:
        """The newest lines, oldest first."""
        return self._recent.lines(count)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        before = root.level
        root.setLevel(min(self._level, logging.INFO))
        self._stack.callback(root.setLevel, before)
        self._add(self._recent)
        trouble = None if self._folder is None else self._add_file(self._folder)
        if self._console or trouble is not None:  # somewhere it must be told
            handler = _console(self._level)
            handler.addFilter(_not_from_libraries)
            self._add(handler)
        if trouble is not None:
            logging.getLogger(__name__).warning(
                "SDB-LOG-WRITE: no log file in %s (%s); going on without one.", self._folder, trouble
            )
        return self

    def _add(self, handler: logging.Handler) -> None:
        root = logging.getLogger()
        root.addHandler(handler)
        self._stack.callback(handler.close)
        self._stack.callback(root.removeHandler, handler)

    def _add_file(self, folder: Path) -> OSError | None:
        """Log into ``folder`` too; what keeps us from it, if anything does."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = folder / "sdbridge.log"
            handler = _ForgivingFile(self.file)
            handler.setFormatter(logging.Formatter(FILE_FORMAT))
            self._add(handler)
            crash = self._stack.enter_context((folder / "crash.log").open("a", encoding="utf-8"))
            faulthandler.enable(crash)
            self._stack.callback(faulthandler.disable)
        except OSError as error:
            self.file = None
            return error
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _console(level: int) -> logging.Handler:
    """Coloured and folded on a terminal; in a file or a service's journal each message is one line."""
    console = Console(stderr=True)
    if console.is_terminal:
        return RichHandler(level=level, console=console, show_path=False, markup=False, log_time_format="%X")
    plain = logging.StreamHandler()
    plain.setLevel(level)
    plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    return plain


def _not_from_libraries(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.split(".")[0] not in _TO_FILE_ONLY
