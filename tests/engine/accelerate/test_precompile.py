"""Kernels are compiled by a process of its own: what it is told, that it runs, and what is noted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderTiny

from sdbridge.engine.accelerate import precompile
from tests.engine.accelerate.test_packed_unet import KINDS, build, make_call

IDENTITY = {"card": "a card", "torch": "2"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_call_looks_like_survives_the_way_to_the_child(kind: str) -> None:
    unet = build(kind)
    spec = json.loads(json.dumps(precompile.unet_spec(unet, make_call(kind, unet))))
    assert spec["sample"] == [2, 4, 16, 16] and spec["text"] == [2, 7, 24] and spec["dtype"] == "float64"
    assert set(spec["added"]) == ({"text_embeds", "time_ids"} if kind == "sdxl" else set())
    assert (spec["timestep_cond"] is not None) == (kind == "guided")
    again = precompile._empty(type(unet), spec["config"], torch.device("cpu"), torch.float32)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in unet.named_parameters()
    }


def test_a_child_is_asked_once_and_again_when_something_changed(cache, monkeypatch) -> None:
    asked = []

    def run(command, given, timeout_s, cancelled):
        asked.append(json.loads(given))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(precompile, "_run", run)
    spec = {"kind": "unet", "sample": [1, 4, 8, 8]}
    assert precompile.compile_in_child(spec, IDENTITY)
    assert precompile.compile_in_child(spec, IDENTITY)
    assert len(asked) == 1
    assert precompile.compile_in_child(spec, {**IDENTITY, "torch": "3"})
    assert precompile.compile_in_child({**spec, "sample": [2, 4, 8, 8]}, IDENTITY)
    assert len(asked) == 3
    precompile.forget_compiled()
    assert precompile.compile_in_child(spec, IDENTITY)
    assert len(asked) == 4


@pytest.mark.parametrize("fault", ["ends with 1", "cannot start", "takes too long"])
def test_a_child_that_fails_is_one_line_and_not_noted(cache, monkeypatch, caplog, fault: str) -> None:
    def run(command, given, timeout_s, cancelled):
        if fault == "ends with 1":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: out of memory")
        if fault == "cannot start":
            raise OSError("no such program")
        raise subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(precompile, "_run", run)
    assert not precompile.compile_in_child({"kind": "unet"}, IDENTITY)
    assert len(caplog.records) == 1 and "streaming process" in caplog.text
    assert not list(cache.glob("compiled-*"))


def test_a_full_disk_costs_the_note_only(cache, monkeypatch, caplog) -> None:
    ended = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(precompile, "_run", lambda *given: ended)
    cache.parent.joinpath("kernels").write_text("a file where the folder should be")
    assert precompile.compile_in_child({"kind": "unet"}, IDENTITY)
    assert "cannot be noted" in caplog.text


def test_a_child_gets_its_spec_and_is_ended_when_nobody_waits_for_it() -> None:
    echo = [sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.read()); sys.exit(3)"]
    done = precompile._run(echo, "a spec", 60.0, lambda: False)
    assert (done.returncode, done.stderr) == (3, "a spec")
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    looks = iter([False, True])
    assert precompile._run(sleeper, "", 60.0, lambda: next(looks)) is None
    with pytest.raises(subprocess.TimeoutExpired):
        precompile._run(sleeper, "", 0.1, lambda: False)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_the_child_builds_and_runs_what_it_is_told(tmp_path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    unet = build("sd21").half()
    call = make_call("sd21", unet, batch=1, size=8)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, latent_channels=4
    )
    specs = [precompile.unet_spec(unet, call), precompile.pictures_spec(vae, torch.float16, 1, 16, 16)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    for spec in specs:
        done = subprocess.run(
            [sys.executable, "-m", "sdbridge.engine.accelerate.precompile"],
            input=json.dumps(spec),
            text=True,
            capture_output=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-800:]
    assert list(tmp_path.rglob("*.cubin"))
