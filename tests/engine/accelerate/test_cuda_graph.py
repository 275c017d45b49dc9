"""A call captured in pieces is the call: same numbers, in order, with nothing left behind when one fails."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sdbridge.engine.accelerate import beside, courtesy, cuda_graph, streams
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.cuda_graph import CudaGraph, cut_anywhere, may_cut
from sdbridge.engine.accelerate.packed_unet import PackedUnet
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.seams import UnetCall
from tests.engine.accelerate.test_packed_unet import build, make_call

#: What waits for the device: a capture would fail over it, and a replay would have the first answer.
_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self._before: dict[int, tuple[Any, Any]] = {}  # memory that was written, and what lay there

    def _remember(self, written: list[Tensor]) -> None:
        for tensor in written:
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._before:
                self._before[memory.data_ptr()] = memory, memory.clone()

    def undo(self) -> None:
        """A capture does nothing of what it notes down."""
        for memory, lay_there in self._before.values():
            memory.copy_(lay_there)
        self._before.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in _WAITS:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        self._remember(_written(func._schema, args, kwargs or {}))
        made = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, _tensors(made)))
        return made


def _written(schema: Any, args: tuple, more: dict) -> list[Tensor]:
    found: list[Tensor] = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[number] if number < len(args) else more.get(argument.name))
    return found


class RecordedGraph:
    """A CUDA graph's contract on the CPU: what ran between begin and end runs again, on the same tensors."""

    made: ClassVar[list[RecordedGraph]] = []
    under_way: ClassVar[list[RecordedGraph]] = []
    #: A capture here writes for a moment what it notes down: no frame may run meanwhile.
    alone: ClassVar[Any] = threading.RLock()
    fail_at = 0  # the number of the capture that fails to end

    def __init__(self) -> None:
        self.given_pool: Any = None
        self.replays = 0
        self.thread = 0
        self._recording = Recording()

    def capture_begin(self, pool=None, capture_error_mode="global") -> None:
        assert capture_error_mode == "thread_local" and not self.is_under_way(), "one at a time in a thread"
        self.alone.acquire()
        self.thread = threading.get_ident()
        self.given_pool = pool
        self.under_way.append(self)
        self._recording.__enter__()

    @classmethod
    def is_under_way(cls) -> bool:
        """In this thread."""
        return any(graph.thread == threading.get_ident() for graph in cls.under_way)

    def capture_end(self) -> None:
        self.under_way.remove(self)
        self._recording.__exit__(None, None, None)
        self._recording.undo()
        self.alone.release()
        self.made.append(self)
        if len(self.made) == self.fail_at:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def pool(self) -> Any:
        assert self in self.made, "of a finished capture"
        return self.given_pool or ("pool of", id(self))

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, outputs in self._recording.steps:
            for mine, new in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
                if mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)


def _tensors(made: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda each: found.append(each) if isinstance(each, Tensor) else None, made)
    return found


class Stream:
    cuda_stream = 77

    def synchronize(self) -> None: ...


