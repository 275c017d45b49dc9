"""Kernels are compiled by a process of its own: what is asked and noted, and what a damaged file does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdbridge.engine.accelerate import precompile
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compiler_link import Answer
from sdbridge.engine.accelerate.compiler_process import seal_of
from sdbridge.engine.accelerate.kernels.recording import Kernel
from sdbridge.engine.accelerate.precompile import KernelCompiler
from sdbridge.engine.interface import Progress
from tests.engine.accelerate.test_packed_unet import KINDS, build, make_call

IDENTITY = {"card": "a card", "torch": "2"}
SPEC = {"kind": "unet", "sample": [1, 4, 8, 8]}


class FakeLink:
    """Answers from the test's thread: at once, or when told to."""

    def __init__(self, cache: Path) -> None:
        self.workers, self.trouble, self.started, self.closed = 2, "", 0, False
        self.asked: list[Kernel] = []
        self.held: list | None = None
        self.fault = ""
        self._cache = cache

    def start(self) -> None:
        self.started += 1

    def look(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def ask(self, kernel, hear) -> None:
        self.asked.append(kernel)
        if self.held is not None:
            self.held.append((kernel, hear))
        else:
            self.answer(kernel, hear)

    def answer(self, kernel, hear) -> None:
        if self.fault:
            hear(Answer(fault=self.fault))
            return
        folder = self._cache / f"ENTRY{kernel.name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "k.cubin").write_text(f"machine code of {kernel.name}")
        hear(Answer(folder.name, seal_of(folder), 2.0))


class Function:
    """What Triton keeps of a kernel in this process."""

    def __init__(self) -> None:
        self.device_caches = {0: "compiled"}


@pytest.fixture
def wanted(monkeypatch) -> list[str]:
    """The kernels that a call would compile, as the recording finds them."""
    names = ["norm", "gemm"]

    @contextlib.contextmanager
    def recording():
        found: dict = {}
        yield found
        found.update({Kernel("m", name, "{}"): Function() for name in names})

    monkeypatch.setattr(precompile, "recording", recording)
    return names


@pytest.fixture
def no_place(monkeypatch) -> None:
    """Nobody has chosen where Triton keeps things; what is chosen here is forgotten afterwards."""
    for name in ("TRITON_CACHE_DIR", "TRITON_STORE_BINARY_ONLY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "kernels"


def made(cache: Path, identity=IDENTITY) -> tuple[KernelCompiler, FakeLink]:
    link = FakeLink(cache)
    return KernelCompiler(identity, link, cache), link


def run(*tensors) -> None:
    """The call; what it would compile is ``wanted``."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_calls_name_is_plain_values_and_tells_shapes_apart(kind: str) -> None:
    unet = build(kind)
    spec = json.loads(json.dumps(precompile.unet_spec(unet, make_call(kind, unet))))
    assert spec["sample"] == [2, 4, 16, 16] and spec["text"] == [2, 7, 24] and spec["dtype"] == "float64"
    other = replace(make_call(kind, unet), added_cond={}, timestep_cond=None)
    assert spec == json.loads(json.dumps(precompile.unet_spec(unet, other))), "no kernel of ours reads these"
    assert spec != json.loads(json.dumps(precompile.unet_spec(unet, make_call(kind, unet, batch=3))))


def test_what_is_compiled_is_asked_for_once_and_again_when_something_changed(cache, wanted) -> None:
    compiler, link = made(cache)
    assert not compiler.known(SPEC)
    assert compiler.begin(SPEC, run, ()).is_done() and len(link.asked) == 2
    assert compiler.known(SPEC) and compiler.begin(SPEC, run, ()).is_done() and len(link.asked) == 2

    again, link = made(cache)  # the next start
    assert again.begin(SPEC, run, ()).is_done() and not link.asked and not link.started
    other, link = made(cache, {**IDENTITY, "torch": "3"})
    assert not other.known(SPEC) and link.started  # it will be asked
    other.begin(SPEC, run, ())
    assert len(link.asked) == 2
    assert not again.known({**SPEC, "sample": [2, 4, 8, 8]})


NOTES = {
    "note cut": b'{"format": 2, "entr',
    "note empty": b"",
    "note of bytes": b"\xff\xfe\x00{",
    "note a list": b"[1, 2]",
    "note without end": b"[" * 100_000,
    "note of other things": b'{"format": 2, "identity": 3, "entries": 4}',
}


@pytest.mark.parametrize("harm", ["changed", "emptied", "gone", *NOTES])
def test_a_damaged_file_is_compiled_anew(cache, wanted, caplog, harm: str) -> None:
    compiler, _ = made(cache)
    compiler.begin(SPEC, run, ())
    entry = cache / "ENTRYgemm"
    if harm == "gone":
        (entry / "k.cubin").unlink()
    elif harm in NOTES:
        (note,) = cache.glob("compiled-*")
        note.write_bytes(NOTES[harm])
    else:
        (entry / "k.cubin").write_text("" if harm == "emptied" else "something else")
    again, link = made(cache)
    assert not again.known(SPEC) and link.started
    assert entry.exists() == (harm in NOTES)  # what is not as it was is never loaded by anybody
    assert len([r for r in caplog.records if "compiled anew" in r.message]) == 1
    assert again.begin(SPEC, run, ()).is_done() and len(link.asked) == 2 and again.known(SPEC)
    (note,) = cache.glob("compiled-*")
    note.write_bytes(NOTES.get(harm, b""))
    again.forget()
    assert not list(cache.glob("compiled-*"))


def test_a_call_whose_kernels_all_are_there_is_known_to_the_next_start(cache, wanted) -> None:
    """A ControlNet's are those of the UNet: it was gone through plainly first, at every start."""
    compiler, link = made(cache)
    compiler.begin(SPEC, run, ())
    control = {**SPEC, "kind": "controlnet"}
    wanted.clear()  # nothing is left to compile
    assert compiler.begin(control, run, ()).is_done() and compiler.known(control) and len(link.asked) == 2
    again, link = made(cache)
    assert again.known(control) and again.known(SPEC) and not link.started
    third = {**SPEC, "kind": "another"}  # what earlier starts compiled counts as well
    again.begin(third, run, ())
    (cache / "ENTRYgemm" / "k.cubin").write_text("something else")
    last, _ = made(cache)
    assert not any(last.known(spec) for spec in (SPEC, control, third))


def test_a_kernel_wanted_twice_is_compiled_once_and_progress_counts_it_once(cache, wanted) -> None:
    compiler, link = made(cache)
    link.held = []
    told: list[Progress | None] = []
    compiler.report_progress(told.append)
    first = compiler.begin(SPEC, run, ())
    wanted.append("conv")
    second = compiler.begin({**SPEC, "sample": [2, 4, 8, 8]}, run, ())
    assert [kernel.name for kernel in link.asked] == ["norm", "gemm", "conv"]
    held = link.held
    for kernel, hear in held[:2]:
        assert not first.is_done()
        link.answer(kernel, hear)
    assert first.is_done() and not second.is_done()
    link.answer(*held[2])
    assert second.is_done()
    events = [event for event in told if event is not None]
    assert [(event.done, event.total) for event in events] == [(1, 3), (2, 3), (3, 3)]
    assert events[0].left_s == pytest.approx(2.0)  # two more of 2 s, two at once
    assert told[-1] is None and all(event.stage == "compile" for event in events)


def test_a_kernel_that_does_not_compile_leaves_no_note_and_the_first_form_goes_on(cache, wanted) -> None:
    compiler, link = made(cache)
    link.fault = "OSError: No space left on device"
    compilation = compiler.begin(SPEC, run, ())
    assert compilation.is_done() and not list(cache.glob("compiled-*"))
    with pytest.raises(RuntimeError, match="No space left"):
        compilation.check()
    beside, failures, captured = BesideTheStream(torch.device("cpu")), [], []

    def begin():
        return compiler.begin(SPEC, run, ())

    precompile.submit_compiled(beside, begin, lambda: captured.append(1), captured.append, failures.append)
    assert beside.wait(30)
    beside.close()
    assert not captured and "No space left" in str(failures[0])


def test_where_nobody_compiles_the_stream_does_it_itself(cache, wanted, monkeypatch, caplog) -> None:
    compiler, link = made(cache)
    link.trouble = "it does not start"
    compilation = compiler.begin(SPEC, run, ())
    assert compilation.is_done() and not link.asked
    compilation.check()

    compiler, link = made(cache)

    @contextlib.contextmanager
    def recording():
        raise AttributeError("module 'triton' has no attribute 'knobs'")
        yield

    caplog.set_level("INFO")
    monkeypatch.setattr(precompile, "recording", recording)
    assert compiler.begin(SPEC, run, ()).is_done() and "streaming process" in caplog.text


def test_a_kernel_that_only_this_process_can_compile_is_said_once(cache, wanted, caplog) -> None:
    compiler, link = made(cache)
    link.answer = lambda kernel, hear: hear(Answer(lost="TypeError: unexpected words"))  # type: ignore
    compilation = compiler.begin(SPEC, run, ())
    compilation.check()
    assert compilation.is_done() and not compiler.known(SPEC)
    assert len(caplog.records) == 1 and "unexpected words" in caplog.text


def test_a_full_disk_costs_the_note_only(cache, wanted, caplog, monkeypatch) -> None:
    compiler, _ = made(cache)

    def full(*paths) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(precompile.os, "replace", full)
    assert compiler.begin(SPEC, run, ()).is_done()
    assert "cannot be noted" in caplog.text and not compiler.known(SPEC)


def test_what_failed_to_load_is_forgotten_on_the_disk_and_in_this_process(cache, wanted) -> None:
    compiler, link = made(cache)
    compiler.begin(SPEC, run, ())
    functions = list(compiler._functions)
    compiler.forget()
    assert not list(cache.iterdir()) and all(not function.device_caches for function in functions)
    compiler.begin(SPEC, run, ())
    assert len(link.asked) == 4
    compiler.close()
    assert link.closed


def test_the_cache_goes_where_it_can_be_written(tmp_path, no_place, monkeypatch, caplog) -> None:
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    assert precompile.use_own_cache() == tmp_path / "cache" / "kernels" and not caplog.records
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "kernels")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    (tmp_path / "file").write_text("where the folder should be")
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(precompile.tempfile, "gettempdir", lambda: str(tmp_path / "spare"))
    assert precompile.use_own_cache().parent == tmp_path / "spare"
    assert len(caplog.records) == 1 and "until a restart" in caplog.text
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "chosen"))
    assert precompile.use_own_cache() == tmp_path / "chosen"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="one user's temporary folder")
