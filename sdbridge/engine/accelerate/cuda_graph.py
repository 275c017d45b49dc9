"""A call captured on the device and replayed: one CUDA graph, or several one after the other.

The driver makes a captured graph ready in one go and lets nobody else in meanwhile, up to 14 ms for a UNet.
So what is captured while frames run is cut in pieces, each made ready in the time that the GPU takes for a
frame. They share one memory pool: what a piece has made stays where it is as long as Python holds it, and is
given to later pieces as within one graph.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdbridge.engine.accelerate import courtesy
from sdbridge.engine.accelerate.streams import capture_stream

log = logging.getLogger(__name__)

#: About so many kernels are one piece, of what is captured while frames run; 0: all are, to compare. So
#: SD-Turbo's UNet is six. Each more costs a frame some 10 us of the host's time and a few of the GPU's.
PIECE = 65

#: Whether a graph is brought to the device when it is captured, not by its first replay; off to compare.
SENT_AHEAD = True

_of_thread = threading.local()  # ``capture``: the one under way that may be cut

#: What dropped graphs held, and the stream of their last replay, which may be under way; then with an event
#: that is past when it is not.
_dropped: deque[tuple[torch.cuda.Stream, Any]] = deque()
_leaving: deque[tuple[torch.cuda.Event, Any]] = deque()
_seeing_off = threading.Lock()


def let_go(wait: bool = True) -> None:
    """Give back the buffers of dropped graphs that have done their last replay, or wait for all of them."""
    with _seeing_off:
        while _dropped:
            stream, held = _dropped.popleft()
            last = torch.cuda.Event()
            last.record(stream)
            _leaving.append((last, held))
            del held
        while _leaving and (wait or _leaving[0][0].query()):
            last, held = _leaving.popleft()
            last.synchronize()
            del held


def may_cut(kernels: int) -> None:
    """Here a capture may be cut: about so many kernels come since the last such place. Else nothing.

    Only where no other stream has been forked off and is yet to be joined.
    """
    capture: _Capture | None = getattr(_of_thread, "capture", None)
    if capture is not None:
        capture.passed(kernels)


def cut_anywhere(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, whose capture may be cut after any operation of PyTorch: for networks that name no places."""

    def between(*tensors: Tensor) -> Any:
        if getattr(_of_thread, "capture", None) is None:
            return run(*tensors)
        with _Between():
            return run(*tensors)

    return between


class _Between(TorchFunctionMode):
    """Each operation that makes something new counts as a kernel: some are several, others only a view."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            given = args[0] if args else None
            view = isinstance(given, Tensor) and given.untyped_storage().data_ptr() == (
                made.untyped_storage().data_ptr()
            )
            if not view:
                may_cut(1)
        return made


class CudaGraph:
    """One captured call with tensors of its own for input and output. A replay overwrites the output.

    It keeps ``run``: what that reads besides its inputs (``replay.Reading``), and buffers that it made for
    itself before the capture, lie in ordinary memory, at the addresses that the graph holds, and stay its own
    only as long as somebody holds them. A graph that is dropped leaves them to those that run (``let_go``),
    since its last replay may be under way.

    Made in the calling thread, on a stream and in a memory pool of its own, so that it may be made
    beside a stream that runs. Raises RuntimeError where the call cannot be captured.
    """

    def __init__(
        self, run: Any, tensors: tuple[Tensor, ...], warm_runs: int = 1, piece: int | None = None
    ) -> None:
        """``piece``: about so many kernels are one graph, 0: all; None: ``PIECE`` beside frames, else all."""
        device = tensors[0].device
        self._run = run
        self._frames: torch.cuda.Stream | None = None  # on which it was replayed
        with torch.inference_mode():
            self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
            for _ in range(warm_runs):  # libraries choose their algorithms outside the capture
                run(*self._inputs)
            torch.cuda.current_stream(device).synchronize()
        if piece is None:
            piece = PIECE if courtesy.gives_way() else 0
        with torch.inference_mode(), capture_stream(device) as self._stream, torch.cuda.stream(self._stream):
            capture = _Capture(piece, self._stream)
            self._output = capture.of(run, self._inputs)
            self._pieces = capture.pieces
            self._stream.synchronize()

    def __del__(self) -> None:
        frames: torch.cuda.Stream | None = getattr(self, "_frames", None)
        if frames is not None:  # nothing is asked of CUDA here: a capture may be under way
            _dropped.append((frames, (self._run, self._pieces, self._stream)))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Where it reads: a ``run`` with these very tensors copies nothing."""
        return self._inputs

    def takes(self, *tensors: Tensor) -> bool:
        """Whether a call with these tensors has the captured shapes."""
        return len(tensors) == len(self._inputs) and all(
            mine.shape == given.shape for mine, given in zip(self._inputs, tensors, strict=True)
        )

    def run(self, tensors: tuple[Tensor, ...]) -> Any:
        if self._frames is None:
            # When they are dropped, their memory is nobody else's before this stream is done.
            self._frames = torch.cuda.current_stream(self._inputs[0].device)
            for mine in self._inputs:
                mine.record_stream(self._frames)
        for mine, given in zip(self._inputs, tensors, strict=True):
            if mine is not given:
                mine.copy_(given, non_blocking=True)
        for piece in self._pieces:
            piece.replay()
        if _dropped or _leaving:
            let_go(wait=False)
        return self._output


