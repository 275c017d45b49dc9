"""The model run by TensorRT engines; whatever has none yet, or cannot have one, runs as without TensorRT.

The first frames run by ``compile`` (CUDA) or ``eager``. Engines come from the cache, or are made beside the
stream and take over at a frame edge. A LoRA's fader writes the model's own tensors: until it rests the
UNet runs without its engine, then the engine's weights are refitted beside the stream. An engine that fails
is dropped with one line, and the frame is run again without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sdbridge import paths
from sdbridge.engine.accelerate.attention import Attend, ChosenAttention
from sdbridge.engine.accelerate.beside import BesideTheStream
from sdbridge.engine.accelerate.replay import TensorCall
from sdbridge.engine.accelerate.tensorrt.export import WeightName
from sdbridge.engine.accelerate.tensorrt.obtain import Obtained, obtain_engine
from sdbridge.engine.accelerate.tensorrt.order import Order, ranges_for
from sdbridge.engine.accelerate.tensorrt.runtime import BuiltEngine, current_cuda_stream
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.pictures import from_rgba, to_rgba
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError

log = logging.getLogger(__name__)

#: A LoRA's fader has to rest so long before the engine gets its weights.
REST_S = 0.5
#: What a binding of C++ code raises when something is wrong with a call of it.
_FAULTS = (SdbridgeError, RuntimeError, ValueError, TypeError, KeyError, OSError)


#: An engine, its weights' names, the number of the write it was made at, and whether it was cached.
_Made = tuple[BuiltEngine, tuple[WeightName, ...], int, bool]


@dataclass
class _Part:
    """One engine, wanted or there. ``fresh_at`` is the number of the write whose weights it holds."""

    order: Order
    engine: BuiltEngine | None = None
    names: tuple[WeightName, ...] = ()
    fresh_at: int = -1
    failed: bool = False
    from_cache: bool = False


class TensorRT:
    """TensorRT engines by part, over another acceleration that always can."""

    name = "tensorrt"

    def __init__(
        self, model: LoadedModel, library: ModuleType, without: Any, folder: Path | None = None
    ) -> None:
        """``without`` is the acceleration that runs what no engine runs; it is closed with this one."""
        self._model = model
        self._library = library
        self._without = without
        self._folder = folder or paths.cache_dir() / "tensorrt"
        self._parts: dict[str, _Part] = {}
        self._unet: _Part | None = None  # that serve the shapes prepared last
        self._encode: _Part | None = None
        self._decode: _Part | None = None
        self._writes = 0
        self._refit_due = False
        self._closing = threading.Event()
        self._beside = BesideTheStream(model.device)
        self._progress: Callable[[Progress | None], None] = lambda progress: None
        self._said: set[str] = set()

    def report_progress(self, tell: Callable[[Progress | None], None]) -> None:
        """Who is told how far building is, and None when nothing is built any more."""
        self._progress = tell
        compiling = getattr(self._without, "report_progress", None)
        if compiling is not None:  # what runs meanwhile has kernels to compile
            compiling(tell)

    # --- getting ready ---

    def prepare_denoise(self, call: UnetCall) -> None:
        self._without.prepare_denoise(call)
        self._unet = None
        why = _obstacle(call, self._model.unet)
        if why:
            self._say(f"the UNet runs without TensorRT: {why}")
            return
        rows, _, height, width = call.sample.shape
        residuals = _residuals(call)
        name = "unet with ControlNet" if residuals else "unet"
        part = self._parts.get(name)
        if part is None:
            unet = self._model.unet
            order = Order(
                "unet",
                type(unet).__name__,
                dict(unet.config),
                ranges_for(rows, height, width, tokens=True),
                residuals=tuple(tuple(r.shape[1:]) for r in residuals),  # type: ignore[misc]
                library=self._library.__name__,
            )
            part = self._want(name, order, unet)
        if part.order.takes(rows, height, width, call.encoder_hidden_states.shape[1]):
            self._unet = part
        else:
            self._say(f"{rows} rows of {width}x{height} latents are outside what the UNet's engine serves")

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        self._without.prepare_pictures(frames, height, width)
        model = self._model
        size = (frames, height // 8, width // 8)
        self._encode = self._decode = None
        if model.pixels_per_latent != 8:
            self._say(f"a VAE of {model.pixels_per_latent} pixels a latent runs without TensorRT")
            return
        for name in ("encode", "decode"):
            part = self._parts.get(name)
            if part is None:
                order = Order(
                    name,
                    type(model.vae).__name__,
                    dict(model.vae.config),
                    ranges_for(*size, tokens=False),
                    latent=(model.latent_scale, model.latent_shift),
                    library=self._library.__name__,
                )
                part = self._want(name, order, model.vae)
            if part.order.takes(*size):
                setattr(self, f"_{name}", part)

    @property
    def foresees(self) -> bool:
        return bool(self._without.foresees)

    def foresee_denoise(self, *calls: UnetCall) -> bool:
        """What runs without an engine is what has to be ready."""
        return bool(self._without.foresee_denoise(*calls))

    def foresee_pictures(self, frames: int, height: int, width: int) -> bool:
        return bool(self._without.foresee_pictures(frames, height, width))

    def _want(self, name: str, order: Order, module: Any) -> _Part:
        """Have the engine obtained beside the stream; frames run without it until it is there."""
        part = self._parts[name] = _Part(order)

        def obtain() -> _Made | SdbridgeError:
            try:
                return make()
            except SdbridgeError as error:  # foreseen: a line, no trace
                return error

        def make() -> _Made:
            at = self._writes
            weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            found = self._obtain(order, weights)
            try:
                engine = self._engine_of(found.blob)
            except _FAULTS as error:
                if not found.cached:
                    raise
                log.warning("the built %s is refused (%s); it is built anew", name, _line(error))
                found = self._obtain(order, weights, anew=True)
                engine = self._engine_of(found.blob)
            return engine, found.names, at, found.cached

        def put_in(made: _Made | SdbridgeError) -> None:
            if isinstance(made, SdbridgeError):
                failed(made)
                return
            engine, part.names, part.fresh_at, part.from_cache = made
            part.engine = engine  # last: from here on frames use it
            log.info("TensorRT runs the %s%s", name, ", from the cache" if part.from_cache else "")
            self._progress(None)
            if order.part == "unet" and part.fresh_at != self._writes:
                self._refit_when_at_rest()

        def failed(error: Exception) -> None:
            part.failed = True
            self._progress(None)
            if not self._closing.is_set():
                log.warning("the %s runs without TensorRT: %s", name, _line(error))

        self._beside.submit(obtain, put_in, failed)
        return part

    def _obtain(self, order: Order, weights: Mapping[str, Tensor], *, anew: bool = False) -> Obtained:
        version, device = str(self._library.__version__), self._model.device
        closing = self._closing.is_set
        return obtain_engine(
            order, weights, self._folder, version, device, self._progress, closing, anew=anew
        )

    def _engine_of(self, blob: bytes) -> BuiltEngine:
        device = self._model.device
        stream = current_cuda_stream if device.type == "cuda" else _no_stream
        return BuiltEngine(self._library, blob, device, stream)

    # --- frames ---

    def run_denoise(self, call: UnetCall) -> Tensor:
        part = self._unet
        if part is not None and part.engine is not None and part.fresh_at == self._writes:
            found = self._try(part, _tensors(call), "noise")
            if found is not None:
                return found
        return self._without.run_denoise(call)

    def run_encode(self, image: Tensor) -> Tensor:
        part = self._encode
        if part is not None and part.engine is not None:
            found = self._try(part, {"image": image}, "latent")
            if found is not None:
                return found
        return self._without.run_encode(image)

    def run_decode(self, latent: Tensor) -> Tensor:
        part = self._decode
        if part is not None and part.engine is not None:
            found = self._try(part, {"latent": latent}, "image")
            if found is not None:
                return found
        return self._without.run_decode(latent)

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        return self.run_encode(from_rgba(rgba))

    def room_for_pixels(self, frames: int, height: int, width: int) -> Tensor | None:
        """They are made numbers first, wherever they lie."""
        return None

    def room_for_sample(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """It is read wherever it lies."""
        return None

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        return to_rgba(self.run_decode(latent).float().add(1).mul(0.5))

    def _try(self, part: _Part, tensors: Mapping[str, Tensor], output: str) -> Tensor | None:
        """The engine's answer; None once it has failed, and from then on."""
        assert part.engine is not None
        try:
            return part.engine.run(tensors)[output]
        except _FAULTS as error:
            part.engine, part.failed = None, True
            log.warning("the %s goes on without TensorRT: %s", part.order.part, _line(error))
            return None

    # --- weights ---

    def weights_changed(self) -> None:
        self._writes += 1
        self._without.weights_changed()
        if any(part.engine is not None for part in self._unets()):
            self._refit_when_at_rest()

    def _unets(self) -> list[_Part]:
        return [part for part in self._parts.values() if part.order.part == "unet"]

    def _refit_when_at_rest(self) -> None:
        if self._refit_due:
            return
        self._refit_due = True
        self._beside.submit(self._refit, lambda done: None, self._refit_failed)

    def _refit(self) -> None:
        """Wait until no fader moves, then write the model's tensors into the UNet's engines.

        Nobody runs these meanwhile: their ``fresh_at`` is behind until the very end.
        """
        while True:
            at = self._writes
            if self._closing.wait(REST_S):
                return
            if at != self._writes:
                continue
            parameters = {f"unet.{name}": value for name, value in self._model.unet.named_parameters()}
            for part in self._unets():
                if part.engine is not None and part.fresh_at != at:
                    part.engine.refit(part.names, parameters)
            self._refit_due = False
            if at == self._writes:  # else the tensors may have been half of each
                for part in self._unets():
                    part.fresh_at = at
                return
            self._refit_due = True

    def _refit_failed(self, error: Exception) -> None:
        self._refit_due = False
        for part in self._unets():
            part.engine, part.failed = None, True
        log.warning("the unet goes on without TensorRT, which refused other weights: %s", _line(error))

    # --- the rest of the interface ---

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """Networks beside the UNet run as without TensorRT."""
        wrapped: TensorCall = self._without.wrap(run, name)
        return wrapped

    def settled(self, timeout_s: float = 3600.0) -> bool:
        """Wait until no engine is being made or refitted; False if one still is."""
        below = getattr(self._without, "settled", None)
        return self._beside.wait(timeout_s) and (below is None or bool(below(timeout_s)))

    def build(self, progress: Callable[[Progress], None]) -> tuple[str, ...]:
        """Make every engine wanted so far, and say what became of each. For ``sdbridge build``."""
        self._progress = lambda event: progress(event) if event is not None else None
        self._beside.wait(24 * 3600.0)
        lines = []
        for name, part in self._parts.items():
            state = "could not be built, compile or eager runs it" if part.failed else "built"
            lines.append(f"TensorRT {name}: {'was built before' if part.from_cache else state}")
        below = getattr(self._without, "build", None)
        if below is not None:  # what no engine runs, ControlNets among it, has kernels to compile
            lines += below(progress)
        return tuple(lines)

    def close(self) -> None:
        self._closing.set()
        self._beside.close()
        for part in self._parts.values():
            if part.engine is not None:
                part.engine.close()
                part.engine = None
        self._unet = self._encode = self._decode = None
        self._without.close()

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.info("%s", line)


