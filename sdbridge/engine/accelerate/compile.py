"""The model replayed from CUDA graphs, on our own kernels where Triton is: no launch cost, fewer kernels.

Nothing is compiled before the first frame. A shape that is new is captured from PyTorch's own operations
(a fraction of a second): at once before anything streams, else beside the running graph, and ``foresee_*``
begins that before the shape is taken up. The kernels for it are compiled and captured beside the stream too,
and take over at a frame edge; where they are compiled already they are what is captured first. Weights are
read where they lie at every replay, so a LoRA fader needs nothing from us. What a graph cannot hold
(processors of our own on the attention layers) runs operation by operation.

Which graphs there are is kept in ``graphs.py``; whose calls they are, in ``unet_graphs.py`` and
``picture_graphs.py``, and for other networks in ``replay.py``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdbridge.engine.accelerate import courtesy, kernels, packed_controlnet, precompile
from sdbridge.engine.accelerate.attention import Attend, pytorch_attention
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.control_graphs import PackedControl, PlainControl
from sdbridge.engine.accelerate.cuda_graph import CudaGraph, cut_anywhere
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.graphs import Capture, Graphs
from sdbridge.engine.accelerate.hoisted import PARTS
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet
from sdbridge.engine.accelerate.picture_graphs import PictureGraphs
from sdbridge.engine.accelerate.replay import Begin, Key, Replayed, TensorCall
from sdbridge.engine.accelerate.unet_graphs import UnetGraphs
from sdbridge.engine.accelerate.unet_ops import PlainOps
from sdbridge.engine.image.control_networks import ControlCall
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.interface import Progress
from sdbridge.errors import first_line

if TYPE_CHECKING:
    from sdbridge.engine.accelerate.measured import MeasuredKernels

log = logging.getLogger(__name__)


class Compiled:
    """Graphs by shape, newest kept. Falls back to ``Eager`` call by call, saying why once."""

    name = "compile"

    def __init__(
        self, model: LoadedModel, capture: Capture = CudaGraph, attend: Attend | None = None
    ) -> None:
        self._model = model
        self._attend = attend or pytorch_attention
        self._capture = capture
        eager = Eager(model, attend)
        self.graphs = Graphs(capture, model.device.type == "cuda", self.is_wanted)
        self.unet = UnetGraphs(model, eager, self.graphs, self._attend)
        self.pictures = PictureGraphs(model, eager, self.graphs)
        self._measured: MeasuredKernels | None = None
        able, why = kernels.available()
        if able and not (model.unet.dtype == torch.float16 or model.unet.dtype == torch.bfloat16):
            able, why = False, f"the model is in {model.unet.dtype}"
        if model.device.type == "cuda":
            self.graphs.beside = BesideTheStream(model.device, gives_way=True)
        if able and self.unet.packed:
            able, why = kernels.importable()
        if able and self.unet.packed:
            self._use_own_kernels()
        else:
            self.graphs.say(f"our own kernels rest: {why or 'the UNet is not packed'}")

    def _use_own_kernels(self) -> None:
        from sdbridge.engine.accelerate.kernels.linear import default_way
        from sdbridge.engine.accelerate.kernels.unet import FusedOps
        from sdbridge.engine.accelerate.measured import measured_on

        device, attend = self._model.device, self._attend
        measured = self._measured = measured_on(device, precompile.use_own_cache())
        ways, convs = (default_way, None) if measured is None else (measured.linear, measured.conv)
        courtesy.watch_kernel_loads()
        self.unet.make_fast = lambda: FusedOps(device, ways, convs, attend)
        self.pictures.use_own_kernels()
        if self.graphs.beside is not None:
            self.graphs.beside.submit(kernels.read_sources, _sources_read, _sources_unread)
        if device.type == "cuda":
            choices = "" if measured is None else measured.digest
            self.graphs.compiler = precompile.kernel_compiler(device, choices)

    # --- getting ready ---

    @property
    def foresees(self) -> bool:
        """Whether anything is made beside the stream, so that a new shape may have to be waited for."""
        return self.graphs.beside is not None

    def prepare_denoise(self, call: UnetCall) -> None:
        self.unet.prepare(call)

    def foresee_denoise(self, *calls: UnetCall) -> bool:
        """See ``Acceleration``."""
        return not self.foresees or self.unet.foresee(*calls)

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        self.pictures.prepare(frames, height, width)

    def foresee_pictures(self, frames: int, height: int, width: int) -> bool:
        """See ``Acceleration``."""
        return not self.foresees or self.pictures.foresee(frames, height, width)

    def is_wanted(self, key: Key) -> bool:
        """Whether frames run with what is called so, or are to."""
        owner = self.unet if key[0] in ("unet", *PARTS) else self.pictures
        return owner.is_wanted(key)

    # --- frames ---

    def run_denoise(self, call: UnetCall) -> Tensor:
        return self.unet.run(call)

    def run_encode(self, image: Tensor) -> Tensor:
        return self.pictures.run_encode(image)

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        return self.pictures.run_encode_rgba(rgba)

    def run_decode(self, latent: Tensor) -> Tensor:
        return self.pictures.run_decode(latent)

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        return self.pictures.run_decode_rgba(latent)

    def room_for_pixels(self, frames: int, height: int, width: int) -> Tensor | None:
        return self.pictures.room_for_pixels(frames, height, width)

    def room_for_sample(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        return self.unet.room_for_sample(shape, dtype)

    # --- the rest of the interface ---

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """``run`` of another network, such as a ControlNet: captured once it has run a while.

        A ControlNet that has the usual parts runs as the UNet does, packed and on our own kernels. Another
        call may bring a form of its own on kernels of ours, as its ``faster``.
        """
        beside = self.graphs.beside
        if not isinstance(run, ControlCall):
            own = getattr(run, "faster", None) if kernels.available()[0] else None
            begin = self._begin({"kind": type(run).__name__})
            return Replayed(run, name, self._capture, beside, own, begin)
        why = packed_controlnet.obstacle(run.network)
        if why:
            self.graphs.say(f"{name} runs unpacked: it has {why}")
            return PlainControl(Replayed(cut_anywhere(run), name, self._capture, beside))
        packed = PackedControlNet(run.network, PlainOps(self._attend))
        begin = self._begin({"kind": "controlnet", "config": precompile.plain(run.network.config)})

        def replay(call: TensorCall, called: str, faster: TensorCall | None) -> Replayed:
            return Replayed(call, called, self._capture, beside, faster, begin)

        return PackedControl(packed, name, replay, self.unet.make_fast)

    def _begin(self, about: precompile.Spec) -> Begin | None:
        """How calls of this kind have their kernels compiled, where a process of its own does it."""
        compiler = self.graphs.compiler
        return None if compiler is None else precompile.CallKernels(compiler, about)

    def weights_changed(self) -> None:
        """Replays read the tensors where they are; only what depends on no frame is kept (``hoisted.py``)."""
        self.unet.weights_changed()

    def report_progress(self, tell: Callable[[Progress | None], None]) -> None:
        """Who hears how many kernels are compiled, and None when there are no more."""
        if self.graphs.compiler is not None:
            self.graphs.compiler.report_progress(tell)

    def settled(self, timeout_s: float = 300.0) -> bool:
        """Wait until nothing better is under way; False if it still is. For builds and benchmarks."""
        return self.graphs.settled(timeout_s)

    def build(self, tell: Callable[[Progress], None]) -> tuple[str, ...]:
        """Wait for all that is compiled and captured, which the next start finds; what was made, in words."""
        beside, compiler = self.graphs.beside, self.graphs.compiler
        began, most = time.monotonic(), 0
        while not self.settled(0.2):
            jobs = 0 if beside is None else beside.count
            if compiler is not None and compiler.busy:  # it tells how far it is
                began, most = time.monotonic(), 0
                continue
            most = max(most, jobs)
            done = most - jobs
            left_s = (time.monotonic() - began) / done * jobs if done else None
            tell(Progress("capture", done, most, "CUDA graphs", left_s))
        if most:
            tell(Progress("capture", most, most, "CUDA graphs", 0.0))
        if compiler is None:
            return ("nothing to compile: the graphs are captured at each start",)
        return (compiler.summary(),)

    def measure(self, tell: Callable[[Progress], None]) -> int:
        """Time kernels on a card whose numbers are not shipped; how many layers that were.

        The next start takes what was found.
        """
        return 0 if self._measured is None else self._measured.measure(self._model.device, tell)

    def close(self) -> None:
        self.graphs.close()
        self.unet.close()


def _sources_read(count: int) -> None:
    log.debug("%d functions of our kernels are read", count)


def _sources_unread(error: Exception) -> None:
    log.info("our kernels are read when they are first called: %s", first_line(error))
