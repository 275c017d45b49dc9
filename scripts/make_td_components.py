"""Regenerates the TouchDesigner components' schema, trees and parameter list from the parameter table.

Run it after any change of the table, of the status topics or of td_components/src:

    python scripts/make_td_components.py

``--check`` writes nothing and fails if something would change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "td_components"), str(ROOT / "td_components" / "src")]

from sdbridge import __version__  # noqa: E402
from sdbridge.parameters.addresses import HEARTBEAT, STATUS_TOPICS  # noqa: E402
from sdbridge.parameters.table import TABLE  # noqa: E402

COMPONENTS = ROOT / "td_components"
GUIDE = ROOT / "docs" / "touchdesigner.md"
BEGIN, END = (f"<!-- made by scripts/make_td_components.py: {word} -->" for word in ("begin", "end"))


def schema_document() -> dict[str, object]:
    """The daemon's table and status topics, as the components read them."""
    rows = []
    for row in TABLE.schema():
        later = TABLE.rows.get(str(row["name"]).replace("#", "2"))
        if row["slots"] and later is not None and later.default != row["default"]:
            row = {**row, "later_default": later.default}
        rows.append(row)
    topics = [{"name": HEARTBEAT.rpartition("/")[2], "type": "i", "help": "Counts seconds.", "unit": ""}]
    topics += [{"name": t.name, "type": t.type, "help": t.help, "unit": t.unit} for t in STATUS_TOPICS]
    return {"hash": TABLE.schema_hash(), "version": __version__, "parameters": rows, "status": topics}


def schema_text() -> str:
    return json.dumps(schema_document(), indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def guide_text() -> str:
    """The guide with its list of parameters as the pages have them."""
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{parameter_list()}\n{END}{rest.partition(END)[2]}"


def parameter_list() -> str:
    """Every page of every component as a table."""
    from sdbridge_td.build import COMPONENTS as NAMES
    from sdbridge_td.build import pages_of
    from sdbridge_td.mapping import Names, Schema

    schema = Schema(schema_document())
    rows = {(r.sequence, r.par): r for r in Names(schema).rows.values()}
    lines: list[str] = []
    for component in NAMES:
        for page, specs in pages_of(component, schema):
            lines += [
                f"### {component}, page {page}",
                "",
                "| parameter | values | meaning |",
                "|---|---|---|",
            ]
            for spec in specs:
                for one in getattr(spec, "block", (spec,)):
                    sequence = spec.name if one is not spec else ""
                    row = rows.get((sequence, one.name)) if component == "SdBridge" else None
                    name = f"{sequence}#{one.name.lower()}" if sequence else one.name
                    where = f" `/sdbridge/{row.name.replace('.', '/')}`" if row else ""
                    lines.append(
                        f"| **{one.label}** `{name}`{where} | {values_of(one)} | {meaning_of(one)} |"
                    )
            lines.append("")
    return "\n".join(lines)


def values_of(spec: object) -> str:
    """What a parameter takes, short."""
    menu, low, high = (getattr(spec, name) for name in ("menu", "low", "high"))
    if menu:
        return ", ".join(menu)
    if low is not None or high is not None:
        return f"{low:.10g} to {high:.10g}"
    style = str(spec.style)
    return {"Toggle": "on, off", "Str": "text", "Pulse": "button"}.get(style, style.lower())


def meaning_of(spec: object) -> str:
    """The help, without the range that stands in the column beside it."""
    return str(spec.help).rpartition(" [")[0].replace("|", "/") or str(spec.help)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 if something would change"
    )
    check = parser.parse_args().check
    schema = COMPONENTS / "schema" / "parameters.json"
    if check and (not schema.is_file() or schema.read_text(encoding="utf-8") != schema_text()):
        print("schema/parameters.json is not that of the table: run python scripts/make_td_components.py")
        return 1
    schema.parent.mkdir(exist_ok=True)
    if not check:
        schema.write_text(schema_text(), encoding="utf-8", newline="\n")
        GUIDE.write_text(guide_text(), encoding="utf-8", newline="\n")
    elif GUIDE.read_text(encoding="utf-8") != guide_text():
        print("docs/touchdesigner.md lists other parameters: run python scripts/make_td_components.py")
        return 1
    from trees import write_trees

    if check:
        with tempfile.TemporaryDirectory() as folder:
            write_trees(Path(folder))
            if files_under(Path(folder)) != files_under(COMPONENTS / "expanded"):
                print("expanded/ is not that of the sources: run python scripts/make_td_components.py")
                return 1
        return 0
    shutil.rmtree(COMPONENTS / "expanded", ignore_errors=True)
    for toc in write_trees(COMPONENTS / "expanded"):
        print(toc.relative_to(ROOT))
    return 0


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


if __name__ == "__main__":
    sys.exit(main())
