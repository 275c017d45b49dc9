"""The tables in the docs, made from the code: parameters, commands and status topics as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdbridge.parameters.addresses import COMMANDS, HEARTBEAT, STATUS_TOPICS
from sdbridge.parameters.parameter import Parameter
from sdbridge.parameters.table import TABLE

#: What the README shows: one address for each thing that people ask for first.
_MOST_USED = (
    "prompt.#.text",
    "prompt.#.weight",
    "strength",
    "steps",
    "guidance_scale",
    "seed.#.value",
    "controlnet.#.scale",
    "lora.#.weight",
    "output.freeze",
    "output.black",
    "panic",
)
_TYPES = {"i": "int", "f": "float", "s": "str"}


def address_table(rows: Iterable[Parameter] | None = None) -> str:
    """Parameters, one line each; a row with slots stands once, with ``#`` for the number."""
    lines = ["| address | type | range | default | meaning |", "|---|---|---|---|---|"]
    for row in TABLE.templates if rows is None else rows:
        cells = (_address(row), row.kind, _cell(row.range_text()), _default(row), _cell(row.help))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def grouped_address_tables() -> str:
    """All parameters under a heading for each group, in the table's order."""
    groups: dict[str, list[Parameter]] = {}
    for row in TABLE.templates:
        groups.setdefault(row.group, []).append(row)
    return "\n\n".join(f"### {name.capitalize()}\n\n{address_table(rows)}" for name, rows in groups.items())


def most_used_table() -> str:
    """The README's short list."""
    by_name = {row.name: row for row in TABLE.templates}
    rows = [by_name[name] for name in _MOST_USED if name in by_name]
    commands = [c for c in COMMANDS if c.address.endswith(("/preset/recall", "/cue/go", "/subscribe"))]
    lines = [address_table(rows)]
    for command in commands:
        lines.append(
            f"| `{_cell(command.example())}` | command | | | {_cell(_first_sentence(command.help))} |"
        )
    return "\n".join(lines)


def command_table() -> str:
    """The addresses that do something."""
    lines = ["| address and arguments | OSC types | what it does |", "|---|---|---|"]
    for command in COMMANDS:
        also = f" Also: `{command.address}/NAME 1`, for buttons." if command.by_segment else ""
        lines.append(
            f"| `{_cell(command.example())}` | {command.types or '-'} | {_cell(command.help)}{also} |"
        )
    return "\n".join(lines)


def status_table() -> str:
    """The topics that go out to subscribers."""
    lines = ["| address | type | unit | meaning |", "|---|---|---|---|"]
    lines.append(f"| `{HEARTBEAT}` | int | | Counts up once a second while sdbridge lives. |")
    for topic in STATUS_TOPICS:
        lines.append(f"| `{topic.address}` | {_TYPES[topic.type]} | {topic.unit} | {_cell(topic.help)} |")
    return "\n".join(lines)


SECTIONS = {
    "most-used": most_used_table,
    "parameters": grouped_address_tables,
    "commands": command_table,
    "status": status_table,
}


def fill_in(text: str) -> str:
    """``text`` with what stands between each pair of marks made anew.

    The marks are ``<!-- made by scripts/make_docs.py: NAME -->`` (``most-used`` if no name is given)
    and ``<!-- end -->``. Raises KeyError for a name that is not in SECTIONS.
    """
    start, end = "<!-- made by scripts/make_docs.py", "<!-- end -->"
    out: list[str] = []
    lines: Sequence[str] = text.split("\n")
    inside = False
    for line in lines:
        if line.startswith(start):
            name = line.removeprefix(start).removesuffix("-->").strip(" :") or "most-used"
            out += [line, "", SECTIONS[name](), ""]
            inside = True
        elif inside and line.strip() == end:
            inside = False
        if not inside:
            out.append(line)
    return "\n".join(out)


def _address(row: Parameter) -> str:
    aliases = "".join(f" = `/sdbridge/{alias.replace('.', '/')}`" for alias in row.aliases)
    slots = f" (1-{row.slots})" if row.slots else ""
    return f"`{row.address}`{slots}{' slot 1' + aliases if aliases else ''}"


def _default(row: Parameter) -> str:
    if row.kind == "trigger" or row.default == "":
        return ""
    if isinstance(row.default, bool):
        return "on" if row.default else "off"
    return f"{row.default:g}" if isinstance(row.default, float) else str(row.default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".") + "."
