"""A process that used CUDA ends with its own code, at once and with all that it said."""

import subprocess
import sys

ENDS = """
import sys, types
if sys.argv[1] != "none":
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_initialized=lambda: sys.argv[1] == "cuda")
    sys.modules["torch"] = torch
import atexit
atexit.register(lambda: print("Python's own end"))
from sdbridge.leaving import leave
print("said", end="")
leave(3)
print(" and went on")
"""


def ends(how: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", ENDS, how], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


def test_with_cuda_the_process_ends_at_once_with_its_code_and_its_words():
    assert ends("cuda") == (3, "said")


def test_without_cuda_or_without_torch_it_ends_as_python_ends():
    for how in ("cpu", "none"):
        assert ends(how) == (0, "said and went on\nPython's own end\n")
