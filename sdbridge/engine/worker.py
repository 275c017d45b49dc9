"""The engine's process: its main function, its log, and what becomes of a fault that ends it."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from sdbridge.collector import SWITCH_S
from sdbridge.engine.inbox import Inbox
from sdbridge.engine.interface import EngineState
from sdbridge.engine.loop import EngineLoop, as_engine_error
from sdbridge.engine.pipe import Wake
from sdbridge.engine.registry import prepare_process
from sdbridge.engine.told import EngineStart
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)


def run_engine_process(start: EngineStart, connection: Connection, wake: Wake, ready: Wake) -> None:
    """The child's main function."""
    # Ctrl+C reaches the whole terminal and systemd's SIGTERM the whole group; the bridge decides when
    # the engine ends, and without a bridge it ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()  # a crash in a driver leaves at least a trace
    sys.setswitchinterval(SWITCH_S)
    if start.config.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(start.config.threads))
    inbox = Inbox(connection, wake, start.revision, own_process=True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(_ToBridge(inbox))
    run_engine(start, inbox, wake, ready, prepare_process(start.config))


def run_engine(start: EngineStart, inbox: Inbox, wake: Wake, ready: Wake, imports_s: float = 0.0) -> None:
    """Run one engine from load to unload; every fault is told to the bridge, none is raised."""
    loop = EngineLoop(start, inbox, wake, ready, imports_s=imports_s)
    try:
        loop.run()
    except SdbridgeError as error:  # the bridge logs it, with what it does about it
        inbox.send("error", error)
        inbox.send("state", EngineState.FAILED, {})
    except Exception as error:  # noqa: BLE001 # edge: engine loop, the bridge decides what follows
        log.error("the engine failed:\n%s", traceback.format_exc())
        inbox.send("error", as_engine_error(error))
        inbox.send("state", EngineState.FAILED, {})
    else:
        inbox.send("state", EngineState.STOPPED, {})
    finally:
        loop.close()
        inbox.finished.set()


class _ToBridge(logging.Handler):
    """Log lines of the child, told to the bridge, whose log has them all in one place."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox = inbox
        self._busy = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._inbox.send("log", record.levelno, record.name, self.format(record))
        finally:
            self._busy.now = False
