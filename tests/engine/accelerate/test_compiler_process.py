"""The compiling process and the end of it that asks: questions, answers, idleness, and every way to fail."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading

import pytest

from sdbridge.engine.accelerate import compiler_link, compiler_process
from sdbridge.engine.accelerate.compiler_link import Answer, CompilerLink
from sdbridge.engine.accelerate.kernels.recording import Kernel

KERNEL = Kernel("a.module", "gemm", '{"signature": 1}')

#: A process that speaks as the real one; what it does is its argument.
_PEER = """
import json, sys
how = sys.argv[1]
if how == "dies": sys.exit(7)
if how == "no triton": print(json.dumps({"fault": "ImportError: No module named 'triton'"})); sys.exit(1)
first = json.loads(sys.stdin.readline())
assert first == {"target": ["cuda", 90, 32], "workers": 3}
for line in sys.stdin:
    asked = json.loads(line)
    if how == "silent": continue
    if how == "dies later": sys.exit(9)
    if asked["name"] == "bad":
        said = {"done": asked["id"], "fault": "CompilationError: at 3:4"}
    else:
        said = {"done": asked["id"], "entry": "E" + asked["name"], "seal": "s", "seconds": 0.5}
    print("what a library prints", json.dumps(said), sep="\\n", flush=True)
    if how == "idle": sys.exit(0)
"""


class Heard:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._came = threading.Condition()

    def __call__(self, answer: Answer) -> None:
        with self._came:
            self.answers.append(answer)
            self._came.notify_all()

    def wait_for(self, count: int) -> list[Answer]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.answers) >= count, 60), self.answers
        return self.answers


@pytest.fixture
def link_to():
    links: list[CompilerLink] = []

    def make(how: str) -> CompilerLink:
        links.append(CompilerLink(("cuda", 90, 32), 3, [sys.executable, "-c", _PEER, how]))
        return links[-1]

    yield make
    for link in links:
        link.close()


def test_questions_are_answered_each_by_its_own(link_to) -> None:
    link, good, bad = link_to("well"), Heard(), Heard()
    link.start()
    link.ask(KERNEL, good)
    link.ask(Kernel("a.module", "bad", ""), bad)
    assert bad.wait_for(1) == [Answer(fault="CompilationError: at 3:4")]
    assert good.wait_for(1) == [Answer("Egemm", "s", 0.5)] and not link.trouble


def test_an_idle_process_that_ended_is_started_again(link_to) -> None:
    link, heard = link_to("idle"), Heard()
    for count in (1, 2, 3):
        link.ask(KERNEL, heard)
        assert heard.wait_for(count)[-1].entry == "Egemm"
    assert not link.trouble


@pytest.mark.parametrize(
    ("how", "why"),
    [("dies", "ended with 7"), ("dies later", "ended with 9"), ("no triton", "No module named")],
)
def test_a_process_that_fails_is_one_line_and_is_not_tried_again(link_to, caplog, how: str, why: str) -> None:
    link, heard = link_to(how), Heard()
    link.ask(KERNEL, heard)
    assert why in heard.wait_for(1)[0].lost and why in link.trouble
    link.ask(KERNEL, heard)
    assert why in heard.wait_for(2)[1].lost
    assert len(caplog.records) == 1 and "in the streaming process" in caplog.text


def test_a_process_that_cannot_start_is_said_to_whoever_asks() -> None:
    link, heard = CompilerLink(("cuda", 90, 32), 1, ["/no/such/program"]), Heard()
    link.ask(KERNEL, heard)
    assert "does not start" in heard.wait_for(1)[0].lost
    link.close()


def test_one_that_says_nothing_is_given_up(link_to, monkeypatch) -> None:
    link, heard = link_to("silent"), Heard()
    link.ask(KERNEL, heard)
    link.look()
    assert not heard.answers
    monkeypatch.setattr(compiler_link, "_PATIENCE_S", -1.0)
    link.look()
    assert "no answer" in heard.wait_for(1)[0].lost


def test_closing_answers_what_is_open_and_leaves_no_process(link_to) -> None:
    link, heard = link_to("silent"), Heard()
    link.ask(KERNEL, heard)
    process = link._process
    link.close()
    assert heard.wait_for(1)[0].lost == "closed" and process is not None and process.wait(30) is not None
    link.ask(KERNEL, heard)
    assert heard.answers[1].lost == "closed"


# --- the process itself, in a thread of the test ---


@pytest.fixture
def in_threads(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(compiler_process, "get_ready", lambda target: None)
    monkeypatch.setattr(compiler_process, "_workers", ThreadPoolExecutor)


def questions(*names: str) -> io.StringIO:
    first = {"target": ["cuda", 90, 32], "workers": 2}
    asked = [{"id": i, "module": "m", "name": name, "form": "f"} for i, name in enumerate(names, 1)]
    return io.StringIO("".join(json.dumps(line) + "\n" for line in (first, *asked)))


class Held:
    """An input that stays open when all has been read, as a pipe does."""

    def __init__(self, given: io.StringIO, until: threading.Event) -> None:
        self._given, self._until = given, until

    def readline(self) -> str:
        return self._given.readline()

    def __iter__(self):
        yield from self._given
        self._until.wait(60)


def test_the_process_answers_faults_too_and_ends_when_idle(in_threads, monkeypatch) -> None:
    def compile_kernel(module: str, name: str, form: str):
        if name == "bad":
            raise ValueError("at 3:4\nmuch more")
        if name == "full":
            raise OSError(28, "No space left on device")
        if name == "strange":
            raise AttributeError("'JITFunction' has no 'preload'")
        return {"entry": name, "seal": "s", "seconds": 0.0}

    monkeypatch.setattr(compiler_process, "compile_kernel", compile_kernel)
    said: list[dict] = []
    until = threading.Event()
    given = Held(questions("good", "bad", "strange", "full"), until)
    assert compiler_process.serve(given, said.append, idle_s=0.2) == 0
    until.set()
    assert {each["done"]: each for each in said} == {
        1: {"done": 1, "entry": "good", "seal": "s", "seconds": 0.0},
        2: {"done": 2, "lost": "ValueError: at 3:4"},
        3: {"done": 3, "lost": "AttributeError: 'JITFunction' has no 'preload'"},
        4: {"done": 4, "fault": "OSError: [Errno 28] No space left on device"},
    }


def _killed(module: str, name: str, form: str) -> dict:
    """As the system ends a process when there is no memory left, or a compiler that crashes."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes share what is imported only by fork")
