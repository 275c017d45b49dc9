"""Install what is missing and run every check: ruff, mypy, pytest. ``python scripts/test.py [PYTEST ARGS]``.

Without arguments it runs the ordinary suite; with some it runs pytest alone with them, such as
``python scripts/test.py -m slow``. Ends with 1 if tests failed, with 2 if more than tests did. Standard
library only.
"""

from __future__ import annotations

import os
import subprocess
import sys

from _environment import ROOT, ensure_environment, say

CHECKS = (
    ("Lint", ["ruff", "check", "."]),
    ("Format", ["ruff", "format", "--check", "."]),
    ("Types", ["mypy"]),
)


def main(arguments: list[str]) -> int:
    python = str(ensure_environment(("test",)))
    failed: list[str] = []
    if not arguments:
        for name, (module, *rest) in CHECKS:
            say(f"{name} ...")
            if subprocess.run([python, "-m", module, *rest], cwd=ROOT).returncode:
                failed.append(name)
    say("Tests ...")
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    if subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode:
        failed.append("Tests")
    if failed:
        say(f"Failed: {', '.join(failed)}")
    return 0 if not failed else 1 if failed == ["Tests"] else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