def _obstacle(call: UnetCall, unet: Any) -> str:
    """Why this call is not what the exported graph computes, or ''."""
    if call.cross_attention or call.intrablock_residuals is not None or call.timestep_cond is not None:
        return "it has inputs that the exported graph has not"
    if set(call.added_cond) - {"text_embeds", "time_ids"}:
        return "it has conditions that the exported graph has not"
    for name, module in unet.named_modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, ChosenAttention):  # plain attention by other means; an engine has its own
            processor = processor.former
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            return f"{name} has a {type(processor).__name__}"
    return ""


def _residuals(call: UnetCall) -> tuple[Tensor, ...]:
    if call.down_residuals is None or call.mid_residual is None:
        return ()
    return (*call.down_residuals, call.mid_residual)


def _tensors(call: UnetCall) -> dict[str, Tensor]:
    """The call's tensors by the names that ``graphs.unet_graph`` gives them."""
    return {
        "sample": call.sample,
        "timesteps": call.timesteps,
        "tokens": call.encoder_hidden_states,
        **call.added_cond,
        **{f"residual_{index}": tensor for index, tensor in enumerate(_residuals(call))},
    }


def _no_stream() -> int:
    """A device without streams, as the stand-in's."""
    return 0


def _line(error: Exception) -> str:
    text = error.what if isinstance(error, SdbridgeError) else " ".join(str(error).split())
    return text[:300] or type(error).__name__


def build_tensorrt(model: LoadedModel, attend: Attend | None = None) -> Any:
    """The acceleration for ``model``, or what runs in its stead where TensorRT cannot be used.

    ``attend`` is the attention of what runs without an engine.
    """
    from sdbridge.engine.accelerate import build_acceleration
    from sdbridge.engine.accelerate.tensorrt.library import find_tensorrt

    without = build_acceleration("compile" if model.device.type == "cuda" else "eager", model, attend)
    library, _why = find_tensorrt(model.device.type)
    return without if library is None else TensorRT(model, library, without)
