"""A pickle that the catalog names, rewritten as safetensors: weights only, in a process of its own.

Some networks were only ever published as pickles. Their code is never run: torch reads tensors and plain
containers and refuses everything else. What the engine then gets is a safetensors file like any other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sdbridge.errors import SdbridgeError

SUFFIXES = frozenset({".pth", ".pt", ".bin", ".ckpt"})
_TIMEOUT_S = 600.0
_REWRITE = (
    "import sys; from pathlib import Path; from sdbridge.models.unpickle import rewrite_here; "
    "rewrite_here(Path(sys.argv[1]), Path(sys.argv[2]))"
)


def rewrite(path: Path) -> Path:
    """Put ``path``'s tensors into a ``.safetensors`` beside it, delete the pickle, and return the new file.

    The bridge calls this: torch is imported by the other process alone. Raises SDB-PULL-DAMAGED.
    """
    made = path.with_suffix(".safetensors")
    command = [sys.executable, "-c", _REWRITE, str(path), str(made)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        said = "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["no reason"])[-1]
    except subprocess.TimeoutExpired:
        said = f"it took longer than {_TIMEOUT_S:.0f} s"
    path.unlink(missing_ok=True)
    if said:
        made.unlink(missing_ok=True)
        raise SdbridgeError("SDB-PULL-DAMAGED", f"{path.name} cannot be read as weights only: {said[:200]}")
    return made


def rewrite_here(path: Path, made: Path) -> None:
    """The same in this process."""
    import torch
    from safetensors.torch import save_file

    found = torch.load(path, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found)
    tensors = {name: value.contiguous() for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError("it holds no tensors")
    save_file(tensors, made)