@pytest.fixture
def on_cpu(monkeypatch) -> Iterator[type[RecordedGraph]]:
    """CUDA as ``cuda_graph`` uses it."""

    @contextmanager
    def capture_stream(device):
        yield Stream()

    monkeypatch.setattr(RecordedGraph, "made", [])
    monkeypatch.setattr(RecordedGraph, "under_way", [])
    monkeypatch.setattr(RecordedGraph, "fail_at", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(cuda_graph, "capture_stream", capture_stream)
    monkeypatch.setattr(beside, "only_noted", lambda tensor: RecordedGraph.is_under_way())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    yield RecordedGraph
    cuda_graph._dropped.clear()
    cuda_graph._leaving.clear()


def steps(x: Tensor) -> Tensor:
    """Each reads what the two before it made."""
    before, here = x, x + 1
    for _ in range(6):
        before, here = here, here * 2 + before
        may_cut(10)
    return here - x


@pytest.mark.parametrize(("piece", "count"), [(0, 1), (1, 7), (20, 4), (25, 3), (1000, 1)])
def test_pieces_share_a_pool_and_run_one_after_the_other(on_cpu, piece: int, count: int) -> None:
    graph = CudaGraph(steps, (torch.zeros(3),), piece=piece)
    assert len(on_cpu.made) == count and not on_cpu.under_way
    first = on_cpu.made[0]
    assert first.given_pool is None and {g.given_pool for g in on_cpu.made[1:]} <= {("pool of", id(first))}
    for number in range(5):
        x = torch.full((3,), float(number))
        with torch.inference_mode():
            assert torch.equal(graph.run((x,)), steps(x))
    assert {g.replays for g in on_cpu.made} == {5}


class Workspace:
    """A call with a buffer of its own, made by its first run, before the capture."""

    def __init__(self) -> None:
        self.room: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.room is None:
            self.room = torch.zeros(1 << 16, device=x.device)
        self.room += x.sum()
        return self.room.sum() + 0.0


def test_what_a_call_made_for_itself_lives_as_long_as_its_graph_and_no_longer(on_cpu) -> None:
    """The UNet's workspace was somebody else's memory as soon as the next graph was made."""
    call = Workspace()
    alive = weakref.ref(call)
    graph = CudaGraph(call, (torch.zeros(3),))
    del call
    assert alive() is not None
    del graph
    assert alive() is None


def test_a_dropped_graph_keeps_its_buffers_until_its_last_replay_is_done(on_cpu, monkeypatch) -> None:
    done: list[bool] = []
    waited: list[str] = []

    class Event:
        def record(self, stream) -> None: ...

        def query(self) -> bool:
            return bool(done)

        def synchronize(self) -> None:
            waited.append("for the last replay")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    call, x = Workspace(), torch.zeros(3)
    alive = weakref.ref(call)
    with torch.inference_mode():
        graph, other = CudaGraph(call, (x,)), CudaGraph(steps, (x,))
        graph.run((x,))
        del call, graph
        other.run((x,))
        assert alive() is not None and not waited
        done.append(True)
        other.run((x,))
        assert alive() is None, "the frames see it off"
        done.clear()
        call = Workspace()
        alive = weakref.ref(call)
        graph = CudaGraph(call, (x,))
        graph.run((x,))
        del call, graph
    assert alive() is not None
    cuda_graph.let_go()  # an unload waits
    assert alive() is None and waited[-1] == "for the last replay"


def test_a_unet_is_cut_where_its_parts_end(on_cpu) -> None:
    unet, call = build("sdxl"), make_call("sdxl", build("sdxl"))
    packed = PackedUnet(unet, PlainOps())

    def run_on(sample: Tensor) -> Tensor:
        return packed.run(replace(call, sample=sample))

    graph = CudaGraph(run_on, (call.sample,), piece=40)
    count = len(on_cpu.made)
    assert count >= 4
    sizes = [len(each._recording.steps) for each in on_cpu.made]
    assert max(sizes) < sum(sizes) / 2
    for seed in range(3):
        torch.manual_seed(seed)
        sample = torch.randn_like(call.sample)
        with torch.inference_mode():
            assert torch.equal(graph.run((sample,)), run_on(sample))


def test_a_network_that_names_no_places_is_cut_between_its_operations(on_cpu) -> None:
    """As diffusers has it, with what a T2I-Adapter adds inside its blocks."""
    unet, call = build("sd15"), make_call("sd15", build("sd15"))

    def run(sample: Tensor, text: Tensor) -> Tensor:
        return unet(sample, call.timesteps, encoder_hidden_states=text, return_dict=False)[0]

    given = (call.sample, call.encoder_hidden_states)
    CudaGraph(cut_anywhere(run), given, piece=0)
    assert len(on_cpu.made) == 1
    on_cpu.made.clear()
    graph = CudaGraph(cut_anywhere(run), given, piece=40)
    sizes = [len(each._recording.steps) for each in on_cpu.made]
    assert len(sizes) > 4 and max(sizes[:-1]) < 2 * min(sizes[:-1])
    for seed in range(2):
        torch.manual_seed(seed)
        given = tuple(torch.randn_like(tensor) for tensor in given)
        with torch.inference_mode():
            assert torch.equal(graph.run(given), run(*given))


@pytest.mark.parametrize("fails", ["running", "ending a piece", "ending the last", "beginning"])
def test_a_fault_in_a_later_piece_leaves_nothing_open_and_nothing_kept(on_cpu, monkeypatch, fails) -> None:
    def run(x: Tensor) -> Tensor:
        for number in range(4):
            x = x * 2
            if number == 3 and fails == "running" and on_cpu.under_way:
                raise RuntimeError("operation not permitted when stream is capturing")
            may_cut(10)
        return x

    if fails == "beginning":
        begin = on_cpu.capture_begin

        def capture_begin(self, **given) -> None:
            if len(on_cpu.made) == 2:
                raise RuntimeError("no memory")
            begin(self, **given)

        monkeypatch.setattr(on_cpu, "capture_begin", capture_begin)
    on_cpu.fail_at = {"ending a piece": 3, "ending the last": 5}.get(fails, 0)
    said = {"running": "not permitted", "beginning": "no memory"}.get(fails, "previous error")
    with pytest.raises(RuntimeError, match=said):
        CudaGraph(run, (torch.ones(2),), piece=10)
    assert not on_cpu.under_way
    may_cut(10)  # this thread's next calls are cut no more


def test_only_what_is_captured_while_frames_run_is_cut(on_cpu, monkeypatch) -> None:
    """And each piece is made ready when a frame has just been queued."""
    monkeypatch.setattr(cuda_graph, "PIECE", 10)
    for name in ("PATIENCE_S", "EDGE_PATIENCE_S", "_QUEUED_PATIENCE_S", "_LATELY_S"):
        monkeypatch.setattr(courtesy, name, 60.0)
    courtesy.frame_waits()
    CudaGraph(steps, (torch.zeros(3),))
    assert len(on_cpu.made) == 1, "in the frames' own thread"
    on_cpu.made.clear()
    beside, results = BesideTheStream(torch.device("cpu"), gives_way=True), []
    courtesy.frame_begins()
    courtesy.frame_waits()
    beside.submit(lambda: CudaGraph(steps, (torch.zeros(3),)), results.append, results.append)
    seen = []
    for _ in range(2000):
        before = len(on_cpu.made)
        courtesy.frame_begins()
        courtesy.frame_is_out(0)
        assert not beside.wait(0.002)
        courtesy.frame_waits()
        done = beside.wait(0.02)
        seen.append(len(on_cpu.made) - before)
        if done:
            break
    assert isinstance(results[0], CudaGraph) and len(on_cpu.made) == 7
    assert max(seen) == 1, "never two in one frame"
    monkeypatch.setattr(courtesy, "_LATELY_S", 0.0)
    on_cpu.made.clear()
    beside.submit(lambda: CudaGraph(steps, (torch.zeros(3),)), results.append, results.append)
    assert beside.wait(60) and len(on_cpu.made) == 1, "nobody to be held up"
    beside.close()


@pytest.mark.parametrize("code", [0, 1])
def test_each_piece_is_brought_to_the_device_when_it_is_ready(on_cpu, monkeypatch, code: int) -> None:
    brought = []

    class Driver:
        def cuGraphUpload(self, graph, stream) -> int:  # noqa: N802 # the driver's name
            brought.append((graph.value, stream.value, len(on_cpu.made)))
            return code

    monkeypatch.setattr(cuda_graph, "_driver", Driver)
    CudaGraph(steps, (torch.zeros(3),), piece=20)
    assert not brought, "a torch that does not tell where its graph is"
    on_cpu.made.clear()
    monkeypatch.setattr(RecordedGraph, "raw_cuda_graph_exec", lambda graph: id(graph), raising=False)
    graph = CudaGraph(steps, (torch.zeros(3),), piece=20)
    assert brought == [(id(piece), 77, number) for number, piece in enumerate(graph._pieces, 1)]
    with torch.inference_mode():
        assert torch.equal(graph.run((torch.ones(3),)), steps(torch.ones(3)))


def test_without_a_driver_the_first_replay_does_it(on_cpu, monkeypatch) -> None:
    monkeypatch.setattr(RecordedGraph, "raw_cuda_graph_exec", lambda graph: id(graph), raising=False)
    monkeypatch.setattr(cuda_graph, "_driver", lambda: None)
    assert len(CudaGraph(steps, (torch.zeros(3),), piece=20)._pieces) == 4


def test_a_place_to_cut_means_nothing_elsewhere() -> None:
    may_cut(10_000)


# --- with a GPU ---


def _on_gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize("piece", [1, 40])
def test_pieces_give_the_bits_of_the_whole_on_a_gpu(piece: int) -> None:
    device = _on_gpu()
    unet = build("sd15").to(device).half()
    packed = PackedUnet(unet, PlainOps())
    text = torch.randn(2, 7, 24, device=device).half()

    def run(sample: Tensor, timesteps: Tensor) -> Tensor:
        return packed.run(UnetCall(sample, timesteps, text))

    sample = torch.randn(2, 4, 16, 16, device=device).half()
    timesteps = torch.tensor([359, 741], device=device)
    whole = CudaGraph(run, (sample, timesteps), piece=0)
    cut = CudaGraph(run, (sample, timesteps), piece=piece)
    assert len(whole._pieces) == 1 and len(cut._pieces) > (20 if piece == 1 else 2)
    with torch.inference_mode():
        for number in range(100):
            torch.manual_seed(number)
            sample = torch.randn(2, 4, 16, 16, device=device).half()
            wanted = whole.run((sample, timesteps)).clone()
            assert torch.equal(cut.run((sample, timesteps)), wanted), number
        other = torch.randn(1 << 24, device=device)  # nobody else is given the pieces' memory
        assert torch.equal(cut.run((sample, timesteps)), wanted)
        del other


@pytest.mark.gpu
def test_what_a_call_made_for_itself_is_given_to_nobody_else_on_a_gpu() -> None:
    device = _on_gpu()
    call = Workspace()
    x = torch.ones(3, device=device)
    graph = CudaGraph(call, (x,))
    assert call.room is not None
    at, size = call.room.data_ptr(), call.room.nbytes
    del call
    gc.collect()
    others = [torch.zeros(1 << 16, device=device) for _ in range(64)]
    with torch.inference_mode():
        before = float(graph.run((x,)))
        assert float(graph.run((x,))) == before + 3 * (1 << 16), "its sums are its own"
    assert all(other.data_ptr() + other.nbytes <= at or at + size <= other.data_ptr() for other in others)
    assert not any(bool(other.any()) for other in others)


@pytest.mark.gpu
def test_a_graph_can_be_brought_ahead_on_a_gpu(monkeypatch) -> None:
    """Where torch tells where its graph is, which is from 2.10 on."""
    device, found = _on_gpu(), []
    send = cuda_graph._send_ahead
    monkeypatch.setattr(cuda_graph, "_send_ahead", lambda *given: found.append(send(*given)))
    x = torch.randn(64, device=device)
    graph = CudaGraph(steps, (x,), piece=20)
    assert found == [hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph_exec")] * 4
    with torch.inference_mode():
        assert torch.allclose(graph.run((x,)), steps(x))


@pytest.mark.gpu
def test_a_fault_in_a_later_piece_gives_memory_and_stream_back_on_a_gpu() -> None:
    device = _on_gpu()
    made: list[int] = []

    def run(x: Tensor) -> Tensor:
        for _ in range(4):
            x = x @ x
            may_cut(10)
            if torch.cuda.is_current_stream_capturing():
                made.append(1)
                if len(made) == 3:
                    x.cpu()  # what no capture allows
        return x

    x = torch.eye(256, device=device)
    CudaGraph(lambda x: x @ x, (x,))  # workspaces, and the stream that all share in need
    owned, before = len(streams._owned), torch.cuda.memory_allocated(device)
    with pytest.raises(RuntimeError):
        CudaGraph(run, (x,), piece=10)
    assert len(streams._owned) == owned
    assert torch.cuda.memory_allocated(device) <= before + (64 << 20)  # a workspace of the stream stays
    graph = CudaGraph(run, (x,), piece=10)
    with torch.inference_mode():
        assert torch.allclose(graph.run((x * 1.0,)), x)


@pytest.mark.gpu
def test_pieces_are_captured_while_another_thread_runs_frames_on_a_gpu() -> None:
    device = _on_gpu()
    weight = torch.randn(512, 512, device=device)

    def run(x: Tensor) -> Tensor:
        for _ in range(20):
            x = torch.tanh(x @ weight)
            may_cut(10)
        return x

    x = torch.randn(64, 512, device=device)
    frames = CudaGraph(run, (x,), piece=0)
    beside, made = BesideTheStream(device, gives_way=True), []
    with torch.inference_mode():
        frames.run((x,))
        beside.submit(lambda: CudaGraph(run, (x,)), made.append, made.append)
        while not beside.wait(0.0):
            with courtesy.queueing_a_frame():
                wanted = frames.run((x,)).clone()
            torch.cuda.current_stream(device).synchronize()
            courtesy.frame_is_out(0)
        assert isinstance(made[0], CudaGraph) and len(made[0]._pieces) > 1
        assert torch.equal(made[0].run((x,)), wanted)
    beside.close()