@pytest.mark.parametrize("harm", ["writable", "link", "file"])
def test_no_kernel_is_taken_from_a_folder_that_others_can_write(tmp_path, monkeypatch, harm: str) -> None:
    monkeypatch.setattr(precompile.tempfile, "tempdir", str(tmp_path))
    first = precompile._spare()
    assert first.parent == tmp_path and precompile._spare() == first and first.stat().st_mode & 0o777 == 0o700
    if harm == "writable":
        first.chmod(0o777)
    else:
        first.rmdir()
        if harm == "link":
            first.symlink_to(tmp_path, target_is_directory=True)
        else:
            first.write_text("")
    other = precompile._spare()
    assert other != first and other.is_dir() and other.stat().st_mode & 0o777 == 0o700


def test_the_process_starts_before_the_model_is_read_where_nothing_was_compiled(cache, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(precompile.kernels, "available", lambda: (True, "a card"))
    monkeypatch.setattr(precompile.kernels, "interpreted", lambda: False)
    monkeypatch.setattr(precompile, "_early", {})
    monkeypatch.setattr(precompile, "identity_of", lambda device: IDENTITY)
    links: list[FakeLink] = []
    monkeypatch.setattr(precompile, "_link_for", lambda device: (links.append(FakeLink(cache)), links[-1])[1])
    device = torch.device("cuda", 0)
    precompile.start_early(torch.device("cpu"), "auto")
    precompile.start_early(device, "eager")
    assert not links
    precompile.start_early(device, "auto")
    precompile.start_early(device, "auto")
    assert len(links) == 1 and links[0].started
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache / "another"))  # where that process does not compile to
    assert precompile.kernel_compiler(device)._link is links[1]
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    compiler = precompile.kernel_compiler(device)
    assert compiler._link is links[0] and len(links) == 2
    cache.mkdir(exist_ok=True)
    (cache / "compiled-1").write_text("{}")
    precompile.start_early(device, "auto")
    assert len(links) == 2


