"""A child process as the bridge starts it, and what its end says."""

from __future__ import annotations

import signal
import sys
from typing import Any


def start_deaf_to_signals(process: Any) -> None:
    """Start a child that Ctrl+C and SIGTERM cannot reach, not even before its main function runs.

    The signal mask is this thread's own and is inherited, so blocking it here for the moment of
    the start neither loses nor delays anything for the bridge.
    """
    if sys.platform == "win32":
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say_exit(code: int | None) -> str:
    """The exit code of a process, or the signal that ended it, for people."""
    if code is None:
        return "no exit code"
    if code < 0:
        try:
            return f"by signal {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"exit code {code}"
