"""Whether a bridge runs already, and where: a lock that dies with its process, and a file for the rest."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sdbridge import __version__, paths
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A running bridge, as its discovery file says. No secrets stand in it."""

    pid: int
    port: int
    name: str
    started: str
    version: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


class Instance:
    """Our own entry among the running bridges, from ``enter`` to ``exit``.

    One bridge per port. ``<port>.lock`` is held locked by the operating system, which lets go of
    it however the process ends; ``<port>.json`` is read by doctor, by a second start and by
    TouchDesigner's launcher.
    """

    def __init__(self, port: int, name: str, folder: Path | None = None) -> None:
        self._port = port
        self._name = name
        self._folder = folder or paths.runtime_dir()
        self._file: IO[str] | None = None

    @property
    def _discovery(self) -> Path:
        return self._folder / f"{self._port}.json"

    def __enter__(self) -> Self:
        """Raises SDB-INSTANCE-RUNNING if a bridge holds this port already."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / f"{self._port}.lock").open("a+", encoding="utf-8")
        except OSError as error:  # a full or read-only disk must not keep the show from starting
            log.warning("%s", _unwritable(self._folder, error))
            return self
        if not _lock(self._file):
            self._file.close()
            self._file = None
            other = _read(self._discovery)
            who = (
                f"process {other.pid}, since {other.started}, page {other.url}"
                if other
                else "unknown process"
            )
            raise SdbridgeError("SDB-INSTANCE-RUNNING", f"a bridge runs on port {self._port} already ({who})")
        self._tell()
        return self

    def _tell(self) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        about = asdict(Running(os.getpid(), self._port, self._name, now, __version__))
        part = self._discovery.with_suffix(".part")
        try:
            part.write_text(json.dumps(about), encoding="utf-8")
            part.replace(self._discovery)
        except OSError as error:
            log.warning("%s", _unwritable(self._discovery, error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        self._discovery.unlink(missing_ok=True)
        self._file.close()  # which unlocks it; the empty file stays, since removing it would race
        self._file = None


def find_running(port: int | None = None, folder: Path | None = None) -> Running | None:
    """The bridge that runs on ``port``, or the newest one on any; None if none does."""
    folder = folder or paths.runtime_dir()
    found: list[tuple[float, Running]] = []
    for file in folder.glob("*.json") if folder.is_dir() else ():
        running = _read(file)
        if running is None or (port is not None and running.port != port):
            continue
        if _is_held(file.with_suffix(".lock")):
            found.append((file.stat().st_mtime, running))
    return max(found, key=lambda item: item[0])[1] if found else None


def _read(file: Path) -> Running | None:
    try:
        return Running(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_held(file: Path) -> bool:
    try:
        with file.open("a+", encoding="utf-8") as handle:
            return not _lock(handle)
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: IO[str]) -> bool:
        handle.seek(0)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(handle: IO[str]) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _unwritable(place: Path, error: OSError) -> SdbridgeError:
    return SdbridgeError("SDB-INSTANCE-WRITE", f"{place} cannot be written ({error.strerror or error})")
