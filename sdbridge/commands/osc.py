"""``sdbridge osc``: the address table, made from the one list of parameters."""

from __future__ import annotations

from sdbridge.commands.say import OUT, print_json, print_table
from sdbridge.parameters.addresses import COMMANDS, STATUS_TOPICS
from sdbridge.parameters.parameter import Parameter
from sdbridge.parameters.table import TABLE


def run_osc(as_json: bool, find: str, markdown: bool) -> int:
    """Print the table; slot rows stand once with ``#`` for the number."""
    rows = [row for row in TABLE.templates if find.lower() in f"{row.address} {row.help}".lower()]
    if as_json:
        print_json([entry for entry in TABLE.schema() if any(entry["name"] == row.name for row in rows)])
        return 0
    if markdown:
        from sdbridge.parameters.documentation import address_table

        OUT.print(address_table(rows), markup=False, soft_wrap=True)
        return 0
    print_table(
        ("address", "type", "range", "default", "meaning"),
        [(_address(row), row.kind, row.range_text(), _default(row), row.help) for row in rows],
    )
    wanted = find.lower()
    commands = [c for c in COMMANDS if wanted in f"{c.address} {c.help}".lower()]
    if commands:
        OUT.print("\nCommands")
        print_table(("address and arguments", "what it does"), [(c.example(), c.help) for c in commands])
    topics = [t for t in STATUS_TOPICS if wanted in f"{t.address} {t.help}".lower()]
    if topics:
        OUT.print("\nSent to whoever subscribes")
        print_table(("address", "meaning"), [(t.address, t.help) for t in topics])
    OUT.print("\n# is the slot number, counted from 1. See docs/osc.md for subscriptions, presets and cues.")
    return 0


def _address(row: Parameter) -> str:
    aliases = "".join(f" (= /sdbridge/{alias})" for alias in row.aliases)
    return row.address + (f" [1-{row.slots}]" if row.slots else "") + aliases


def _default(row: Parameter) -> str:
    if row.kind == "trigger":
        return ""
    return f'"{row.default}"' if row.kind == "str" else str(row.default)
