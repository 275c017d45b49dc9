"""Writes the expanded component trees that TouchDesigner's own ``toecollapse`` turns into ``.tox``.

Only what public trees show beyond doubt is written: ``COMP:base``, ``DAT:text`` and ``DAT:execute``,
parameters with flag 0, line feeds. Everything else is made inside TouchDesigner, by the code these trees
carry. The same sources always give the same bytes.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

from sdbridge_td.build import COMPONENTS, boot_text, code_texts  # noqa: E402

#: The table of contents of a .tox begins so in trees that TouchDesigner wrote, builds 2017 to 2025.
TOC_HEADER = "# 4 0 0 0 1"
#: ``099`` is the version of the file format. The build is the one whose trees the grammar was read from.
BUILD = "version 099\nbuild 2025.32460\ntime Thu Jan  1 00:00:00 2026\n"
_FLAGS = "flags =  viewer 1 parlanguage 0\n"


def tree(component: str, texts: Mapping[str, str], boot: str) -> dict[str, bytes]:
    """Every file of one component's tree by its path in the ``.dir``, in the order of the ``.toc``."""
    files = {".build": BUILD.encode(), f"{component}.n": node("COMP:base", 0, 0)}
    files[f"{component}/boot.n"] = node("DAT:execute", -1100, 450)
    files[f"{component}/boot.parm"] = parms({"start": "on", "create": "on", "language": "python"})
    files[f"{component}/boot.text"] = text(boot)
    files[f"{component}/code.n"] = node("COMP:base", -1100, 600)
    for place, (name, body) in enumerate(sorted(texts.items())):
        files[f"{component}/code/{name}.n"] = node("DAT:text", 0, -100 * place)
        files[f"{component}/code/{name}.parm"] = parms({"language": "python"})
        files[f"{component}/code/{name}.text"] = text(body)
    return files


def node(kind: str, x: int, y: int) -> bytes:
    """A ``.n`` file."""
    flags = "flags =  parlanguage 0\n" if kind.startswith("COMP") else _FLAGS
    width, height = (160, 130) if kind.startswith("COMP") else (130, 90)
    return f"{kind}\ntile {x} {y} {width} {height}\n{flags}color 0.55 0.55 0.55 \nend\n".encode("ascii")


def parms(values: Mapping[str, str]) -> bytes:
    """A ``.parm`` file: constants only, which is flag 0."""
    return ("?\n" + "".join(f"{name} 0 {value}\n" for name, value in values.items()) + "?\n").encode("ascii")


def text(body: str) -> bytes:
    """A ``.text`` file: six big-endian words, the last of them the length, then the text as UTF-8."""
    data = body.replace("\r\n", "\n").encode("utf-8")
    return b"2\n*" + struct.pack(">6I", 1, 1, 1, 1, 2, len(data)) + data


def write_trees(target: Path) -> list[Path]:
    """Write all components' trees into ``target``, replacing what is there; returns the ``.toc`` files."""
    written = []
    for component in COMPONENTS:
        folder = target / f"{component}.tox.dir"
        shutil.rmtree(folder, ignore_errors=True)
        files = tree(component, code_texts(HERE, component), boot_text(HERE))
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        toc = target / f"{component}.tox.toc"
        toc.write_bytes(("\n".join([TOC_HEADER, *files]) + "\n").encode("ascii"))
        written.append(toc)
    return written
