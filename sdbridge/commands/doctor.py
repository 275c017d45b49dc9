"""``sdbridge doctor``: every check at once, as a list for people, JSON, or a report to send to someone."""

from __future__ import annotations

import getpass
import itertools
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from sdbridge import instance
from sdbridge.commands.say import OUT, print_json
from sdbridge.config import load_config
from sdbridge.demo import demo_config_path
from sdbridge.doctor import machine, model, textures
from sdbridge.doctor.finding import Finding
from sdbridge.errors import SdbridgeError

MARKS = {"good": "[green]ok[/]   ", "note": "[yellow]note[/] ", "wrong": "[red]WRONG[/]"}


def run_doctor(config: Path | None, as_json: bool, report: Path | None) -> int:
    """Exit code 1 if anything is wrong, else 0: the number of faults is in the text."""
    findings: list[Finding] = []
    for finding in check_everything(config):
        findings.append(finding)
        if not as_json:
            OUT.print(MARKS[finding.grade], end=" ", markup=True)
            OUT.print(f"{finding.name}: {finding.text}", soft_wrap=True)
            if finding.step:
                OUT.print(f"      -> {finding.step}", soft_wrap=True)
    wrong = sum(finding.grade == "wrong" for finding in findings)
    if as_json:
        print_json({"wrong": wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        OUT.print(
            f"\n{len(findings)} checks, {wrong} wrong." if wrong else f"\n{len(findings)} checks, all well."
        )
    if report is not None:
        report.write_text(redact("\n".join(_lines(findings))) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def check_everything(config: Path | None) -> Iterator[Finding]:
    """All findings, quick ones first."""
    running = instance.find_running()
    where = f"process {running.pid}, port {running.port}" if running else ""
    yield from itertools.chain(
        machine.check_python(),
        machine.check_places(),
        machine.check_shared_memory(),
        machine.check_port(_port_of(config), where),
        model.check_config(config),
        textures.check_textures(),
        machine.check_torch(),
    )


def redact(text: str) -> str:
    """Without what identifies a person or opens a door: user name, machine name, tokens."""
    for private, stand_in in (
        (str(Path.home()), "~"),
        (getpass.getuser(), "USER"),
        (socket.gethostname(), "HOST"),
    ):
        if len(private) > 2:
            text = text.replace(private, stand_in)
    return re.sub(r"(?i)(token|password|secret|key)(\s*[=:]\s*)\S+", r"\1\2***", text)


def _port_of(config: Path | None) -> int:
    try:
        return load_config(config or demo_config_path()).port
    except SdbridgeError:
        return 9000


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.grade:5} {finding.name}: {finding.text}" + (
            f" -> {finding.step}" if finding.step else ""
        )
