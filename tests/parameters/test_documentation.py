"""The tables in README and docs are made from the code, and are what the code says now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdbridge.control.compat_streamdiffusiontd import _IGNORED, _PLAIN, _SPECIAL, _TRIGGERS
from sdbridge.parameters.addresses import COMMANDS, HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.documentation import SECTIONS, fill_in, grouped_address_tables
from sdbridge.parameters.table import TABLE

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_in_the_docs_are_current() -> None:
    checked = subprocess.run(
        [sys.executable, "scripts/make_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout


def test_every_row_command_and_topic_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "osc.md").read_text(encoding="utf-8")
    for address in (
        *(row.address for row in TABLE.templates),
        *(c.address for c in COMMANDS),
        *(t.address for t in STATUS_TOPICS),
    ):
        assert f"`{address}" in guide


def test_the_guide_names_every_address_of_streamdiffusiontd_that_is_taken() -> None:
    guide = (ROOT / "docs" / "osc.md").read_text(encoding="utf-8")
    section = guide.partition("## Coming from StreamDiffusionTD")[2].partition("\n## ")[0]
    taken = {*_PLAIN, *_TRIGGERS, *_SPECIAL}
    assert set(re.findall(r"`(/[a-z_]+)`", section)) == taken
    assert not taken & _IGNORED


def test_every_address_that_the_guide_uses_exists() -> None:
    guide = (ROOT / "docs" / "osc.md").read_text(encoding="utf-8").partition("## Commands")[0]
    known = {
        *TABLE.by_address,
        *(c.address for c in COMMANDS),
        *(t.address for t in STATUS_TOPICS),
        HEARTBEAT,
    }
    starts = tuple(c.address + "/" for c in COMMANDS if c.by_segment)
    for address in re.findall(r"/sdbridge/[a-z0-9_/*{},\[\]-]+", guide):
        address = address.rstrip("/,]").replace("/normalized/", "/")
        if address == "/sdbridge" or "*" in address or address.startswith((*starts, "/sdbridge/morph/")):
            continue
        assert address in known or any(one.startswith(address + "/") for one in known), address


def test_filling_in_twice_changes_nothing_and_keeps_the_rest() -> None:
    text = "before\n<!-- made by scripts/make_docs.py: status -->\nstale words\n<!-- end -->\nafter\n"
    once = fill_in(text)
    assert fill_in(once) == once
    assert once.startswith("before\n") and once.endswith("<!-- end -->\nafter\n") and "stale" not in once
    with pytest.raises(KeyError):
        fill_in("<!-- made by scripts/make_docs.py: nothing -->\n<!-- end -->")


def test_no_cell_breaks_its_table() -> None:
    for make in SECTIONS.values():
        for line in make().splitlines():
            if line.startswith("|"):
                cells = len(re.findall(r"(?<!\\)\|", line))
                assert cells in (4, 5, 6), line
    assert "none \\| full" in grouped_address_tables()
