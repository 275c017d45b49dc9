# ruff: noqa: N802
"""A Spout for several processes on Linux: names in a folder, as true Spout keeps them in named memory.

Like the true one it forgets names of processes that are gone when the list is asked for, and calls
a second sender of a name ``name_1``. Only names that SpoutGL 0.1.1 has.
"""

import json
import os
from pathlib import Path

import numpy as np
import psutil

_FOLDER = Path(os.environ["SDB_DESK"])


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read(name: str) -> dict:
    return json.loads((_FOLDER / name).read_text())


def names() -> list[str]:
    found = []
    for file in sorted(_FOLDER.iterdir()):
        if file.name.startswith("."):
            continue
        try:
            facts = read(file.name)
        except FileNotFoundError:  # its sender took it off the desk just now
            continue
        if _alive(facts["pid"]):
            found.append(file.name)
        else:
            file.unlink(missing_ok=True)
    return found


class SpoutSender:
    def __init__(self) -> None:
        self._name = ""
        self._count = 0

    def createOpenGL(self) -> bool:
        return True

    def closeOpenGL(self) -> None:
        self.releaseSender()

    def isGLDXReady(self) -> bool:
        return True

    def setSenderName(self, name: str) -> None:
        self._name = f"{name}_1" if name in names() else name
        self._write({"count": 0, "mean": -1.0})

    def sendImage(self, buffer, width, height, gl_format, invert, host_fbo) -> bool:
        self._count += 1
        pixels = np.frombuffer(memoryview(buffer).cast("B"), np.uint8)
        self._write({"count": self._count, "mean": float(pixels.reshape(-1, 4)[:, :3].mean())})
        return True

    def releaseSender(self) -> None:
        if self._name and (_FOLDER / self._name).exists() and read(self._name)["pid"] == os.getpid():
            (_FOLDER / self._name).unlink()
        self._name = ""

    def _write(self, facts: dict) -> None:
        new = _FOLDER / f".{os.getpid()}"
        new.write_text(json.dumps({"pid": os.getpid(), **facts}))
        os.replace(new, _FOLDER / self._name)


class SpoutReceiver:
    def getSenderList(self) -> list[str]:
        return names()

    def getActiveSender(self):
        return None
