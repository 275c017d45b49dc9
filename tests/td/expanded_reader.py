"""Reads an expanded component tree back, written from the reference's grammar and from no code of ours.

Grammar: ../shared/reference/touchdesigner.md section 1.3, and real trees that TouchDesigner wrote
(rootnotez/td-snapshot toeexpand/2026-05-18_td_snapshot.tox.toc, TrueFiasco/TD_Builder_alpha
eval/agent_eval/fixtures/knotgen.tox.toc): their table of contents begins with ``# 4 0 0 0 1``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

HEADER = "# 4 0 0 0 1"
ALLOWED = {"COMP:base", "DAT:text", "DAT:execute"}
_PROLOGUE = bytes.fromhex("320a2a" + "00000001" * 4 + "00000002")


class TreeError(ValueError):
    """The tree breaks the grammar; the text says where."""


@dataclass
class ReadNode:
    """One operator as the files describe it."""

    type: str
    tile: tuple[int, int, int, int]
    flags: dict[str, str]
    parms: dict[str, str] = field(default_factory=dict)
    text: str | None = None


def read_tree(toc: Path) -> dict[str, ReadNode]:
    """All operators by path, in the order of the table of contents. Raises TreeError."""
    folder = toc.with_suffix(".dir")
    raw = toc.read_bytes()
    if b"\r" in raw or not raw.endswith(b"\n"):
        raise TreeError(f"{toc}: line ends")
    lines = raw.decode("ascii").splitlines()
    if lines[0] != HEADER:
        raise TreeError(f"{toc}: first line {lines[0]!r}")
    listed = lines[1:]
    if len(set(listed)) != len(listed):
        raise TreeError(f"{toc}: a file is listed twice")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    if there != set(listed):
        raise TreeError(
            f"{toc}: listed but absent {set(listed) - there}, there but unlisted {there - set(listed)}"
        )
    if listed[0] != ".build":
        raise TreeError(f"{toc}: .build comes first")
    read_build(folder / ".build")
    nodes: dict[str, ReadNode] = {}
    for name in listed[1:]:
        path, _, kind = name.rpartition(".")
        data = (folder / name).read_bytes()
        if kind == "n":
            if "/" in path and path.rpartition("/")[0] not in nodes:
                raise TreeError(f"{name}: comes before its parent")
            nodes[path] = read_n(name, data)
        elif path not in nodes:
            raise TreeError(f"{name}: comes before its .n")
        elif kind == "parm":
            nodes[path].parms = read_parm(name, data)
        elif kind == "text":
            nodes[path].text = read_text(name, data)
        else:
            raise TreeError(f"{name}: files of this kind are not to be written")
    return nodes


def read_build(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    if b"\r" in raw or not raw.endswith(b"\n"):
        raise TreeError(f"{path}: line ends")
    pairs = dict(line.split(" ", 1) for line in raw.decode("ascii").splitlines())
    if list(pairs)[:3] != ["version", "build", "time"] or pairs["version"] != "099":
        raise TreeError(f"{path}: {pairs}")
    return pairs


def read_n(name: str, data: bytes) -> ReadNode:
    if b"\r" in data or not data.endswith(b"\nend\n"):
        raise TreeError(f"{name}: line ends")
    lines = data.decode("ascii").splitlines()
    if lines[0] not in ALLOWED:
        raise TreeError(f"{name}: type {lines[0]!r} is not known to be right on disk")
    node = ReadNode(lines[0], (0, 0, 0, 0), {})
    for line in lines[1:-1]:
        if found := re.fullmatch(r"tile (-?\d+) (-?\d+) (\d+) (\d+)", line):
            node.tile = (int(found[1]), int(found[2]), int(found[3]), int(found[4]))
        elif found := re.fullmatch(r"flags =  ((?:[a-z]+ [a-z0-9]+)(?: [a-z]+ [a-z0-9]+)*)", line):
            words = found[1].split()
            node.flags = dict(zip(words[::2], words[1::2], strict=True))
        elif not re.fullmatch(r"color \d\.\d+ \d\.\d+ \d\.\d+ ", line):
            raise TreeError(f"{name}: {line!r}")
    return node


def read_parm(name: str, data: bytes) -> dict[str, str]:
    if b"\r" in data:
        raise TreeError(f"{name}: line ends")
    lines = data.decode("ascii").split("\n")
    if lines[0] != "?" or lines[-2:] != ["?", ""]:
        raise TreeError(f"{name}: not between question marks")
    parms: dict[str, str] = {}
    for line in lines[1:-2]:
        found = re.fullmatch(r"([a-z0-9]+) (\d+) ([^\s\"].*)", line)
        if found is None or found[2] != "0":
            raise TreeError(f"{name}: {line!r} is not a constant with flag 0")
        parms[found[1]] = found[3]
    return parms


def read_text(name: str, data: bytes) -> str:
    if data[:23] != _PROLOGUE:
        raise TreeError(f"{name}: prologue {data[:27].hex()}")
    size = int.from_bytes(data[23:27], "big")
    body = data[27:]
    if len(body) != size or b"\r" in body:
        raise TreeError(f"{name}: {size} bytes announced, {len(body)} there")
    return body.decode("utf-8")
