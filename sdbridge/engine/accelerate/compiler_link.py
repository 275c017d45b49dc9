"""The streaming process's end of the compiling one: start it when needed, ask, hear, end it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdbridge.engine.accelerate.kernels.recording import Kernel

log = logging.getLogger(__name__)

_PATIENCE_S = 240.0  # without any answer while something is asked for
_COMMAND = (sys.executable, "-m", "sdbridge.engine.accelerate.compiler_process")


@dataclass(frozen=True)
class Answer:
    """What became of one kernel. ``fault``: it cannot be compiled. ``lost``: nobody could try."""

    entry: str = ""
    seal: str = ""
    seconds: float = 0.0
    fault: str = ""
    lost: str = ""


Hear = Callable[[Answer], None]


def worker_count() -> int:
    """Kernels compiled at once: two thirds of the cores, so that frames keep theirs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(12, cores * 2 // 3))


class CompilerLink:
    """Kernels to a process of their own, answers back in a thread of ours.

    The process starts with the first question (or ``start``), ends by itself when idle, and is started
    again by the next question. Once it failed to work it stays away: every answer is ``lost`` then.
    """

    def __init__(
        self, target: Sequence[Any], workers: int | None = None, command: Sequence[str] = _COMMAND
    ) -> None:
        self.workers = workers or worker_count()
        self._target = list(target)
        self._command = list(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._to_say: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._open: dict[int, tuple[Kernel, Hear]] = {}
        self._asked = 0
        self._heard_at = time.monotonic()
        self._out_of_use = ""
        self._closed = False

    @property
    def trouble(self) -> str:
        """Why nobody compiles any more, or ''."""
        return self._out_of_use

    def start(self) -> None:
        """Begin now what takes seconds, its imports, since questions will come."""
        with self._lock:
            self._begin()

    def ask(self, kernel: Kernel, hear: Hear) -> None:
        """``hear`` gets the answer, in a thread of ours or at once where there is nobody to ask."""
        with self._lock:
            lost = "closed" if self._closed else self._out_of_use
            if not lost:
                self._asked += 1
                if not self._open:
                    self._heard_at = time.monotonic()
                self._open[self._asked] = kernel, hear
                self._begin()
                self._to_say.put(self._question(self._asked, kernel))
        if lost:
            hear(Answer(lost=lost))

    def look(self) -> None:
        """Give up on a process that has said nothing for long though it was asked."""
        with self._lock:
            silent = self._open and time.monotonic() - self._heard_at > _PATIENCE_S
            process = self._process
        if silent and process is not None:
            self._give_up(f"no answer in {_PATIENCE_S:.0f} s")
            process.kill()

    def close(self) -> None:
        """End the process; what was asked is answered with ``lost``."""
        with self._lock:
            self._closed = True
            process = self._process
            self._to_say.put(None)
        if process is not None:
            try:  # its input has ended, so it ends its workers and itself
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()
        self._answer_all("closed")

    # --- the process ---

    def _begin(self) -> None:
        """Start the process and its two threads. The lock is held."""
        if self._process is not None or self._out_of_use or self._closed:
            return
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",  # it needs no card, and must take no memory of it
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        flags = getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0)  # Windows
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=environment,
                creationflags=flags | getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self._out_of_use = f"it does not start: {error}"
            threading.Thread(target=self._answer_all, args=(self._out_of_use,), daemon=True).start()
            return
        to_say: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        to_say.put(json.dumps({"target": self._target, "workers": self.workers}))
        self._to_say = to_say
        for work in (self._say, self._hear):
            threading.Thread(
                target=work, args=(self._process, to_say), name="compiler link", daemon=True
            ).start()

    @staticmethod
    def _question(number: int, kernel: Kernel) -> str:
        return json.dumps({"id": number, "module": kernel.module, "name": kernel.name, "form": kernel.form})

    def _say(self, process: subprocess.Popen[str], to_say: queue.SimpleQueue[str | None]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError), process.stdin as stream:  # the hearing end notices
            while (line := to_say.get()) is not None:
                stream.write(line + "\n")
                stream.flush()

    def _hear(self, process: subprocess.Popen[str], to_say: queue.SimpleQueue[str | None]) -> None:
        assert process.stdout is not None
        fault = ""
        for line in process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if "done" not in said:
                fault = str(said.get("fault", ""))
                continue
            with self._lock:
                self._heard_at = time.monotonic()
                _, hear = self._open.pop(int(said["done"]), (None, None))
            if hear is not None:
                hear(_answer(said))
        code = process.wait()
        to_say.put(None)
        if process.stdout is not None:
            process.stdout.close()
        self._ended(process, code, fault)

    def _ended(self, process: subprocess.Popen[str], code: int, fault: str) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
            if self._closed:
                return
            if code == 0 and not fault:  # it was idle; what was asked at that very moment is asked again
                if self._open:
                    self._begin()
                    for number, (kernel, _) in self._open.items():
                        self._to_say.put(self._question(number, kernel))
                return
        self._give_up(fault or f"it ended with {code}")

    def _give_up(self, why: str) -> None:
        with self._lock:
            first, self._out_of_use = not self._out_of_use, self._out_of_use or why
        if first:
            log.warning("kernels are compiled in the streaming process: the compiling one failed: %s", why)
        self._answer_all(why)

    def _answer_all(self, why: str) -> None:
        with self._lock:
            left, self._open = list(self._open.values()), {}
        for _, hear in left:
            hear(Answer(lost=why))


def _answer(said: dict[str, Any]) -> Answer:
    return Answer(
        entry=str(said.get("entry", "")),
        seal=str(said.get("seal", "")),
        seconds=float(said.get("seconds", 0.0)),
        fault=str(said.get("fault", "")),
        lost=str(said.get("lost", "")),
    )
