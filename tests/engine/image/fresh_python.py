"""A program in a Python of its own, which has imported nothing of ours yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def in_fresh_python(program: str) -> subprocess.CompletedProcess[str]:
    """Run to its end, with the package to be had; ``stdout`` and ``stderr`` as text."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
