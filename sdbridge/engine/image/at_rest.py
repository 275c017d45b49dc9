"""Whether a file is whole that has its full length already.

Explorer, torrents and copies to a network drive reserve a file's room first, so half of it looks like a whole
file whose end is zeros. Such a file is read once nobody writes on it any more. Ends of zeros may be honest (a
network that was never trained further), so they alone are no fault.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from sdbridge.engine.image.stored import stamp_of
from sdbridge.errors import SdbridgeError

#: So many zeros at the end are suspicious. Smaller tensors of zeros are everywhere.
TAIL = 64 << 10
#: Nobody writes on a file that stayed as it is for so long. Who writes waits for a disk now and then.
REST_S = 2.0
#: What was written last so long ago is at rest, whatever clock the drive's server goes by.
OLD_S = 60.0
#: So long the loading thread waits; afterwards the file is looked after like others that failed.
PATIENCE_S = 10.0


def wait_until_at_rest(path: Path) -> None:
    """Return when nobody writes on ``path``: mostly at once. Asks the disk, and may sleep.

    Raises SDB-FILE-BROKEN where it is still being written after ``PATIENCE_S``, OSError where it is gone.
    """
    if time.time() - path.stat().st_mtime > OLD_S:
        return
    end = time.monotonic() + PATIENCE_S
    while (zeros := _zeros_at_the_end(path)) >= TAIL:
        before = stamp_of(path.stat())
        time.sleep(REST_S)
        if stamp_of(path.stat()) == before:
            return
        if time.monotonic() > end:
            raise SdbridgeError(
                "SDB-FILE-BROKEN",
                f"{path} is still being written: its last {zeros >> 10} KB are zeros so far",
                "It comes in by itself once it is whole.",
            )


def _zeros_at_the_end(path: Path) -> int:
    """Bytes of zeros in the file's last megabyte, or 0 where there are less than ``TAIL``."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - TAIL))
        if any(stream.read(TAIL)):
            return 0
        stream.seek(max(0, size - (1 << 20)))
        last = stream.read(1 << 20)
    return len(last) - len(last.rstrip(b"\0"))
