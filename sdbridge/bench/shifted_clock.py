"""A wall clock that can be set back under running programs: theirs alone, the machine's stays right."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from sdbridge.errors import SdbridgeError

# Loaded before the C library. Only the wall clock is shifted; what waits by the monotonic clock is not,
# as when somebody sets a computer's clock.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *shift_s;
static int (*real_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    if (file >= 0) {
        void *seen = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (seen != MAP_FAILED) shift_s = seen;
    }
}

int clock_gettime(clockid_t which, struct timespec *now) {
    if (!real_gettime) real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real_gettime(which, now);
    if (!code && which == CLOCK_REALTIME && shift_s) now->tv_sec += *shift_s;
    return code;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int code = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return code;
}

time_t time(time_t *into) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (into) *into = exact.tv_sec;
    return exact.tv_sec;
}
"""


class ShiftedClock:
    """``environment`` is for the programs whose clock it is to be; ``set_back`` shifts it under them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "shift"
        self._library = folder / "shifted_clock.so"
        self._file.write_bytes(struct.pack("l", 0))

    @staticmethod
    def available() -> bool:
        return shutil.which("cc") is not None

    def build(self) -> None:
        """Raises SDB-BENCH-FAULT if the compiler refuses."""
        done = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), "-x", "c", "-", "-ldl"],
            input=_SOURCE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SdbridgeError("SDB-BENCH-FAULT", f"the shifted clock was not built: {done.stderr[-300:]}")

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._file)}

    def set_back(self, seconds: int) -> None:
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), struct.calcsize("l")) as shown:
            shown[:] = struct.pack("l", -seconds)