class _Capture:
    """On ``stream``, which is the current one; ``pieces`` are the finished graphs, in order."""

    def __init__(self, piece: int, stream: torch.cuda.Stream) -> None:
        self.pieces: list[torch.cuda.CUDAGraph] = []
        self._piece = piece
        self._stream = stream
        self._since = 0  # kernels, about, since the last cut
        self._open: torch.cuda.CUDAGraph | None = None

    def of(self, run: Any, tensors: tuple[Tensor, ...]) -> Any:
        """What ``run`` gives, captured. Raises what it raises; nothing is kept then."""
        _of_thread.capture = self if self._piece else None
        whole = False
        try:
            self._begin()
            made = run(*tensors)
            self._end()
            whole = True
        finally:
            _of_thread.capture = None
            if not whole:
                self._give_up()
        return made

    def passed(self, kernels: int) -> None:
        self._since += kernels
        if self._since >= self._piece:
            self._since = 0
            self._end()
            self._begin()

    def _begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        pool = self.pieces[0].pool() if self.pieces else None
        # Not torch.cuda.graph(): that collects garbage and empties caches, which would show in the
        # frames. Other threads may allocate meanwhile; that is no fault of this capture.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        self._open = graph

    def _end(self) -> None:
        """What was captured is made ready."""
        courtesy.once_a_frame_is_queued()
        graph, self._open = self._open, None
        assert graph is not None
        graph.capture_end()
        if SENT_AHEAD:
            _send_ahead(graph, self._stream)
        self.pieces.append(graph)

    def _give_up(self) -> None:
        graph, self._open = self._open, None
        if graph is not None:
            with suppress(RuntimeError):  # the first fault is the one to tell
                graph.capture_end()
        self.pieces.clear()


def _send_ahead(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> bool:
    """Bring what the device needs for a replay there now; where that cannot be, the first replay does it."""
    handle, driver = getattr(graph, "raw_cuda_graph_exec", None), _driver()
    if handle is None or driver is None:  # torch before 2.10, or no CUDA
        return False
    try:
        code = driver.cuGraphUpload(ctypes.c_void_p(handle()), ctypes.c_void_p(stream.cuda_stream))
    except (RuntimeError, AttributeError) as error:
        log.debug("a graph is not brought ahead: %s", error)
        return False
    if code:
        log.debug("a graph is not brought ahead: cuGraphUpload gave %d", code)
    return code == 0


@cache
def _driver() -> Any:
    """CUDA's driver, which the runtime's graphs and streams belong to as well; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        log.debug("no driver: %s", error)
        return None
