"""Make the generated tables in README.md and docs/ anew. ``--check`` only says whether they are current."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sdbridge.parameters.documentation import fill_in  # noqa: E402 - the path comes first


def main(arguments: list[str]) -> int:
    """Exit 1 if --check found a file that is not current."""
    stale = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        made = fill_in(text)
        if made == text:
            continue
        stale += 1
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is not current: run python scripts/make_docs.py")
        else:
            path.write_text(made, encoding="utf-8", newline="\n")
            print(f"{path.relative_to(ROOT)} made anew")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
