"""The thread in which things are loaded beside the frames, on a CUDA stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from sdbridge.engine.accelerate.courtesy import beside_the_frames
from sdbridge.engine.accelerate.streams import own_stream
from sdbridge.engine.image.upload import Upload, uploading

T = TypeVar("T")


class LoadingThread:
    """Runs jobs one after another; what a job gives is complete on the device when its future is done.

    Made before frames flow: its pinned buffer and its stream cost milliseconds once.
    """

    def __init__(self, device: torch.device) -> None:
        self._upload = Upload(device)
        self._upload.gentle = True
        # The lowest priority there is: where both could run, the frames' kernels do.
        self._stream = own_stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside")

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run ``job`` beside. Called from the frames' thread, whose work queued so far the job may read."""
        stream = self._stream
        if stream is None:
            return self._thread.submit(self._run, job)
        frames = torch.cuda.current_stream(stream.device)
        queued = frames.record_event()
        return self._thread.submit(self._run_on, stream, frames, queued, job)

    def close(self) -> None:
        """Drop what has not begun, wait for what has."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Callable[[], T]) -> T:
        with uploading(self._upload):
            made = job()
        if isinstance(made, torch.Tensor):
            self._upload.lend(made)
        return made

    def _run_on(
        self,
        stream: torch.cuda.Stream,
        frames: torch.cuda.Stream,
        queued: torch.cuda.Event,
        job: Callable[[], T],
    ) -> T:
        self._upload.frames = frames
        with beside_the_frames(), torch.cuda.stream(stream):
            stream.wait_event(queued)
            try:
                return self._run(job)
            finally:
                stream.synchronize()  # not the device: a graph may be under capture
