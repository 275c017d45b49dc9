"""Having a call's kernels compiled by a process of its own, so that no frame waits for a compiler.

Triton compiles in the interpreter's one lock; in the streaming process that made single frames late by a
third of a second. So a call is gone through once with no kernel compiled (``kernels/recording.py``), what
it wants is compiled elsewhere, several kernels at once (``compiler_link.py``), and only then is it captured.
A note beside Triton's cache says what has been compiled for which call and what the files' hashes are; it
is bound to card, driver, versions and sources. Where the note holds, nothing is gone through or asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbridge import paths
from sdbridge.engine.accelerate import kernels
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.compiler_link import Answer, CompilerLink
from sdbridge.engine.accelerate.compiler_process import seal_of
from sdbridge.engine.accelerate.kernels.recording import Kernel, recording
from sdbridge.engine.accelerate.kernels.tuning import identity_of
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.interface import Progress

log = logging.getLogger(__name__)

_FORMAT = 2
_LEAST_FREE = 200 << 20  # bytes; a model's kernels take about 20 MB
Spec = Mapping[str, Any]
Tell = Callable[[Progress | None], None]


def use_own_cache() -> Path:
    """Triton's cache goes where ours is, unless somebody has chosen a place; before Triton is first used.

    Where nothing can be written there, a folder that lives until the machine restarts takes its place.
    """
    os.environ.setdefault("TRITON_STORE_BINARY_ONLY", "1")  # what nobody reads makes every start slower
    chosen = os.environ.get("TRITON_CACHE_DIR")
    if chosen:
        return Path(chosen)
    own = paths.cache_dir() / "kernels"
    why = _unfit(own)
    if why:
        spare = _spare()
        log.warning("kernels cannot be kept in %s (%s); %s is used, until a restart", own, why, spare)
        own = spare
    os.environ["TRITON_CACHE_DIR"] = str(own)
    return own


def _spare() -> Path:
    """A folder of ours where everybody may write: nobody else's, since what lies in it is run."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    spare = Path(tempfile.gettempdir()) / f"sdbridge-kernels-{user}"
    try:
        spare.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = spare.lstat()
        ours = not hasattr(os, "getuid") or (seen.st_uid == user and not seen.st_mode & 0o022)
    except OSError:
        ours = False
    return spare if ours and not spare.is_symlink() else Path(tempfile.mkdtemp(prefix="sdbridge-kernels-"))


