"""The Hopper convolutions are written down and compiled for a card that is not here, as a start does it.

A kernel that is given what Triton cannot write down (a layout, say) runs nowhere once anything records.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sdbridge.engine.accelerate.kernels import gluon_fits

_COMPILE = """
import json, torch
from sdbridge.engine.accelerate import compiler_process
from sdbridge.engine.accelerate.kernels.choice import Config
from sdbridge.engine.accelerate.kernels.recording import recording

compiler_process.get_ready(["cuda", 90, 32])
from sdbridge.engine.accelerate.kernels.conv_double import run_double
from sdbridge.engine.accelerate.kernels.conv_halve import run_halve
from sdbridge.engine.accelerate.kernels.conv_last import run_last
from sdbridge.engine.accelerate.kernels.conv_ring import run_ring

def half(*shape):
    return torch.zeros(*shape, dtype=torch.float16)

with recording() as kernels:
    for c in (32, 64):
        picture, nine = half(1, 9, 68, c), half(9, c, c)
        ring = Config(2, 64, 4, 4, by="ring")
        run_ring(picture, nine, torch.zeros(c), half(1, 9, 68, c), ring, True, None, True)
        run_ring(picture, nine, torch.zeros(c), half(1, 9, 68, c), ring, False, half(1, 9, 68, c), False)
        run_double(picture, half(16, c, c), half(1, 18, 136, c), Config(5, 128, 8, 4), True)
        run_halve(picture, nine, half(1, 5, 34, c), Config(2, 64, 4, 4), True)
        pixels = torch.zeros(1, 9, 68, dtype=torch.int32)
        run_last(picture, half(9, c, 16), torch.zeros(16), pixels, Config(9, 64, 4, 4), True, True)
made = [(kernel.name, compiler_process.compile_kernel(kernel.module, kernel.name, kernel.form)["seal"])
        for kernel in kernels]
print(json.dumps(made))
"""


@pytest.mark.timeout(300)
def test_every_hopper_convolution_is_written_down_and_compiled(tmp_path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    if not gluon_fits():
        pytest.skip("the Hopper kernels are not written for this Triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout.splitlines()[-1])
    names = sorted(name for name, _ in made)
    assert names == sorted(2 * ["ring_kernel", "ring_kernel", "double_kernel", "halve_kernel", "last_kernel"])
    assert all(seal for _, seal in made)
