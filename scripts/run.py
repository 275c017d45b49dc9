"""Install what is missing and run sdbridge: ``python scripts/run.py [CONFIG] [--frames N] [--summary FILE]``.

Every argument is handed to ``sdbridge run``; without any it runs the demo. Standard library only.
"""

from __future__ import annotations

import sys

from _environment import ensure_environment, hand_over, run_extras


def main() -> int:
    python = ensure_environment(run_extras())
    return hand_over([str(python), "-m", "sdbridge", "run", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
