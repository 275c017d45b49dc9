"""The clock that is set back under a running program is its wall clock, and only that."""

import subprocess
import sys

import pytest

from sdbridge.bench.shifted_clock import ShiftedClock

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not ShiftedClock.available(), reason="needs Linux and cc"
)

LOOK = """
import datetime, sys, time
for line in sys.stdin:
    print(time.time(), time.monotonic(), datetime.datetime.now().timestamp(), flush=True)
"""


def test_the_wall_clock_goes_back_and_the_other_goes_on(tmp_path):
    clock = ShiftedClock(tmp_path)
    clock.build()
    program = subprocess.Popen(
        [sys.executable, "-c", LOOK],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def look():
        program.stdin.write("\n")
        return [float(word) for word in program.stdout.readline().split()]

    with program:
        before = look()
        clock.set_back(3600)
        after = look()
        program.stdin.close()
    assert after[0] < before[0] - 3000 and after[2] < before[2] - 3000
    assert after[1] >= before[1]
