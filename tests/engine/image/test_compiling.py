"""A running stream whose faster forms are compiled elsewhere: captured once their kernels are there."""

from __future__ import annotations

import threading

import pytest
import torch

from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compile import Compiled
from sdbridge.engine.accelerate.precompile import Compilation
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.interface import Progress
from tests.engine.image.rig import Rig, frame, relative
from tests.engine.image.test_accelerate import StandInGraph, put_in


class Compiler:
    """Compiles when told to; the calls it is asked about run as they would in a recording."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.made: list[Compilation] = []
        self.begun, self.done = threading.Event(), threading.Event()
        self.fault = ""

    busy = False

    def known(self, spec) -> bool:
        return False

    def summary(self) -> str:
        return "5 kernels compiled"

    def begin(self, spec, run, tensors) -> Compilation:
        with torch.inference_mode():
            run(*tensors)
        self.asked.append(dict(spec))
        self.begun.set()
        made = Compilation()
        made._fault = self.fault
        made.is_done = self.done.is_set  # type: ignore[method-assign]
        return made

    def close(self) -> None:
        self.done.set()


@pytest.mark.parametrize("fault", ["", "CompilationError: at 3:4"])
def test_the_faster_form_waits_for_its_kernels_and_the_stream_for_nothing(checkpoint, caplog, fault) -> None:
    caplog.set_level("INFO")
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")
    wanted = [rig.latent_of(frame(k)).clone() for k in range(3)]
    rig.engine.reset("hard")
    captured: list[str] = []

    def capture(run, tensors):
        captured.append(threading.current_thread().name)
        return StandInGraph(run, tensors)

    compiler = Compiler()
    compiler.fault = fault
    acceleration = Compiled(rig.model, capture=capture)
    acceleration.unet.make_fast = PlainOps
    acceleration.graphs.beside = BesideTheStream(torch.device("cpu"))
    acceleration.graphs.compiler = compiler  # type: ignore[assignment]
    put_in(rig, acceleration)
    found = [rig.latent_of(frame(0)).clone()]
    assert compiler.begun.wait(30)
    found.append(rig.latent_of(frame(1)).clone())
    assert [spec["kind"] for spec in compiler.asked] == ["unet"] and "accelerate" not in captured
    threading.Timer(0.5, compiler.done.set).start()
    told: list[Progress] = []
    assert acceleration.build(told.append) == ("5 kernels compiled",)
    assert {event.stage for event in told} == {"capture"} and told[-1].done == told[-1].total == 1
    assert acceleration.settled(0) and acceleration.measure(told.append) == 0
    found.append(rig.latent_of(frame(2)).clone())
    assert ("accelerate" in captured) == (not fault)
    assert ("our own kernels rest: CompilationError: at 3:4" in caplog.text) == bool(fault)
    for mine, theirs in zip(found, wanted, strict=True):
        assert relative(mine, theirs) <= 1e-9
    acceleration.close()
    rig.engine.unload()


#: What can go wrong beside the stream, as PyTorch, Triton and the system say it.
FAULTS = {
    "no memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand much more"),
    "old driver": RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    "no compiler": RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    "full disk": OSError(28, "No space left on device"),
    "refused capture": RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"),
}


@pytest.mark.parametrize("where", ["compiling", "capturing"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_beside_the_stream_is_one_line_and_the_stream_goes_on(
    checkpoint, caplog, fault: str, where: str
) -> None:
    rig = Rig(checkpoint(), {"scheduler": "lcm"}, dtype="float64")
    wanted = [rig.latent_of(frame(k)).clone() for k in range(2)]
    rig.engine.reset("hard")

    def capture(run, tensors):
        if threading.current_thread().name == "accelerate":
            raise FAULTS[fault]
        return StandInGraph(run, tensors)

    compiler = Compiler()
    compiler.done.set()
    if where == "compiling":

        def begin(spec, run, tensors):
            raise FAULTS[fault]

        compiler.begin = begin  # type: ignore[method-assign]
    acceleration = Compiled(rig.model, capture=capture)
    acceleration.unet.make_fast = PlainOps
    acceleration.graphs.beside = BesideTheStream(torch.device("cpu"))
    acceleration.graphs.compiler = compiler  # type: ignore[assignment]
    put_in(rig, acceleration)
    caplog.clear()
    found = [rig.latent_of(frame(0)).clone()]
    assert acceleration.settled(30)
    found.append(rig.latent_of(frame(1)).clone())
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    first = str(FAULTS[fault]).splitlines()[0]
    assert said.getMessage() == f"our own kernels rest: {first}" and said.exc_info is None
    for mine, theirs in zip(found, wanted, strict=True):
        assert relative(mine, theirs) <= 1e-9
    acceleration.close()
    rig.engine.unload()


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_no_kernel_is_compiled_in_the_streaming_process(checkpoint, tmp_path, monkeypatch) -> None:
    """From an empty cache: Triton in this process finds every kernel on the disk."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    found: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        triton.knobs.compilation,
        "listener",
        lambda *, src, cache_hit, **said: found.append((src.name, cache_hit)),
    )
    rig = Rig(
        checkpoint("sd15"),
        {"prompt.1.text": "fox", "scheduler": "lcm", "steps": 2},
        dtype="float16",
        device="cuda",
        acceleration="compile",
    )
    for k in range(3):
        rig.latent_of(frame(k))
    assert rig.engine.painter.acceleration.settled(300)
    rig.engine.unload()
    assert all(hit for _, hit in found), found
    assert list((tmp_path / "kernels").glob("compiled-*"))
