"""The model replayed from CUDA graphs, on our own kernels where Triton is: no launch cost, fewer kernels.

Nothing is compiled before the first frame. A shape that is new is captured from PyTorch's own operations
(a fraction of a second): at once before anything streams, else beside the running graph, and ``foresee_*``
begins that before the shape is taken up. The kernels for it are compiled and captured beside the stream too,
and take over at a frame edge; where they are compiled already they are what is captured first. Weights are
read where they lie at every replay, so a LoRA fader needs nothing from us. What a graph cannot hold
(processors of our own on the attention layers) runs operation by operation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdbridge.engine.accelerate import courtesy, kernels, packed_controlnet, precompile
from sdbridge.engine.accelerate.attention import Attend, pytorch_attention
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.flat_calls import at_times, flat, time_inputs, unflat
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet, Residuals
from sdbridge.engine.accelerate.packed_unet import PackedUnet, obstacle
from sdbridge.engine.accelerate.precompile import KernelCompiler
from sdbridge.engine.accelerate.replay import (
    Begin,
    Captured,
    CudaGraph,
    Key,
    Replayed,
    TensorCall,
    Uncaptured,
)
from sdbridge.engine.accelerate.unet_ops import PlainOps, UnetOps
from sdbridge.engine.image.control_networks import ControlCall
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.interface import Progress
from sdbridge.errors import first_line

if TYPE_CHECKING:
    from sdbridge.engine.accelerate.measured import MeasuredKernels

log = logging.getLogger(__name__)

_KEPT_GRAPHS = 12
_KEPT_SIZES = 3
#: What most frames take comes first.
_PICTURE_CALLS = ("encode_rgba", "decode_rgba", "encode", "decode")
Capture = Callable[[TensorCall, tuple[Tensor, ...]], CudaGraph]


class Compiled:
    """Graphs by shape, newest kept. Falls back to ``Eager`` call by call, saying why once."""

    name = "compile"

    def __init__(
        self, model: LoadedModel, capture: Capture = CudaGraph, attend: Attend | None = None
    ) -> None:
        self._model = model
        self._eager = Eager(model, attend)
        self._attend = attend = attend or pytorch_attention
        self._capture = capture
        self._said: set[str] = set()
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        self._putting_in = threading.Lock()  # what is in ``_graphs``, against graphs that arrive for it
        self._denoise: Key | None = None
        self._denoise_ahead: frozenset[Key] = frozenset()  # what is to be run later
        self._size = self._size_ahead = (0, 0, 0)
        self._times_at: Key = ()  # what the time projections below were made of
        self._times_of: tuple[Tensor, ...] = ()
        self._times_now = torch.zeros(0)
        self._tiny: dict[str, TensorCall] | None = None
        self._attention = [
            (name, module) for name, module in model.unet.named_modules() if hasattr(module, "processor")
        ]
        why = obstacle(model.unet)
        self._packed = None if why else PackedUnet(model.unet, PlainOps(attend))
        if why:
            self._say(f"the UNet runs unpacked: it has {why}")
        self._make_fast: Callable[[], UnetOps] | None = None  # each graph has buffers of its own
        self._beside: BesideTheStream | None = None
        self._compiler: KernelCompiler | None = None
        self._measured: MeasuredKernels | None = None
        able, why = kernels.available()
        if able and not (model.unet.dtype == torch.float16 or model.unet.dtype == torch.bfloat16):
            able, why = False, f"the model is in {model.unet.dtype}"
        if model.device.type == "cuda":
            self._beside = BesideTheStream(model.device, gives_way=True)
        if able and self._packed is not None:
            from sdbridge.engine.accelerate.kernels.linear import default_way
            from sdbridge.engine.accelerate.kernels.unet import FusedOps
            from sdbridge.engine.accelerate.measured import measured_on

            measured = self._measured = measured_on(model.device, precompile.use_own_cache())
            ways, convs = (default_way, None) if measured is None else (measured.linear, measured.conv)
            courtesy.watch_kernel_loads()
            self._make_fast = lambda: FusedOps(model.device, ways, convs, attend)
            self._tiny = self._tiny_vae()
            if model.device.type == "cuda":
                choices = "" if measured is None else measured.digest
                self._compiler = precompile.kernel_compiler(model.device, choices)
        else:
            self._say(f"our own kernels rest: {why or 'the UNet is not packed'}")

    def _tiny_vae(self) -> dict[str, TensorCall] | None:
        """The four ways through the tiny VAE on our own kernels, where they know it."""
        from sdbridge.engine.accelerate.kernels import tiny_vae

        model = self._model
        able, why = tiny_vae.supports(model.vae)
        if not able or model.vae_dtype != torch.float16:
            self._say(f"the VAE runs on PyTorch's operations: {why if not able else model.vae_dtype}")
            return None
        encoder = tiny_vae.TinyEncoder(model.vae, model.latent_scale, model.latent_shift)
        decoder = tiny_vae.TinyDecoder(model.vae, model.latent_scale, model.latent_shift)
        return {
            "encode": encoder,
            "encode_rgba": encoder,
            "decode": decoder,
            "decode_rgba": lambda latent: decoder(latent, rgba=True),
        }

    # --- getting ready ---

    @property
    def foresees(self) -> bool:
        """Whether anything is made beside the stream, so that a new shape may have to be waited for."""
        return self._beside is not None

    def prepare_denoise(self, call: UnetCall) -> None:
        key = self._denoise = self._key_of(call)
        if key is None:
            return
        bank = call.bank
        if bank is not None:
            for other in [other for other in self._graphs if other[0] == "unet"]:
                if other[1] not in (0, bank.generation) and other not in self._denoise_ahead:
                    self._drop(other)  # its feature bank is no more
        self._provide_denoise(key, call, self._streams("unet"))

    def foresee_denoise(self, *calls: UnetCall) -> bool:
        """See ``Acceleration``. With a feature bank only what runs packed is foreseen."""
        if self._beside is None:
            return True
        known = [(self._key_of(call), call) for call in calls if call.bank is None or self._packs(call)]
        wanted = [(key, call) for key, call in known if key is not None]
        self._denoise_ahead = frozenset(key for key, _ in wanted)
        for key, call in wanted:
            self._provide_denoise(key, call, beside=True)
        needed = [key for key, _ in wanted] + [_time_key(call) for _, call in wanted if self._packs(call)]
        return all(self._ready(key) for key in needed)

    def _key_of(self, call: UnetCall) -> Key | None:
        """By what the graph for such calls is known; None where there can be none."""
        if call.bank is not None and call.bank.seeding and not self._packs(call):
            return None  # one frame only, and not to be captured beside the stream
        why = self._obstacle(call)
        if why:
            self._say(f"the UNet runs operation by operation: {why}")
            return None
        names, tensors = flat(call)
        generation, seeding = (0, False) if call.bank is None else call.bank.key
        return ("unet", generation, seeding, names, self._packs(call), *_shapes(tensors))

    def _provide_denoise(self, key: Key, call: UnetCall, beside: bool) -> None:
        if self._is_there(key):
            return
        names, tensors = flat(call)
        if self._packs(call):
            self._provide_packed(key, call, names, tensors, beside)
        else:  # with a feature bank never beside: the modules write into it, trying too
            run = _on_tensors(self._eager.run_denoise, call, names)
            self._provide(key, run, tensors, beside and call.bank is None)
        self._drop_oldest("unet", _KEPT_GRAPHS)

    def _packs(self, call: UnetCall) -> bool:
        return self._packed is not None and not PackedUnet.fits(call)

    def _provide_packed(
        self, key: Key, call: UnetCall, names: tuple[str, ...], tensors: tuple[Tensor, ...], beside: bool
    ) -> None:
        """The time projections have a graph of their own: they change with the steps, not with the frame."""
        packed = self._packed
        assert packed is not None
        time_names, time_tensors = time_inputs(call)
        time_key = _time_key(call)
        if not self._is_there(time_key):
            self._provide(
                time_key, lambda *given: packed.times(at_times(call, time_names, given)), time_tensors, beside
            )
            self._drop_oldest("times", _KEPT_GRAPHS)
        self._times_at = ()
        with torch.inference_mode():
            both = (*tensors, packed.times(call))

        rehearse = _rehearsal(call)

        def plainly(*given: Tensor) -> Tensor:
            return packed.run(unflat(rehearse(), names, given[:-1]), times=given[-1])

        faster, spec = None, None
        if self._make_fast is not None:
            fast = self._make_fast()

            def faster(*given: Tensor) -> Tensor:
                return packed.run(unflat(rehearse(), names, given[:-1]), fast, given[-1])

            spec = precompile.unet_spec(self._model.unet, call)
        self._provide(key, plainly, both, beside, faster, spec)

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        self._size = (frames, height, width)
        self._provide_pictures(self._size, self._streams("encode"))

    def foresee_pictures(self, frames: int, height: int, width: int) -> bool:
        """See ``Acceleration``."""
        if self._beside is None:
            return True
        self._size_ahead = (frames, height, width)
        self._provide_pictures(self._size_ahead, beside=True)
        return all(self._ready((kind, *self._size_ahead)) for kind in _PICTURE_CALLS)

    def _provide_pictures(self, size: tuple[int, int, int], beside: bool) -> None:
        there = [self._is_there((kind, *size)) for kind in _PICTURE_CALLS]
        if all(there):
            return
        model, per = self._model, self._model.pixels_per_latent
        frames, height, width = size
        device = model.device
        image = torch.zeros(frames, 3, height, width, device=device)
        rgba = torch.zeros(frames, height, width, 4, dtype=torch.uint8, device=device)
        latent = torch.zeros(frames, model.latent_channels, height // per, width // per, device=device)
        given = {"encode": image, "encode_rgba": rgba, "decode": latent, "decode_rgba": latent}
        eager = self._eager
        plain: dict[str, TensorCall] = {
            "encode": eager.run_encode,
            "encode_rgba": eager.run_encode_rgba,
            "decode": eager.run_decode,
            "decode_rgba": eager.run_decode_rgba,
        }
        spec = precompile.pictures_spec(model.vae, model.vae_dtype, *size) if self._tiny else None
        for kind in _PICTURE_CALLS:
            key: Key = (kind, *size)
            if key not in self._graphs:
                faster = None if self._tiny is None else self._tiny[kind]
                self._provide(
                    key, plain[kind], (given[kind],), beside, faster, spec and {**spec, "way": kind}
                )
            self._drop_oldest(kind, _KEPT_SIZES)

    # --- graphs, now and beside the stream ---

    def _streams(self, kind: str) -> bool:
        """Whether frames run by now that would see a capture as a stall."""
        return self._beside is not None and any(other[0] == kind for other in self._graphs)

    def _provide(
        self,
        key: Key,
        run: TensorCall,
        tensors: tuple[Tensor, ...],
        beside: bool,
        faster: TensorCall | None = None,
        spec: precompile.Spec | None = None,
    ) -> None:
        """The call's first form, captured now or beside the stream; ``faster`` follows, or is the first one.

        Until the first form is there, whoever takes the shape up runs operation by operation.
        """
        known = faster is not None and spec is not None and self._is_compiled(spec)
        if not beside:
            self._add(key, run, tensors)
            if faster is not None:
                self._improve(key, faster, tensors, spec)
            return
        given = tuple(tensor.detach().clone() for tensor in tensors)
        form = faster if known else None
        place = Uncaptured(run, lambda place: self._capture_first(key, place, run, given, form))
        self._graphs[key] = place
        place.ask()
        if faster is not None and not known:
            self._improve(key, faster, tensors, spec)

    def _capture_first(
        self,
        key: Key,
        place: Uncaptured,
        run: TensorCall,
        given: tuple[Tensor, ...],
        faster: TensorCall | None,
    ) -> None:
        """Have the first form captured beside the stream, before anything that only makes faster."""
        assert self._beside is not None
        beside = self._beside

        def make() -> CudaGraph | None:
            return self._capture(faster or run, given) if self._is_wanted(key) else None

        def put_in(graph: CudaGraph | None) -> None:
            if graph is None:
                place.asked = False  # other shapes are wanted by now; it may be asked for again
            else:
                self._put_in(key, graph)

        def failed(error: Exception) -> None:
            if faster is not None:
                self._warn(f"our own kernels rest: {first_line(error)}")
                self._capture_first(key, place, run, given, None)
                return
            place.failed = True
            self._warn(f"{key[0]} cannot be captured: {first_line(error)}; it runs operation by operation")

        beside.submit(make, put_in, failed, first=True)

    def _is_there(self, key: Key) -> bool:
        """Whether there is a graph, or one is being made; what was given up is begun again."""
        graph = self._graphs.get(key)
        if graph is None:
            return False
        self._graphs.move_to_end(key)
        if isinstance(graph, Uncaptured):
            graph.ask()
        return True

    def _ready(self, key: Key) -> bool:
        """Whether nothing is to be waited for: a graph is there, or there will be none."""
        graph = self._graphs.get(key)
        return not isinstance(graph, Uncaptured) or graph.failed

    def _is_wanted(self, key: Key) -> bool:
        """Whether frames run with it, or are to."""
        if key[0] == "times":
            return True
        if key[0] == "unet":
            if self._denoise is not None and 0 != key[1] == self._denoise[1]:
                return True  # of the feature bank in use: it may be seeded anew at any frame
            return key == self._denoise or key in self._denoise_ahead
        return key[1:] in (self._size, self._size_ahead)

    def _is_compiled(self, spec: precompile.Spec) -> bool:
        return self._compiler is not None and self._compiler.known(spec)

    def _put_in(self, key: Key, graph: Captured) -> None:
        with self._putting_in:
            if key in self._graphs:
                self._graphs[key] = graph  # one assignment: the frame loop sees the old or the new one

    def _drop(self, key: Key) -> None:
        with self._putting_in:
            del self._graphs[key]

    def _add(self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...]) -> None:
        """Capture now; where that fails, the call runs operation by operation."""
        try:
            self._graphs[key] = self._capture(run, tensors)
        except RuntimeError as error:
            self._warn(f"{key[0]} cannot be captured: {first_line(error)}; it runs operation by operation")

    def _improve(
        self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...], spec: precompile.Spec | None = None
    ) -> None:
        """Compile and capture a faster form beside the stream; it replaces the first one when it is done.

        With a ``spec`` a process of its own compiles first, so that no frame waits for a compiler.
        """
        assert self._beside is not None
        beside = self._beside
        given = tuple(tensor.detach().clone() for tensor in tensors)

        def failed(error: Exception) -> None:
            self._warn(f"our own kernels rest: {first_line(error)}")

        def make() -> CudaGraph:
            try:
                return self._capture(run, given)
            except RuntimeError as error:  # another thread's work forbade it just then
                if self._model.device.type != "cuda" or isinstance(error, torch.OutOfMemoryError):
                    raise
                log.info("captured once more: %s", first_line(error))
                time.sleep(0.5)
            try:
                return self._capture(run, given)
            except RuntimeError:
                if compiler is not None:
                    compiler.forget()  # should it be what was compiled: the next start trusts none of it
                raise

        def put_in(graph: CudaGraph) -> None:
            self._put_in(key, graph)

        compiler = self._compiler
        if spec is None or compiler is None:
            beside.submit(make, put_in, failed)
            return
        given_spec, asked = spec, compiler
        precompile.submit_compiled(beside, lambda: asked.begin(given_spec, run, given), make, put_in, failed)

    def report_progress(self, tell: Callable[[Progress | None], None]) -> None:
        """Who hears how many kernels are compiled, and None when there are no more."""
        if self._compiler is not None:
            self._compiler.report_progress(tell)

    def _drop_oldest(self, kind: str, kept: int) -> None:
        keys = [key for key in self._graphs if key[0] == kind]
        for key in keys[: max(0, len(keys) - kept)]:
            if kind == "times" or not self._is_wanted(key):
                self._drop(key)

    # --- frames ---

    def run_denoise(self, call: UnetCall) -> Tensor:
        graph = self._graphs.get(self._denoise) if self._denoise is not None else None
        if graph is None:
            return self._eager.run_denoise(call)
        if self._packs(call):
            return graph.run((*flat(call)[1], self._times(call)))
        return graph.run(flat(call)[1])

    def _times(self, call: UnetCall) -> Tensor:
        """The time projections of this call; made again only when they may differ from the last ones."""
        assert self._packed is not None
        names, tensors = time_inputs(call)
        at: Key = (call.timesteps_host, names, *(id(tensor) for tensor in tensors[2:]))
        if not call.timesteps_host or at != self._times_at:
            graph = self._graphs.get(_time_key(call))
            self._times_now = self._packed.times(call) if graph is None else graph.run(tensors)
            self._times_at = at
            self._times_of = tensors  # kept alive, so that an id means the same tensor
        return self._times_now

    def run_encode(self, image: Tensor) -> Tensor:
        return self._picture("encode", image, self._eager.run_encode)

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        return self._picture("encode_rgba", rgba, self._eager.run_encode_rgba)

    def run_decode(self, latent: Tensor) -> Tensor:
        return self._picture("decode", latent, self._eager.run_decode)

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        return self._picture("decode_rgba", latent, self._eager.run_decode_rgba)

    def _picture(self, kind: str, given: Tensor, plain: TensorCall) -> Tensor:
        graph = self._graphs.get((kind, *self._size))
        return plain(given) if graph is None or not graph.takes(given) else graph.run((given,))

    # --- the rest of the interface ---

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """``run`` of another network, such as a ControlNet: captured once it has run a while.

        A ControlNet that has the usual parts runs as the UNet does, packed and on our own kernels. Another
        call may bring a form of its own on kernels of ours, as its ``faster``.
        """
        if not isinstance(run, ControlCall):
            own = getattr(run, "faster", None) if kernels.available()[0] else None
            begin = self._begin({"kind": type(run).__name__})
            return Replayed(run, name, self._capture, self._beside, own, begin)
        why = packed_controlnet.obstacle(run.network)
        if why:
            self._say(f"{name} runs unpacked: it has {why}")
            return Replayed(run, name, self._capture, self._beside)
        packed = PackedControlNet(run.network, PlainOps(self._attend))
        make_fast, ops_of = self._make_fast, dict[Key, UnetOps]()

        def plainly(*tensors: Tensor) -> Residuals:
            return packed.run(run.unet_call(*tensors), tensors[3])

        def faster(*tensors: Tensor) -> Residuals:
            """With buffers for each shape: one is captured while the graph of another runs."""
            assert make_fast is not None
            shapes = _shapes(tensors)
            if shapes not in ops_of:
                ops_of[shapes] = make_fast()
            return packed.run(run.unet_call(*tensors), tensors[3], ops_of[shapes])

        begin = self._begin({"kind": "controlnet", "config": precompile.plain(run.network.config)})
        fastest = None if make_fast is None else faster
        return Replayed(plainly, name, self._capture, self._beside, fastest, begin)

    def _begin(self, about: precompile.Spec) -> Begin | None:
        """How calls of this kind have their kernels compiled, where a process of its own does it."""
        return None if self._compiler is None else precompile.CallKernels(self._compiler, about)

    def weights_changed(self) -> None:
        """Replays read the tensors where they are; the time projections are made again for the next frame."""
        self._times_at = ()

    def settled(self, timeout_s: float = 300.0) -> bool:
        """Wait until nothing better is under way; False if it still is. For builds and benchmarks."""
        return self._beside is None or self._beside.wait(timeout_s)

    def build(self, tell: Callable[[Progress], None]) -> tuple[str, ...]:
        """Wait for all that is compiled and captured, which the next start finds; what was made, in words."""
        began, most = time.monotonic(), 0
        while not self.settled(0.2):
            jobs = 0 if self._beside is None else self._beside.count
            if self._compiler is not None and self._compiler.busy:  # it tells how far it is
                began, most = time.monotonic(), 0
                continue
            most = max(most, jobs)
            done = most - jobs
            left_s = (time.monotonic() - began) / done * jobs if done else None
            tell(Progress("capture", done, most, "CUDA graphs", left_s))
        if most:
            tell(Progress("capture", most, most, "CUDA graphs", 0.0))
        if self._compiler is None:
            return ("nothing to compile: the graphs are captured at each start",)
        return (self._compiler.summary(),)

    def measure(self, tell: Callable[[Progress], None]) -> int:
        """Time kernels on a card whose numbers are not shipped; how many layers that were.

        The next start takes what was found.
        """
        return 0 if self._measured is None else self._measured.measure(self._model.device, tell)

    def close(self) -> None:
        if self._beside is not None:
            self._beside.close()
        if self._compiler is not None:
            self._compiler.close()
        self._graphs.clear()
        self._denoise = None
        self._times_of = ()

    def _obstacle(self, call: UnetCall) -> str:
        """Why this call cannot be a graph, or ''."""
        if call.cross_attention:
            return "attention processors take arguments"
        for name, module in self._attention:
            processor = module.processor
            if getattr(processor, "graph_safe", False):
                continue
            if not type(processor).__module__.startswith("diffusers."):
                return f"{name} has a {type(processor).__name__}"
        return ""

    def _say(self, line: str, level: int = logging.INFO) -> None:
        if line not in self._said:
            self._said.add(line)
            log.log(level, "%s", line)

    def _warn(self, line: str) -> None:
        """Something failed, and a slower form goes on."""
        self._say(line, logging.WARNING)


def _rehearsal(call: UnetCall) -> Callable[[], UnetCall]:
    """The call to make now. Beside the stream nothing may be written where frames are read, unless a
    capture only notes it down: what runs there until then has a feature bank of its own.
    """
    if call.bank is None:
        return lambda: call
    frames_thread, own = threading.get_ident(), [call]
    on_cuda = call.sample.is_cuda

    def now() -> UnetCall:
        in_stream = threading.get_ident() == frames_thread
        if in_stream or (on_cuda and torch.cuda.is_current_stream_capturing()):
            own[:] = [call]
            return call
        if own[0] is call:
            own[:] = [replace(call, bank=call.bank and call.bank.rehearsal())]
        return own[0]

    return now


def _on_tensors(run: Callable[[UnetCall], Tensor], call: UnetCall, names: tuple[str, ...]) -> TensorCall:
    return lambda *given: run(unflat(call, names, given))


def _time_key(call: UnetCall) -> Key:
    names, tensors = time_inputs(call)
    return ("times", names, *_shapes(tensors))


def _shapes(tensors: tuple[Tensor, ...]) -> Key:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