def test_a_worker_that_is_killed_is_a_fault_of_what_it_compiled(monkeypatch) -> None:
    monkeypatch.setattr(compiler_process, "get_ready", lambda target: None)
    monkeypatch.setattr(compiler_process, "compile_kernel", _killed)
    said: list[dict] = []
    until = threading.Event()
    assert compiler_process.serve(Held(questions("one", "two"), until), said.append, idle_s=1.0) == 0
    until.set()
    assert sorted(each["done"] for each in said) == [1, 2]
    assert all("terminated abruptly" in each["fault"] or "not usable" in each["fault"] for each in said)


def test_the_process_ends_with_its_input(in_threads) -> None:
    assert compiler_process.serve(questions(), lambda said: None, idle_s=600) == 0


def test_without_triton_it_says_so(monkeypatch) -> None:
    def missing(target) -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(compiler_process, "get_ready", missing)
    said: list[dict] = []
    assert compiler_process.serve(questions("good"), said.append) == 1
    assert said == [{"fault": "ImportError: No module named 'triton'"}]


def test_a_seal_sees_every_byte_and_name(tmp_path) -> None:
    assert compiler_process.seal_of(tmp_path / "none") == ""
    file = tmp_path / "k.cubin"
    seals = {compiler_process.seal_of(tmp_path)}
    for content in (b"", b"a", b"b"):
        file.write_bytes(content)
        seals.add(compiler_process.seal_of(tmp_path))
    file.rename(tmp_path / "k.json")
    seals.add(compiler_process.seal_of(tmp_path))
    assert len(seals) == 5
