"""Install what is missing and run every check: ruff, mypy, pytest. ``python scripts/test.py [PYTEST ARGS]``.

Without arguments it runs the ordinary suite, in two processes side by side; with some it runs pytest alone
with them, such as ``python scripts/test.py -m slow``. Ends with 1 if tests failed, with 2 if more than tests
did. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _environment import ROOT, ensure_environment, say

CHECKS = (
    ("Lint", ["ruff", "check", "."]),
    ("Format", ["ruff", "format", "--check", "."]),
    ("Types", ["mypy"]),
)
#: Tests that only compute. The others start programs and wait for them, and none of these meets another.
COMPUTING = ("tests/engine/image", "tests/engine/accelerate", "tests/engine/preprocess", "tests/models")
#: Where pytest keeps what failed last, for ``--last-failed``.
FAILED_LAST = Path("v", "cache", "lastfailed")


def main(arguments: list[str]) -> int:
    python = str(ensure_environment(("test",)))
    failed: list[str] = []
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}

    def check() -> None:
        for name, (module, *rest) in CHECKS:
            say(f"{name} ...")
            if subprocess.run([python, "-m", module, *rest], cwd=ROOT).returncode:
                failed.append(name)

    if arguments:
        say("Tests ...")
        good = subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode == 0
    else:
        good = run_suite([python, "-m", "pytest"], environment, check)
    if not good:
        failed.append("Tests")
    if failed:
        say(f"Failed: {', '.join(failed)}")
    return 0 if not failed else 1 if failed == ["Tests"] else 2


def run_suite(pytest: list[str], environment: dict[str, str], check: Callable[[], None]) -> bool:
    """The whole ordinary suite; what only computes has a process of its own, and is shown when it is done.

    ``check`` is done meanwhile, before the rest of the suite.
    """
    # One thread each: two processes share the cores, and the small models gain nothing from more.
    environment = {"OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shown, cache = Path(folder, "computing.txt"), Path(folder, "cache")
        with shown.open("wb") as file:
            computing = subprocess.Popen(
                [*pytest, *COMPUTING, "-o", f"cache_dir={cache}"],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            check()
            say("Tests ...")
            rest = [f"--ignore={place}" for place in COMPUTING]
            codes = [subprocess.run([*pytest, *rest], cwd=ROOT, env=environment).returncode]
            say(f"Tests that compute ({', '.join(COMPUTING)}) ...")
            codes.append(computing.wait())
        finally:
            computing.kill()  # a no-op unless we were interrupted
            computing.wait()
        sys.stdout.flush()
        sys.stdout.buffer.write(shown.read_bytes())
        sys.stdout.flush()
        remember(cache / FAILED_LAST, ROOT / ".pytest_cache" / FAILED_LAST)
    return codes == [0, 0]


def remember(computed: Path, both: Path) -> None:
    """Add what failed of the computing tests to what pytest will repeat, in place of older news of them."""
    kept = {test: True for test in _failed(both) if not test.startswith(COMPUTING)}
    kept.update(_failed(computed))
    both.parent.mkdir(parents=True, exist_ok=True)
    both.write_text(json.dumps(kept, indent=2), encoding="utf-8")


def _failed(file: Path) -> dict[str, bool]:
    try:
        found: dict[str, bool] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
