"""The tiny VAE's kernels give what diffusers' module gives (in Triton's interpreter, or on a GPU)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BODY = Path(__file__).with_name("tiny_vae_cases.py")
CASES = ("encode", "decode", "rgba", "cuts", "refresh", "sixteen", "refusals")


def _triton_place() -> str | None:
    """Where triton can be imported from: installed, or named by SDBRIDGE_TRITON."""
    if importlib.util.find_spec("triton") is not None:
        return ""
    given = os.environ.get("SDBRIDGE_TRITON", "/work/dev/triton")
    return given if (Path(given) / "triton").is_dir() else None


@pytest.mark.parametrize("case", CASES)
def test_interpreted(case: str) -> None:
    place = _triton_place()
    if place is None:
        pytest.skip("Triton is not installed; its interpreter runs the kernels without a GPU")
    # A process of its own: the interpreter must be chosen before triton is imported.
    root = str(Path(__file__).parents[3])
    environment = {
        **os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(entry for entry in (root, place) if entry),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(BODY), case, "cpu"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_on_cuda(case: str) -> None:
    pytest.importorskip("triton")
    from tests.engine.accelerate import tiny_vae_cases

    tiny_vae_cases.run(case, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graph_replays_with_new_weights() -> None:
    pytest.importorskip("triton")
    from tests.engine.accelerate import tiny_vae_cases

    tiny_vae_cases.replay(torch.device("cuda"))
