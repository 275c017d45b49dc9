"""Compiling a model's kernels in a process of its own, so that no frame of this one waits for a compiler.

Triton compiles in the interpreter's one lock; in the streaming process that made single frames late by a
third of a second. The child builds networks of the same shape without weights, runs each call once, and
ends; what it compiled lies in Triton's cache on disk, from where this process loads it in milliseconds.
A note beside the cache says what has been compiled; it is bound to card, driver, versions and sources.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge import paths
from sdbridge.engine.image.seams import UnetCall

log = logging.getLogger(__name__)

TIMEOUT_S = 240.0
Spec = Mapping[str, Any]


def use_own_cache() -> Path:
    """Triton's cache goes where ours is, unless somebody has chosen a place; before Triton is first used."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(paths.cache_dir() / "kernels"))
    return Path(os.environ["TRITON_CACHE_DIR"])


def unet_spec(unet: Any, call: UnetCall) -> dict[str, Any]:
    """The UNet's shape and the call's, as plain values."""
    optional = {"timestep_cond": call.timestep_cond, "mid_residual": call.mid_residual}
    return {
        "kind": "unet",
        "config": _plain(unet.config),
        "dtype": str(unet.dtype).removeprefix("torch."),
        "sample": list(call.sample.shape),
        "text": list(call.encoder_hidden_states.shape),
        "added": {name: list(value.shape) for name, value in sorted(call.added_cond.items())},
        "down": None if call.down_residuals is None else [list(each.shape) for each in call.down_residuals],
        **{name: None if value is None else list(value.shape) for name, value in optional.items()},
    }


def pictures_spec(vae: Any, dtype: torch.dtype, frames: int, height: int, width: int) -> dict[str, Any]:
    """The tiny VAE's shape and its pictures'."""
    return {
        "kind": "pictures",
        "config": _plain(vae.config),
        "dtype": str(dtype).removeprefix("torch."),
        "size": [frames, height, width],
    }


def is_compiled(spec: Spec, identity: Mapping[str, str]) -> bool:
    """Whether ``spec`` is known to be compiled already."""
    return _note_of(spec, identity).exists()


def compile_in_child(
    spec: Spec,
    identity: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
    cancelled: Callable[[], bool] = lambda: False,
) -> bool:
    """Have ``spec`` compiled unless it is known to be; False where the child failed (one line is logged).

    Blocks until then, or until ``cancelled``; call it beside the stream.
    """
    note = _note_of(spec, identity)
    if note.exists():
        return True
    command = [sys.executable, "-m", "sdbridge.engine.accelerate.precompile"]
    try:
        done = _run(command, json.dumps(spec), timeout_s, cancelled)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("kernels are compiled in the streaming process: %s", error)
        return False
    if done is None:
        return False
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        log.warning("kernels are compiled in the streaming process: the compiling one ended with %s", line)
        return False
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(dict(identity)), encoding="utf-8")
    except OSError as error:
        log.warning("what was compiled cannot be noted in %s (%s)", note.parent, error)
    return True


def _run(
    command: list[str], given: str, timeout_s: float, cancelled: Callable[[], bool]
) -> subprocess.CompletedProcess[str] | None:
    """The ended process, or None where it was cancelled. Raises what subprocess raises."""
    pipe = subprocess.PIPE
    until = time.monotonic() + timeout_s
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True) as child:
        try:
            rest: str | None = given
            while not cancelled():
                try:
                    _, told = child.communicate(rest, timeout=0.2)
                    return subprocess.CompletedProcess(command, child.returncode, "", told)
                except subprocess.TimeoutExpired:
                    rest = None  # it was sent with the first look
                if time.monotonic() > until:
                    raise subprocess.TimeoutExpired(command, timeout_s)
            return None
        finally:
            if child.poll() is None:
                child.kill()


def forget_compiled() -> None:
    """Drop the notes, so that everything is compiled again: for a cache that turned out to be damaged."""
    for note in use_own_cache().glob("compiled-*"):
        note.unlink(missing_ok=True)


def compile_here(spec: Spec, device: torch.device) -> None:
    """Build a network of this shape on ``device`` and run its call once."""
    dtype = getattr(torch, str(spec["dtype"]))
    with torch.inference_mode():
        if spec["kind"] == "unet":
            _run_unet(spec, device, dtype)
        else:
            _run_pictures(spec, device, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _run_unet(spec: Spec, device: torch.device, dtype: torch.dtype) -> None:
    from diffusers import UNet2DConditionModel

    from sdbridge.engine.accelerate.kernels.unet import FusedOps
    from sdbridge.engine.accelerate.packed_unet import PackedUnet
    from sdbridge.engine.accelerate.unet_ops import PlainOps

    unet = _empty(UNet2DConditionModel, spec["config"], device, dtype)

    def tensor(shape: Any) -> Tensor | None:
        return None if shape is None else torch.zeros(shape, device=device, dtype=dtype)

    sample, text = tensor(spec["sample"]), tensor(spec["text"])
    assert sample is not None and text is not None
    call = UnetCall(
        sample=sample,
        timesteps=torch.zeros(spec["sample"][0], device=device, dtype=torch.int64),
        encoder_hidden_states=text,
        added_cond={
            name: torch.zeros(shape, device=device, dtype=dtype) for name, shape in spec["added"].items()
        },
        down_residuals=None
        if spec["down"] is None
        else tuple(torch.zeros(shape, device=device, dtype=dtype) for shape in spec["down"]),
        mid_residual=tensor(spec["mid_residual"]),
        timestep_cond=tensor(spec["timestep_cond"]),
    )
    PackedUnet(unet, PlainOps()).run(call, FusedOps(device))


def _run_pictures(spec: Spec, device: torch.device, dtype: torch.dtype) -> None:
    from diffusers import AutoencoderTiny

    from sdbridge.engine.accelerate.kernels import tiny_vae

    vae = _empty(AutoencoderTiny, spec["config"], device, dtype)
    frames, height, width = spec["size"]
    encoder, decoder = tiny_vae.TinyEncoder(vae), tiny_vae.TinyDecoder(vae)
    latent = encoder(torch.zeros(frames, height, width, 4, device=device, dtype=torch.uint8)).float()
    encoder(torch.zeros(frames, 3, height, width, device=device))
    decoder(latent)
    decoder(latent, rgba=True)


def _empty(kind: Any, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A network of this config with whatever lay in the memory, which no initialisation took time for."""
    with torch.device("meta"):
        network = kind.from_config(dict(config))
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    return network


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _note_of(spec: Spec, identity: Mapping[str, str]) -> Path:
    return use_own_cache() / f"compiled-{_name(spec, identity)}"


def _name(spec: Spec, identity: Mapping[str, str]) -> str:
    told = json.dumps([dict(spec), dict(identity)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def main() -> int:
    """The child: a spec on standard input."""
    use_own_cache()
    if hasattr(os, "nice"):
        os.nice(5)  # the frames go first
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compile_here(json.load(sys.stdin), device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
