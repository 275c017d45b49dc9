"""The model compiled and replayed from CUDA graphs: no launch cost, fewer kernels. CUDA only.

The shapes of the warm-up are compiled by Inductor (about a minute, before streaming). A shape that
appears later, such as another number of steps, is captured from the plain modules instead, which takes
a fraction of a second and never a compilation. Weights are read where they lie at every replay, so a LoRA
fader needs nothing from us. What a graph cannot hold (processors of our own on the attention layers)
runs operation by operation.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate.eager import Eager
from sdbridge.engine.accelerate.replay import Replayed, TensorCall
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.seams import UnetCall

log = logging.getLogger(__name__)

_KEPT_GRAPHS = 12
_WARM_RUNS = 3
Key = tuple[object, ...]


class Compiled:
    """Graphs by shape, newest kept. Falls back to ``Eager`` call by call, saying why once."""

    name = "compile"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._eager = Eager(model)
        self._pool: Any = None
        self._denoise: OrderedDict[Key, _Graph] = OrderedDict()
        self._pictures: OrderedDict[Key, tuple[_Graph, _Graph]] = OrderedDict()
        self._graph: _Graph | None = None
        self._picture: tuple[_Graph, _Graph] | None = None
        self._picture_shape: tuple[int, ...] = ()
        self._compiling = True  # until the first shapes are ready
        self._attention = [
            (name, module) for name, module in model.unet.named_modules() if hasattr(module, "processor")
        ]
        self._said: set[str] = set()

    def prepare_denoise(self, call: UnetCall) -> None:
        why = self._obstacle(call)
        if why:
            self._graph = None
            self._compiling = False  # never later, between two frames
            if why not in self._said:
                self._said.add(why)
                log.info("the UNet runs uncompiled: %s", why)
            return
        names, tensors = _flat(call)
        key: Key = (names, *((tuple(tensor.shape), tensor.dtype) for tensor in tensors))
        if key not in self._denoise:
            template = call

            def run(*given: Tensor) -> Tensor:
                return self._eager.run_denoise(_unflat(template, names, given))

            self._denoise[key] = self._capture(run, tensors, "UNet")
            while len(self._denoise) > _KEPT_GRAPHS:
                self._denoise.popitem(last=False)
        self._denoise.move_to_end(key)
        self._graph = self._denoise[key]
        self._compiling = False

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        model, per = self._model, self._model.pixels_per_latent
        key: Key = (frames, height, width)
        if key not in self._pictures:
            image = torch.zeros(frames, 3, height, width, device=model.device, dtype=torch.float32)
            latent = torch.zeros(
                frames,
                model.latent_channels,
                height // per,
                width // per,
                device=model.device,
                dtype=torch.float32,
            )
            self._pictures[key] = (
                self._capture(self._eager.run_encode, (image,), "encoder"),
                self._capture(self._eager.run_decode, (latent,), "decoder"),
            )
            while len(self._pictures) > 3:
                self._pictures.popitem(last=False)
        self._pictures.move_to_end(key)
        self._picture = self._pictures[key]
        self._picture_shape = (frames, 3, height, width)

    def run_denoise(self, call: UnetCall) -> Tensor:
        if self._graph is None:
            return self._eager.run_denoise(call)
        return self._graph.run(_flat(call)[1])

    def run_encode(self, image: Tensor) -> Tensor:
        if self._picture is None or tuple(image.shape) != self._picture_shape:
            return self._eager.run_encode(image)
        return self._picture[0].run((image,))

    def run_decode(self, latent: Tensor) -> Tensor:
        if self._picture is None or latent.shape[0] != self._picture_shape[0]:
            return self._eager.run_decode(latent)
        return self._picture[1].run((latent,))

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """``run`` of another network, such as a ControlNet: captured once it has run a while."""
        return Replayed(run, name)

    def weights_changed(self) -> None:
        """Replays read the tensors where they are."""

    def close(self) -> None:
        self._graph = self._picture = None
        self._denoise.clear()
        self._pictures.clear()
        self._pool = None

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

    def _capture(self, run: Callable[..., Tensor], tensors: tuple[Tensor, ...], what: str) -> _Graph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if self._compiling:
            try:
                return _Graph(torch.compile(run, dynamic=False), tensors, self._pool)
            except (RuntimeError, ImportError, OSError) as error:  # Inductor wants Triton and a C compiler
                text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                log.warning("the %s cannot be compiled (%s); it runs from a plain CUDA graph", what, text)
                torch.compiler.reset()
        return _Graph(run, tensors, self._pool)


class _Graph:
    """One captured call with its input and output tensors. A replay overwrites the output."""

    def __init__(self, run: Callable[..., Tensor], tensors: tuple[Tensor, ...], pool: Any) -> None:
        self._inputs = tuple(tensor.detach().clone() for tensor in tensors)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside), torch.inference_mode():
            for _ in range(_WARM_RUNS):
                run(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph, pool=pool):
            self._output = run(*self._inputs)

    def run(self, tensors: tuple[Tensor, ...]) -> Tensor:
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output


def _flat(call: UnetCall) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """The call's tensors in a fixed order, and what each one is."""
    found: list[tuple[str, Tensor]] = [
        ("sample", call.sample),
        ("timesteps", call.timesteps),
        ("encoder_hidden_states", call.encoder_hidden_states),
    ]
    if call.timestep_cond is not None:
        found.append(("timestep_cond", call.timestep_cond))
    if call.mid_residual is not None:
        found.append(("mid_residual", call.mid_residual))
    found += [(f"added.{name}", value) for name, value in sorted(call.added_cond.items())]
    found += [(f"down.{i}", value) for i, value in enumerate(call.down_residuals or ())]
    found += [(f"intra.{i}", value) for i, value in enumerate(call.intrablock_residuals or ())]
    return tuple(name for name, _ in found), tuple(tensor for _, tensor in found)


def _unflat(call: UnetCall, names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> UnetCall:
    """``call`` with other tensors, in the order of ``_flat``."""
    given = dict(zip(names, tensors, strict=True))

    def listed(prefix: str) -> tuple[Tensor, ...] | None:
        return tuple(given[name] for name in names if name.startswith(prefix)) or None

    return replace(
        call,
        sample=given["sample"],
        timesteps=given["timesteps"],
        encoder_hidden_states=given["encoder_hidden_states"],
        timestep_cond=given.get("timestep_cond"),
        mid_residual=given.get("mid_residual"),
        added_cond={name.removeprefix("added."): given[name] for name in names if name.startswith("added.")},
        down_residuals=listed("down."),
        intrablock_residuals=listed("intra."),
    )
