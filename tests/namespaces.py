"""Whether this machine lets a test have a network of its own: root, unshare, and a kernel that allows it."""

import shutil
import subprocess
from functools import cache


@cache
def why_not(*programs: str) -> str:
    """Empty if a test may have namespaces of its own and ``programs`` are here; else the reason."""
    missing = [program for program in ("unshare", "ip", *programs) if not shutil.which(program)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
    )
    return f"no network of its own here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""
