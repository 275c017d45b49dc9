"""How a training step is run: on a GPU recorded once as a graph and replayed, else as it is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from scripts.demo_model.settings import Settings

WARM_STEPS = 5  # true steps before the recording: they make the optimizer's state and choose kernels
Losses = dict[str, torch.Tensor]


class Stepper:
    """Calls `step`; on a GPU from the sixth call on its recording, which costs the host next to nothing.

    The step must do all its work on the device, at fixed shapes, with PyTorch's own random numbers.
    """

    def __init__(self, step: Callable[[], Losses], s: Settings) -> None:
        self.step = step
        self.graphed = bool(s.graph) and s.device == "cuda"
        self.warm = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = side_stream() if self.graphed else None

    def __call__(self) -> Losses:
        if not self.graphed:
            return self.step()
        if self.warm < WARM_STEPS:
            return self._warm_up()
        if self.graph is None:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.losses = self.step()
            self.graph = graph
        self.graph.replay()
        return self.losses

    def _warm_up(self) -> Losses:
        self.warm += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.step()
        torch.cuda.current_stream().wait_stream(self.stream)
        torch.cuda.synchronize()
        return {name: value.clone() for name, value in losses.items()}


@cache
def side_stream() -> torch.cuda.Stream:
    """Recording needs a stream that is not the default one."""
    return torch.cuda.Stream()


def prepare(s: Settings) -> None:
    """Fast arithmetic on the device."""
    if s.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
