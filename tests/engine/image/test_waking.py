"""What a start begins early: the right files, no torch, and never a fault of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdbridge.engine.image import waking
from sdbridge.engine.interface import EngineConfig


def big(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(waking._LARGE)
    return path


def test_the_files_that_loading_reads_are_called_in_its_order(tmp_path: Path) -> None:
    unet, text = big(tmp_path / "unet/a.safetensors"), big(tmp_path / "text_encoder/model.fp16.safetensors")
    big(tmp_path / "unet/a.fp16.safetensors")  # both there: the whole precision is read
    big(tmp_path / "bench-controlnet/b.safetensors")
    (tmp_path / "unet" / "small.safetensors").write_bytes(b"x")
    assert waking.files_of(tmp_path) == [unet, text]
    assert waking.files_of(unet) == [unet]
    assert waking.files_of(tmp_path / "nowhere") == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_calling_reads_each_file_and_a_missing_one_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *what: called.append(what))
    big(tmp_path / "unet/a.safetensors")
    waking._call(tmp_path)
    assert called == [(0, 0, os.POSIX_FADV_WILLNEED)]
    waking._call(Path("\0"))
    waking.call_weights(EngineConfig(model=str(tmp_path)))
    for thread in threading.enumerate():
        if thread.name == "call":
            thread.join()
    assert len(called) == 2


def test_calling_needs_no_torch() -> None:
    ask = "import sys; from sdbridge.engine.image.waking import call_weights;print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == "False", "the package's __init__ imports it"


def test_a_gpu_that_does_not_wake_is_left_to_loading_to_tell() -> None:
    waking._wake("cuda:77")
