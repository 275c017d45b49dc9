"""What the main thread does while others work: wait, and on macOS keep Syphon's announcements going."""

from __future__ import annotations

import sys
import threading

from sdbridge.textures import syphon

_SLICE_S = 0.05


def wait_on_main_thread(ended: threading.Event, timeout_s: float, platform: str = sys.platform) -> bool:
    """Wait for ``ended`` up to ``timeout_s``; True if it was set. Call it in a loop from the main thread.

    On macOS the system's own run loop turns meanwhile: without it no Syphon server is announced
    or found.
    """
    if platform != "darwin" or not syphon.Receiver.available()[0]:
        return ended.wait(timeout_s)
    left_s = timeout_s
    while left_s > 0 and not ended.is_set():
        syphon.pump(min(_SLICE_S, left_s))
        left_s -= _SLICE_S
    return ended.is_set()