def test_a_disk_that_is_nearly_full_is_as_good_as_one_that_cannot_be_written(
    tmp_path, no_place, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("SDBRIDGE_HOME", str(tmp_path))
    monkeypatch.setattr(precompile.tempfile, "gettempdir", lambda: str(tmp_path / "spare"))
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(precompile.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    assert precompile.use_own_cache().parent == tmp_path / "spare"
    assert "5 MB are free" in caplog.text


def test_a_job_that_is_not_ready_lets_others_go_first() -> None:
    beside, order, ready = BesideTheStream(torch.device("cpu")), [], threading.Event()

    def job(name: str):
        return lambda: order.append(name)

    def ignore(what) -> None:
        pass

    beside.submit(job("compiled"), ignore, ignore, ready=ready.is_set)
    beside.submit(job("plain"), lambda made: ready.set(), ignore)
    beside.submit(job("waited for"), ignore, ignore, first=True)
    assert beside.wait(30) and sorted(order) == ["compiled", "plain", "waited for"]
    assert order.index("plain") < order.index("compiled")
    beside.submit(job("never"), ignore, ignore, ready=lambda: False)
    assert not beside.wait(0.05)
    beside.close()
    assert beside.wait(60) and "never" not in order


#: Run in a process of its own: Triton with a card that is not there, and real compiling for it.
_WHOLE_WAY = """
import json, sys, torch, triton
from pathlib import Path
from sdbridge.engine.accelerate import compiler_process, precompile
from sdbridge.engine.accelerate.compiler_link import CompilerLink
from sdbridge.engine.accelerate.kernels import norm
from triton.runtime.driver import driver

cache, target = Path(sys.argv[1]), ["cuda", 90, 32]
driver.set_active(compiler_process._Card(*target))
rows, weight = torch.randn(64, 96).half(), torch.ones(96).half()
calls = lambda: norm.layer_norm(rows, weight, weight, 1e-5)

def start():
    link = CompilerLink(target, workers=2)
    return precompile.KernelCompiler({"card": "none"}, link, cache), link

compiler, link = start()
compilation = compiler.begin({"kind": "norm"}, calls, ())
while not compilation.is_done():
    import time; time.sleep(0.05)
compilation.check()
found = {"fault": link.trouble, "known": compiler.known({"kind": "norm"})}
compiler.close()
entry = next(cache.rglob("*.cubin"))
before = entry.read_bytes()
hits = []
triton.knobs.compilation.listener = lambda **said: hits.append(said["cache_hit"])
for kernel, function in zip(compiler._answers, compiler._functions):
    function.preload(kernel.form)
    function.device_caches.clear()  # or it would be launched
found["hits"] = hits
entry.write_bytes(before[:100])
again, link = start()
found["damaged"] = again.known({"kind": "norm"})
compilation = again.begin({"kind": "norm"}, calls, ())
while not compilation.is_done():
    time.sleep(0.05)
found["again"] = again.known({"kind": "norm"}), entry.read_bytes() == before
again.close()
print(json.dumps(found))
"""


@pytest.mark.timeout(300)
def test_the_whole_way_with_triton_for_a_card_that_is_not_here(tmp_path) -> None:
    """Recorded without a GPU, compiled by a real process, found again by Triton under the same name."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "k"), "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", _WHOLE_WAY, str(tmp_path / "k")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"fault": "", "known": True, "hits": [True], "damaged": False, "again": [True, True]}
