"""What the main thread does while others work: rest, and on macOS keep Syphon's announcements going."""

from __future__ import annotations

import sys
from functools import cache

from sdbridge.clock import Clock


def rest(clock: Clock, seconds: float, platform: str = sys.platform) -> None:
    """Let ``seconds`` pass. The bridge calls it in a loop from the main thread.

    On macOS the system's own run loop turns meanwhile: without it no Syphon server is announced
    or found.
    """
    if platform == "darwin" and _has_syphon():
        from sdbridge.textures import syphon

        syphon.pump(seconds)
    else:
        clock.sleep(seconds)


@cache
def _has_syphon() -> bool:
    from sdbridge.textures import syphon

    return syphon.Receiver.available()[0]
