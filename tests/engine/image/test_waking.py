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


class Driver:
    """Answers as NVIDIA's does, with the error that is asked for."""

    def __init__(self, errors: dict[str, int]) -> None:
        self.errors = errors
        self.calls: list[str] = []
        self.number = -1

    def __getattr__(self, name: str) -> object:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*given: object) -> int:
            self.calls.append(name)
            if name == "cuDeviceGet":
                self.number = given[1]
            return self.errors.get(name, 0)

        return call


@pytest.mark.parametrize(
    ("errors", "calls"),
    [
        ({}, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]),
        ({"cuInit": 100}, ["cuInit"]),
        ({"cuDeviceGet": 101}, ["cuInit", "cuDeviceGet"]),
    ],
)
def test_the_driver_makes_the_context_and_is_left_alone_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch, errors: dict[str, int], calls: list[str]
) -> None:
    driver = Driver(errors)
    monkeypatch.setattr(waking.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")  # put back afterwards
    waking._call_driver(3)
    assert driver.calls == calls and driver.number in (3, -1)


def test_a_machine_without_the_driver_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(waking.ctypes, "CDLL", missing)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    waking._call_driver(0)


@pytest.mark.parametrize(
    ("device", "knows", "woken"),
    [
        ("auto", True, [0]),
        ("cuda", True, [0]),
        ("cuda:2", True, [2]),
        ("auto", False, []),
        ("cpu", True, []),
        ("mps", True, []),
        ("cuda:x", True, []),
    ],
)
def test_only_a_card_that_torch_will_use_is_woken(
    monkeypatch: pytest.MonkeyPatch, device: str, knows: bool, woken: list[int]
) -> None:
    called: list[int] = []
    monkeypatch.setattr(waking, "_call_driver", called.append)
    monkeypatch.setattr(waking, "_torch_knows_cuda", lambda: knows)
    waking.wake_driver(EngineConfig(device=device))
    for thread in threading.enumerate():
        if thread.name == "driver":
            thread.join()
    assert called == woken


def test_what_torch_knows_is_told_by_its_libraries() -> None:
    import torch

    assert waking._torch_knows_cuda() == (torch.version.cuda is not None)
