"""Regenerates td_components/schema/parameters.json and td_components/expanded from the parameter table.

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
sys.path[:0] = [str(ROOT), str(ROOT / "td_components")]

from sdbridge import __version__  # noqa: E402
from sdbridge.parameters.addresses import HEARTBEAT, STATUS_TOPICS  # noqa: E402
from sdbridge.parameters.table import TABLE  # noqa: E402

COMPONENTS = ROOT / "td_components"


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
