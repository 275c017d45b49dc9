"""Every kernel of SD-Turbo compiles for cards that we do not have, and fits in their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

#: Bytes of shared memory that one program may have, by compute capability (CUDA's programming guide).
SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}

#: In a process of its own, since it tells Triton and PyTorch of a card that is not there.
_COMPILE = """
import json, sys, torch
from triton.runtime.driver import driver
from sdbridge.engine.accelerate import compiler_process

arch = int(sys.argv[1])
driver.set_active(compiler_process._Card("cuda", arch, 32))
torch.cuda.get_device_capability = lambda *device: divmod(arch, 10)
torch.cuda.is_available = lambda: True

from diffusers import AutoencoderTiny, UNet2DConditionModel
from sdbridge.engine.accelerate.kernels import canny, conv, linear, tiny_vae, unet_conv
from sdbridge.engine.accelerate.kernels.recording import recording
from sdbridge.engine.accelerate.kernels.unet import FusedOps
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.seams import UnetCall

linear._fits_triton = unet_conv._fits_triton = lambda *tensors: True
unet_conv._fits_copy_engine = lambda *tensors: arch >= 90
conv._ask_proof = lambda question, channels: frozenset()  # it needs the card itself
vae = AutoencoderTiny().half()
encoder, decoder = tiny_vae.TinyEncoder(vae), tiny_vae.TinyDecoder(vae)
meta = torch.device("meta")
with meta:
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024, use_linear_projection=True,
    ).half()
packed = PackedUnet(unet, PlainOps())
with torch.inference_mode(), recording() as found:
    latent = encoder(torch.zeros(1, 512, 512, 4, dtype=torch.uint8)).float()
    decoder(latent, rgba=True)
    canny.canny(torch.zeros(1, 3, 512, 512), torch.zeros(2), torch.zeros(9), 64)
    with meta:
        given = torch.zeros(1, 4, 64, 64).half(), torch.zeros(1).long(), torch.zeros(1, 77, 1024).half()
        packed.run(UnetCall(*given), FusedOps(meta))
shared = {}
for kernel, function in found.items():
    made = function.preload(kernel.form)
    shared[kernel.name] = max(shared.get(kernel.name, 0), made.metadata.shared)
print(json.dumps(shared))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", SHARED)
def test_every_kernel_compiles_for_other_cards_and_fits(tmp_path, arch: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, str(arch)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shared = json.loads(done.stdout.splitlines()[-1])
    assert len(shared) >= 10 and max(shared.values()) <= SHARED[arch], shared
