"""The model replayed from CUDA graphs, on our own kernels where Triton is: no launch cost, fewer kernels.

Nothing is compiled before the first frame. A shape that is new is captured at once from PyTorch's
own operations (a fraction of a second); the kernels for it are compiled and captured beside the running
graph, and take over at a frame edge. Weights are read where they lie at every replay, so a LoRA fader
needs nothing from us. What a graph cannot hold (processors of our own on the attention layers) runs
operation by operation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sdbridge.engine.accelerate import kernels, packed_controlnet, precompile
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.flat_calls import at_times, flat, time_inputs, unflat
from sdbridge.engine.accelerate.packed_controlnet import PackedControlNet, Residuals
from sdbridge.engine.accelerate.packed_unet import PackedUnet, obstacle
from sdbridge.engine.accelerate.replay import (
    Captured,
    CudaGraph,
    Replayed,
    TensorCall,
    Uncaptured,
    first_line,
)
from sdbridge.engine.accelerate.unet_ops import PlainOps, UnetOps
from sdbridge.engine.image.control_networks import ControlCall
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.seams import UnetCall

log = logging.getLogger(__name__)

_KEPT_GRAPHS = 12
_KEPT_SIZES = 3
Key = tuple[object, ...]
Capture = Callable[[TensorCall, tuple[Tensor, ...]], CudaGraph]


class Compiled:
    """Graphs by shape, newest kept. Falls back to ``Eager`` call by call, saying why once."""

    name = "compile"

    def __init__(self, model: LoadedModel, capture: Capture = CudaGraph) -> None:
        self._model = model
        self._eager = Eager(model)
        self._capture = capture
        self._said: set[str] = set()
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        self._denoise: Key | None = None
        self._size = (0, 0, 0)
        self._times_at: Key = ()  # what the time projections below were made of
        self._times_of: tuple[Tensor, ...] = ()
        self._times_now = torch.zeros(0)
        self._tiny: dict[str, TensorCall] | None = None
        self._attention = [
            (name, module) for name, module in model.unet.named_modules() if hasattr(module, "processor")
        ]
        why = obstacle(model.unet)
        self._packed = None if why else PackedUnet(model.unet, PlainOps())
        if why:
            self._say(f"the UNet runs unpacked: it has {why}")
        self._make_fast: Callable[[], UnetOps] | None = None  # each graph has buffers of its own
        self._beside: BesideTheStream | None = None
        able, why = kernels.available()
        if able and not (model.unet.dtype == torch.float16 or model.unet.dtype == torch.bfloat16):
            able, why = False, f"the model is in {model.unet.dtype}"
        if model.device.type == "cuda":
            self._beside = BesideTheStream(model.device)
        if able and self._packed is not None:
            from sdbridge.engine.accelerate.kernels.unet import FusedOps

            precompile.use_own_cache()
            self._make_fast = lambda: FusedOps(model.device)
            self._tiny = self._tiny_vae()
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

    def prepare_denoise(self, call: UnetCall) -> None:
        bank = call.bank
        if bank is not None and bank.seeding:  # one frame, which the feature bank makes its buffers from
            self._denoise = None
            return
        why = self._obstacle(call)
        if why:
            self._denoise = None
            self._say(f"the UNet runs operation by operation: {why}")
            return
        names, tensors = flat(call)
        packs = self._packs(call)
        generation = 0 if bank is None else bank.generation
        key: Key = ("unet", generation, names, packs, *_shapes(tensors))
        self._denoise = key
        for other in [other for other in self._graphs if other[0] == "unet"]:
            if other[1] not in (0, generation) and bank is not None:
                del self._graphs[other]  # its feature bank is no more
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return
        if packs:
            self._prepare_packed(key, call, names, tensors)
        else:  # with a feature bank never beside: the modules write into it, trying too
            provide = self._provide if bank is None else self._add
            provide(key, lambda *given: self._eager.run_denoise(unflat(call, names, given)), tensors)
        self._drop_oldest("unet", _KEPT_GRAPHS)

    def _packs(self, call: UnetCall) -> bool:
        return self._packed is not None and not PackedUnet.fits(call)

    def _prepare_packed(
        self, key: Key, call: UnetCall, names: tuple[str, ...], tensors: tuple[Tensor, ...]
    ) -> None:
        """The time projections have a graph of their own: they change with the steps, not with the frame."""
        packed = self._packed
        assert packed is not None
        time_names, time_tensors = time_inputs(call)
        time_key: Key = ("times", time_names, *_shapes(time_tensors))
        if time_key not in self._graphs:
            self._provide(
                time_key, lambda *given: packed.times(at_times(call, time_names, given)), time_tensors
            )
            self._drop_oldest("times", _KEPT_GRAPHS)
        self._times_at = ()
        with torch.inference_mode():
            both = (*tensors, packed.times(call))

        def plainly(*given: Tensor) -> Tensor:
            return packed.run(unflat(call, names, given[:-1]), times=given[-1])

        if self._make_fast is None or call.bank is None:
            self._provide(key, plainly, both)
        else:
            self._graphs[key] = Uncaptured(plainly)
        if self._make_fast is not None:
            fast, rehearse = self._make_fast(), _rehearsal(call)

            def faster(*given: Tensor) -> Tensor:
                return packed.run(unflat(rehearse(), names, given[:-1]), fast, given[-1])

            spec = None if call.bank is not None else precompile.unet_spec(self._model.unet, call)
            self._improve(key, faster, both, spec)

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        model, per = self._model, self._model.pixels_per_latent
        self._size = (frames, height, width)
        if ("encode", *self._size) in self._graphs:
            return
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
        spec = precompile.pictures_spec(model.vae, model.vae_dtype, *self._size) if self._tiny else None
        for kind in ("encode_rgba", "decode_rgba", "encode", "decode"):  # what most frames take comes first
            key: Key = (kind, *self._size)
            self._provide(key, plain[kind], (given[kind],))
            if self._tiny is not None:
                self._improve(key, self._tiny[kind], (given[kind],), spec)
            self._drop_oldest(kind, _KEPT_SIZES)

    def _provide(self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...]) -> None:
        """The call's first form: captured now where nothing streams yet, else beside the stream.

        A running stream would see the capture as a stall; so it runs operation by operation until then.
        """
        streaming = any(other[0] == key[0] for other in self._graphs)
        if self._beside is None or not streaming:
            self._add(key, run, tensors)
            return
        self._graphs[key] = Uncaptured(run)
        self._improve(key, run, tensors)

    def _add(self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...]) -> None:
        """Capture now; where that fails, the call runs operation by operation."""
        try:
            self._graphs[key] = self._capture(run, tensors)
        except RuntimeError as error:
            self._say(f"{key[0]} cannot be captured: {first_line(error)}; it runs operation by operation")

    def _improve(
        self, key: Key, run: TensorCall, tensors: tuple[Tensor, ...], spec: precompile.Spec | None = None
    ) -> None:
        """Compile and capture a faster form beside the stream; it replaces the first one when it is done.

        With a ``spec`` a process of its own compiles first, so that no frame waits for a compiler.
        """
        assert self._beside is not None
        beside = self._beside
        given = tuple(tensor.detach().clone() for tensor in tensors)

        def put_in(graph: CudaGraph) -> None:
            if key in self._graphs:
                self._graphs[key] = graph  # one assignment: the frame loop sees the old or the new one

        def failed(error: Exception) -> None:
            self._say(f"our own kernels rest: {first_line(error)}")

        def make() -> CudaGraph:
            if spec is not None and on_cuda:
                precompile.compile_in_child(spec, self._identity(), cancelled=beside.is_closing)
            try:
                return self._capture(run, given)
            except RuntimeError as error:  # another thread's work forbade it just then, or a cache is damaged
                if not on_cuda:
                    raise
                log.info("captured once more: %s", first_line(error))
                precompile.forget_compiled()
                time.sleep(0.5)
                return self._capture(run, given)

        on_cuda = self._model.device.type == "cuda"
        beside.submit(make, put_in, failed)

    def _identity(self) -> dict[str, str]:
        from sdbridge.engine.accelerate.kernels.tuning import identity_of

        return identity_of(self._model.device)

    def _drop_oldest(self, kind: str, kept: int) -> None:
        keys = [key for key in self._graphs if key[0] == kind]
        for key in keys[: max(0, len(keys) - kept)]:
            del self._graphs[key]

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
            key: Key = ("times", names, *_shapes(tensors))
            graph = self._graphs.get(key)
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
            return Replayed(run, name, self._capture, self._beside, own)
        why = packed_controlnet.obstacle(run.network)
        if why:
            self._say(f"{name} runs unpacked: it has {why}")
            return Replayed(run, name, self._capture, self._beside)
        packed, fast = PackedControlNet(run.network), None if self._make_fast is None else self._make_fast()

        def plainly(*tensors: Tensor) -> Residuals:
            return packed.run(run.unet_call(*tensors), tensors[3])

        def faster(*tensors: Tensor) -> Residuals:
            return packed.run(run.unet_call(*tensors), tensors[3], fast)

        return Replayed(plainly, name, self._capture, self._beside, None if fast is None else faster)

    def weights_changed(self) -> None:
        """Replays read the tensors where they are; the time projections are made again for the next frame."""
        self._times_at = ()

    def settled(self, timeout_s: float = 300.0) -> bool:
        """Wait until nothing better is under way; False if it still is. For builds and benchmarks."""
        return self._beside is None or self._beside.wait(timeout_s)

    def close(self) -> None:
        if self._beside is not None:
            self._beside.close()
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

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.info("%s", line)


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


def _shapes(tensors: tuple[Tensor, ...]) -> Key:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
