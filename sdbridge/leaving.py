"""How a process ends in which CUDA was used."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


def leave(code: int) -> None:
    """End the process at once if CUDA was used in it, else return.

    Whatever holds anything has been closed by then. Python's own end would search for garbage once more, and
    on an H200 (torch 2.11) a CUDA object freed there, after the libraries it belongs to, ended the process
    with SIGSEGV: an exit code that looks as if the work had failed.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
