"""Keeps an NDI source alive or dead on command: ``start`` and ``kill`` on standard input, each answered."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "ndi_source.py"
running: subprocess.Popen | None = None
for line in sys.stdin:
    if line.strip() == "start":
        running = subprocess.Popen(
            [sys.executable, str(SOURCE), *sys.argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print("started", running.stdout.readline().strip(), flush=True)
    elif running is not None:
        running.kill()
        running.communicate()
        print("killed", flush=True)
if running is not None:
    running.kill()