def _unfit(folder: Path) -> str:
    """Why nothing can be kept in ``folder``, or ''."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return str(error)
    return "" if free > _LEAST_FREE else f"{free >> 20} MB are free"


# --- what a call is called ---


def unet_spec(unet: Any, call: UnetCall) -> dict[str, Any]:
    """What decides which kernels a frame's call of the packed UNet takes, as plain values.

    The text's own product and the time projections are no part of it (``hoisted.py``): of the text only its
    shape is, since attention reads what was made of it.
    """
    bank, middle = call.bank, call.mid_residual
    return {
        "kind": "unet",
        "config": plain(unet.config),
        "dtype": str(call.sample.dtype).removeprefix("torch."),  # asking the network takes 10 ms
        "sample": list(call.sample.shape),
        "text": list(call.encoder_hidden_states.shape),
        "down": None if call.down_residuals is None else [list(each.shape) for each in call.down_residuals],
        "bank": None if bank is None else [bank.memory.frames, bank.seeding],
        "mid_residual": None if middle is None else list(middle.shape),
    }


def pictures_spec(vae: Any, dtype: torch.dtype, frames: int, height: int, width: int) -> dict[str, Any]:
    """The tiny VAE's shape and its pictures'."""
    return {
        "kind": "pictures",
        "config": plain(vae.config),
        "dtype": str(dtype).removeprefix("torch."),
        "size": [frames, height, width],
    }


def call_spec(about: Spec, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Any call on tensors: what it is, and what it is given."""
    given = [[list(tensor.shape), list(tensor.stride()), str(tensor.dtype)] for tensor in tensors]
    return {**about, "tensors": given}


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration without what only tells where it came from."""
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return found


# --- compiling ---


class Compilation:
    """The kernels of one call on their way. Made by ``KernelCompiler.begin``."""

    def __init__(self, link: CompilerLink | None = None, here: bool = False) -> None:
        """``here``: nobody compiles elsewhere; this process will, when the call is captured."""
        self.here = here
        self._link = link
        self._open = False  # while kernels are not answered
        self._fault = ""

    def is_done(self) -> bool:
        """Whether the call can be captured without compiling here, or never will."""
        if self._open and self._link is not None:
            self._link.look()
        return not self._open

    def check(self) -> None:
        """Raises RuntimeError where one of the kernels cannot be compiled."""
        if self._fault:
            raise RuntimeError(self._fault)


class KernelCompiler:
    """Has kernels compiled and remembers for which calls that is done. One for each acceleration."""

    def __init__(self, identity: Mapping[str, str], link: CompilerLink, cache: Path) -> None:
        self._identity = dict(identity)
        self._link = link
        self._cache = cache
        self._lock = threading.Lock()
        self._answers: dict[Kernel, Answer] = {}
        self._waiting: dict[Kernel, list[Callable[[Answer], None]]] = {}
        self._functions: set[Any] = set()  # Triton's, whose compiled forms this process may hold
        self._done = self._total = 0  # kernels, since the last time nothing was under way
        self._seconds = 0.0
        self._began = 0.0
        self._lost = False  # the last kernel could not be compiled elsewhere
        self._tell: Tell = lambda progress: None
        self._sound: set[str] = set()  # notes whose files are as they were compiled
        self._seals: dict[str, str] = {}
        self._entries: dict[str, str] = {}  # of sound notes, and of what was compiled since
        for note in sorted(cache.glob(f"compiled-{self._owner()}-*")):
            self._look_at(note)
        if not self._sound:
            link.start()  # nothing was compiled for this card yet: there will be questions

    def report_progress(self, tell: Tell) -> None:
        """Who hears how many kernels are compiled, and None when there are no more."""
        self._tell = tell

    @property
    def busy(self) -> bool:
        """Whether kernels are being compiled."""
        return self._total > 0

    def summary(self) -> str:
        """What was done since this start, and where it lies."""
        fresh, trouble = len(self._answers), self._link.trouble
        if trouble:
            return f"kernels were compiled in this process: {trouble}"
        calls = f"{len(self._sound)} calls in {self._cache}"
        return f"{fresh} kernels compiled, for {calls}" if fresh else f"all kernels were there, for {calls}"

    def known(self, spec: Spec) -> bool:
        """Whether all kernels of this call lie on the disk as they were compiled."""
        return self._note(spec).name in self._sound

    def begin(self, spec: Spec, run: Callable[..., Any], tensors: Sequence[Tensor]) -> Compilation:
        """Ask for what ``run(*tensors)`` would compile, found by going through it; done at once if known.

        Takes as long as a pass of the call: beside the stream, please.
        """
        if self.known(spec):
            return Compilation(self._link)
        if self._link.trouble:
            return Compilation(self._link, here=True)
        compilation = Compilation(self._link)
        try:
            with torch.inference_mode(), recording() as found:
                run(*tensors)
        except (ImportError, AttributeError, TypeError) as error:  # a Triton that cannot be asked, or a form
            log.warning("kernels are compiled in the streaming process: %s", error)
            return Compilation(self._link, here=True)
        entries: dict[str, str] = {}
        answers: list[Answer] = []
        compilation._open = bool(found)
        self._functions.update(found.values())

        def hear(answer: Answer) -> None:
            with self._lock:
                answers.append(answer)
                if answer.entry:
                    entries[answer.entry] = answer.seal
                compilation._fault = compilation._fault or answer.fault
                if len(answers) < len(found):
                    return
            if all(each.entry for each in answers):
                self._write_note(spec, entries)
            compilation._open = False

        if not found:  # its kernels are those of calls before, whichever of them
            with self._lock:
                entries |= self._entries
            self._write_note(spec, entries)
        for kernel in found:
            self._ask(kernel, hear)
        return compilation

    def forget(self) -> None:
        """Drop all that was compiled, on the disk and in this process: it turned out to be damaged."""
        for note in self._cache.glob("compiled-*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                entries = list(json.loads(note.read_text(encoding="utf-8"))["entries"])
                self._remove(note, entries)
            with contextlib.suppress(OSError):
                note.unlink()
        with self._lock:
            self._answers.clear()
            self._entries.clear()
            self._sound.clear()
        for function in self._functions:
            function.device_caches.clear()

    def close(self) -> None:
        self._tell = lambda progress: None
        self._link.close()

    # --- asking ---

    def _ask(self, kernel: Kernel, hear: Callable[[Answer], None]) -> None:
        with self._lock:
            answer = self._answers.get(kernel)
            if answer is None:
                waiting = self._waiting.setdefault(kernel, [])
                waiting.append(hear)
                if len(waiting) > 1:
                    return
                if not self._total:
                    self._began = time.monotonic()
                self._total += 1
        if answer is not None:
            hear(answer)
            return
        self._link.ask(kernel, lambda said: self._heard(kernel, said))

    def _heard(self, kernel: Kernel, answer: Answer) -> None:
        with self._lock:
            if answer.entry:
                self._answers[kernel] = answer
                self._entries[answer.entry] = answer.seal
            lost, self._lost = answer.lost and not self._lost and not self._link.trouble, bool(answer.lost)
            self._done += 1
            self._seconds += answer.seconds
            hearing = self._waiting.pop(kernel, [])
            done, total, took_s = self._done, self._total, time.monotonic() - self._began
            left_s = (total - done) * self._seconds / done / self._link.workers
            if done == total:
                self._done = self._total = 0
                self._seconds = 0.0
        if lost:
            log.warning("a kernel is compiled in the streaming process: %s", answer.lost)
        for hear in hearing:
            hear(answer)
        self._tell(Progress("compile", done, total, f"{done} of {total} kernels", left_s))
        if done == total:
            log.info("%d kernels compiled in %.1f s, %d at once", total, took_s, self._link.workers)
            self._tell(None)

    # --- notes ---

    def _owner(self) -> str:
        return hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:8]

    def _note(self, spec: Spec) -> Path:
        told = json.dumps(dict(spec), sort_keys=True)
        return self._cache / f"compiled-{self._owner()}-{hashlib.sha256(told.encode()).hexdigest()[:24]}"

    def _look_at(self, note: Path) -> None:
        """Believe a note only if every file it speaks of is what was compiled."""
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
            entries = dict(said["entries"])
            if said["format"] != _FORMAT or said["identity"] != self._identity:
                raise ValueError("it is of another make")
            for name in entries.keys() - self._seals.keys():
                self._seals[name] = seal_of(self._cache / name)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("what was compiled is compiled anew: %s cannot be used (%s)", note, error)
            with contextlib.suppress(OSError):
                note.unlink()
            return
        wrong = [name for name, seal in entries.items() if self._seals[name] != seal]
        if wrong:
            log.warning("%d compiled kernels are damaged; they are compiled anew", len(wrong))
            self._remove(note, wrong)
        else:
            self._sound.add(note.name)
            self._entries |= entries

    def _write_note(self, spec: Spec, entries: Mapping[str, str]) -> None:
        note = self._note(spec)
        said = {"format": _FORMAT, "identity": self._identity, "entries": dict(entries)}
        part = note.with_name(f".{note.name}.{os.getpid()}.part")
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(said), encoding="utf-8")
            os.replace(part, note)
            self._sound.add(note.name)
        except OSError as error:
            log.warning("what was compiled cannot be noted in %s (%s)", note.parent, error)

    def _remove(self, note: Path, entries: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            note.unlink()
        for name in entries:
            if name and Path(name).name == name:
                shutil.rmtree(self._cache / name, ignore_errors=True)


class CallKernels:
    """A kind of call on tensors as ``compiler`` knows it."""

    def __init__(self, compiler: KernelCompiler, about: Spec) -> None:
        self._compiler = compiler
        self._about = about

    def known(self, tensors: Sequence[Tensor]) -> bool:
        return self._compiler.known(call_spec(self._about, tensors))

    def __call__(self, run: Callable[..., Any], tensors: Sequence[Tensor]) -> Compilation:
        return self._compiler.begin(call_spec(self._about, tensors), run, tensors)


def kernel_compiler(device: torch.device, choices: str = "") -> KernelCompiler:
    """The compiler for a card. ``choices`` tells measured choices of kernels apart."""
    cache = use_own_cache()
    identity = {**identity_of(device), "form": _form(), "choices": choices}
    link = _early.pop((str(device), cache), None) or _link_for(device)
    return KernelCompiler(identity, link, cache)


def start_early(device: torch.device, acceleration: str) -> None:
    """Before a model is read: where nothing was ever compiled, the compiling process imports meanwhile."""
    if device.type != "cuda" or acceleration not in ("auto", "compile") or not kernels.available()[0]:
        return
    cache = use_own_cache()
    if not kernels.interpreted() and not any(cache.glob("compiled-*")):
        _early[str(device), cache] = link = _early.get((str(device), cache)) or _link_for(device)
        link.start()


#: Processes that were started before there was anything to ask, by card and cache, which they were told at
#: birth. They end by themselves when idle.
_early: dict[tuple[str, Path], CompilerLink] = {}


def _link_for(device: torch.device) -> CompilerLink:
    major, minor = torch.cuda.get_device_capability(device)
    return CompilerLink(("cuda", major * 10 + minor, 32))


def _form() -> str:
    """A hash of what decides which kernels a call takes, besides the kernels' own source."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def submit_compiled(
    beside: BesideTheStream,
    begin: Callable[[], Compilation],
    job: Callable[[], Any],
    put_in: Callable[[Any], None],
    failed: Callable[[Exception], None],
) -> None:
    """``job`` once the kernels are there that ``begin`` asks for; meanwhile ``beside`` does other work."""

    def checked(compilation: Compilation) -> Any:
        compilation.check()
        return job()

    def then(compilation: Compilation) -> None:
        beside.submit(lambda: checked(compilation), put_in, failed, ready=compilation.is_done)

    beside.submit(begin, then, failed)
