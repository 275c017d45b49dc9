"""A process that compiles kernels for the card of a process that streams; it shows no frame and opens no GPU.

Lines of JSON come on standard input: first the card and how many may be compiled at once, then kernels. Each
is answered by a line on standard output. What was compiled lies in Triton's cache on disk, with the little C
library that launches it; from there the streaming process loads it in milliseconds. The process ends when
its input does, or when nothing was asked for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from sdbridge.errors import first_line

IDLE_S = 60.0
#: Modules with kernels; what one of them needs and this Triton has not is told when it is asked for.
KERNEL_MODULES = (
    "canny",
    "conv",
    "conv_double",
    "conv_halve",
    "conv_last",
    "conv_ring",
    "linear_triton",
    "norm",
    "unet_conv_hopper",
    "unet_conv_triton",
)


#: A process that was ended, memory or disk that is full: trying in the streaming process would be worse.
_FAULTS = (OSError, MemoryError, BrokenExecutor)


def compile_kernel(module: str, name: str, form: str) -> dict[str, Any]:
    """Compile one kernel and its launcher into Triton's cache; where it lies there, and its seal."""
    from triton.runtime.driver import driver

    began = time.monotonic()
    made = getattr(importlib.import_module(module), name).preload(form)
    # Triton 3.7 has one launcher for all, which needs the card. Before, without a C compiler or driver the
    # streaming process says so itself when it gets there.
    with contextlib.suppress(
        AttributeError, AssertionError, ImportError, OSError, RuntimeError, subprocess.SubprocessError
    ):
        driver.active.launcher_cls(made.src, made.metadata)
    folder = Path(next(iter(made.metadata_group.values()))).parent
    return {"entry": folder.name, "seal": seal_of(folder), "seconds": time.monotonic() - began}


def seal_of(folder: Path) -> str:
    """A hash of all files of one entry of the cache; '' where there are none. Raises OSError."""
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest() if files else ""


class _Card:
    """Stands in Triton's driver's place: it names the card to compile for, and nothing can be run on it."""

    def __init__(self, backend: str, arch: int, warp_size: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(backend, arch, warp_size)

    @property
    def launcher_cls(self) -> Any:
        from triton.backends.nvidia.driver import CudaLauncher

        return CudaLauncher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def get_ready(target: list[Any]) -> None:
    """Import all that compiling takes, and name the card. Raises ImportError without Triton."""
    from triton.runtime.driver import driver

    driver.set_active(_Card(*target))  # type: ignore[arg-type]  # what compiling asks of a driver
    for name in KERNEL_MODULES:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(f"sdbridge.engine.accelerate.kernels.{name}")


def _workers(count: int) -> Executor:
    """Processes that share what is imported already; threads where there is no fork (most of it is C++)."""
    if "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin":
        return ThreadPoolExecutor(count)
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(count, context, initializer=_end_with, initargs=(os.getpid(),))
    pool.submit(os.getpid).result()  # all fork now: beside a thread that reads, they would never wake up
    return pool


def _end_with(parent: int) -> None:
    """In a worker: go when the parent is gone, whatever ended it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve(given: IO[str], answer: Callable[[dict[str, Any]], None], idle_s: float = IDLE_S) -> int:
    """Answer until the input ends or ``idle_s`` pass without work."""
    first = json.loads(given.readline() or "{}")
    try:
        get_ready(first["target"])
    except (ImportError, AttributeError, KeyError, RuntimeError) as error:
        answer({"fault": first_line(error, kind=True)})
        return 1
    pool = _workers(int(first["workers"]))
    asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in given:
            asked.put(line)
        asked.put(None)

    threading.Thread(target=read, daemon=True).start()
    open_ones: set[Future[dict[str, Any]]] = set()
    while True:
        try:
            line = asked.get(timeout=idle_s)
        except queue.Empty:
            if any(not future.done() for future in open_ones):
                continue
            line = None
        if line is None:
            break
        wanted = json.loads(line)
        try:
            future = pool.submit(compile_kernel, wanted["module"], wanted["name"], wanted["form"])
        except RuntimeError as error:  # a worker died of an earlier one, and the pool with it
            answer({"done": wanted["id"], "fault": first_line(error, kind=True)})
            continue
        open_ones = {other for other in open_ones if not other.done()} | {future}
        future.add_done_callback(lambda done, id=wanted["id"]: answer(_said(id, done)))  # type: ignore[misc]
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()
    return 0


def _said(number: int, done: Future[dict[str, Any]]) -> dict[str, Any]:
    if done.cancelled():
        return {"done": number, "fault": "cancelled"}
    error = done.exception()
    if error is None:
        return {"done": number, **done.result()}
    return {"done": number, "fault" if isinstance(error, _FAULTS) else "lost": first_line(error, kind=True)}


def main() -> int:
    """The process: answers go where standard output was, whatever else is printed goes to standard error."""
    if hasattr(os, "nice"):
        os.nice(5)  # the frames go first
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    turn = threading.Lock()

    def answer(said: dict[str, Any]) -> None:
        with turn, contextlib.suppress(OSError, ValueError):  # whoever asked may be gone
            answers.write(json.dumps(said) + "\n")
            answers.flush()

    code = serve(sys.stdin, answer)
    os._exit(code)  # a thread may still be compiling; nobody wants it


if __name__ == "__main__":
    main()
