"""The model's parts as graphs with nothing but tensors going in and out, as ONNX wants them.

Everything that an artist moves live is an input: timesteps, prompt tokens, guidance rows, ControlNet
scales and residuals. Weights that a LoRA changes are refitted (``runtime.py``), so that no slider ever
asks for another build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Which dimensions of an input may change: its index -> name of the range in ``ShapeRange``.
Dynamic = Mapping[int, str]


@dataclass(frozen=True)
class GraphInput:
    """One tensor that goes in: an example of it and its dimensions that may change."""

    name: str
    example: Tensor
    dynamic: Dynamic


@dataclass(frozen=True)
class Graph:
    """A part ready for export: ``module(*examples)`` gives the tensors named in ``outputs``."""

    name: str
    module: nn.Module
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]


#: SDXL's embedding of sizes and of the whole text.
_ADDED = ("text_embeds", "time_ids")


def _added(given: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    return {name: given[name] for name in _ADDED if name in given} or None


class _Unet(nn.Module):
    """UNet with ControlNet residuals as inputs; without a ControlNet they are simply absent."""

    def __init__(self, unet: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.unet = unet
        self._names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self._names, tensors, strict=True))
        residuals = [given[name] for name in self._names if name.startswith("residual_")]
        return self.unet(
            given["sample"],
            given["timesteps"],
            encoder_hidden_states=given["tokens"],
            added_cond_kwargs=_added(given),
            down_block_additional_residuals=tuple(residuals[:-1]) if residuals else None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            return_dict=False,
        )[0]


class _Controlnet(nn.Module):
    """ControlNet whose scale is an input, one number per row, so that start, end and fader are live."""

    def __init__(self, controlnet: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.controlnet = controlnet
        self._names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._names, tensors, strict=True))
        down, mid = self.controlnet(
            given["sample"],
            given["timesteps"],
            encoder_hidden_states=given["tokens"],
            controlnet_cond=given["control"],
            added_cond_kwargs=_added(given),
            return_dict=False,
        )
        factor = given["scale"].view(-1, 1, 1, 1)
        return (*(residual * factor for residual in down), mid * factor)


class _Encode(nn.Module):
    """Picture -1..1 to clean latents, the mean for a full VAE, scaled as the UNet wants them."""

    def __init__(self, vae: nn.Module, tiny: bool, scale: float, shift: float) -> None:
        super().__init__()
        self.vae: Any = vae
        self._tiny, self._scale, self._shift = tiny, scale, shift

    def forward(self, image: Tensor) -> Tensor:
        latent = self.vae.encode(image, return_dict=False)[0]
        return ((latent if self._tiny else latent.mode()) - self._shift) * self._scale


class _Decode(nn.Module):
    def __init__(self, vae: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.vae: Any = vae
        self._scale, self._shift = scale, shift

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self._scale + self._shift, return_dict=False)[0]


def unet_graph(
    unet: Any,
    controlnet: Any = None,
    height: int = 64,
    width: int = 64,
    *,
    residuals: tuple[tuple[int, int, int], ...] = (),
) -> Graph:
    """The UNet's graph. With a ControlNet its residuals are inputs, the last one the middle's.

    They are shaped by a run of ``controlnet``, or given as shapes ``[C, h, w]`` in ``residuals``.
    ``height`` and ``width`` are latent pixels of the example; they and the rows stay free.
    """
    examples = _unet_examples(unet, height, width)
    inputs = [
        GraphInput("sample", examples["sample"], {0: "rows", 2: "height", 3: "width"}),
        GraphInput("timesteps", examples["timesteps"], {0: "rows"}),
        GraphInput("tokens", examples["tokens"], {0: "rows", 1: "tokens"}),
    ]
    inputs += [GraphInput(name, examples[name], {0: "rows"}) for name in _ADDED if name in examples]
    added: tuple[Tensor, ...] = tuple(examples["sample"].new_zeros(2, *shape) for shape in residuals)
    if controlnet is not None:
        with torch.no_grad():
            given = _control_inputs(examples)
            names = tuple(item.name for item in given)
            added = _Controlnet(controlnet, names)(*(item.example for item in given))
    inputs += [
        GraphInput(f"residual_{index}", residual, {0: "rows", 2: "height", 3: "width"})
        for index, residual in enumerate(added)
    ]
    names = tuple(item.name for item in inputs)
    return Graph("unet", _Unet(unet, names).eval(), tuple(inputs), ("noise",))


def controlnet_graph(controlnet: Any, unet: Any, height: int = 64, width: int = 64) -> Graph:
    """A ControlNet's graph: control image 0..1 and a scale per row go in, scaled residuals come out."""
    inputs = _control_inputs(_unet_examples(unet, height, width))
    module = _Controlnet(controlnet, tuple(item.name for item in inputs)).eval()
    with torch.no_grad():
        count = len(module(*(item.example for item in inputs)))
    return Graph("controlnet", module, inputs, tuple(f"residual_{index}" for index in range(count)))


def vae_graphs(model: Any, height: int = 512, width: int = 512) -> tuple[Graph, Graph]:
    """Encoder and decoder of a ``LoadedModel``; ``height`` and ``width`` are picture pixels."""
    return autoencoder_graphs(
        model.vae, model.vae_is_tiny, model.latent_scale, model.latent_shift, height, width
    )


def autoencoder_graphs(
    vae: Any, tiny: bool, scale: float, shift: float, height: int = 512, width: int = 512
) -> tuple[Graph, Graph]:
    """Encoder and decoder of a VAE: its latents are scaled and shifted as the UNet wants them."""
    pictures: Dynamic = {0: "rows", 2: "height", 3: "width"}
    first = next(vae.parameters())
    image = torch.zeros(2, 3, height, width, dtype=first.dtype, device=first.device)
    encode = _Encode(vae, tiny, scale, shift).eval()
    with torch.no_grad():
        latent = encode(image)
    decode = _Decode(vae, scale, shift).eval()
    return (
        Graph("encode", encode, (GraphInput("image", image, pictures),), ("latent",)),
        Graph("decode", decode, (GraphInput("latent", latent, pictures),), ("image",)),
    )


def _unet_examples(unet: Any, height: int, width: int) -> dict[str, Tensor]:
    """Two rows of everything a UNet takes: one would be baked in as a constant by the exporter."""
    first = next(unet.parameters())
    make = {"dtype": first.dtype, "device": first.device}
    config = unet.config
    examples = {
        "sample": torch.zeros(2, config.in_channels, height, width, **make),
        "timesteps": torch.tensor([999, 499], device=first.device),
        "tokens": torch.zeros(2, 77, _width(config.cross_attention_dim), **make),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        examples["text_embeds"] = torch.zeros(2, pooled, **make)
        examples["time_ids"] = torch.zeros(2, 6, **make)
    return examples


def _control_inputs(examples: Mapping[str, Tensor]) -> tuple[GraphInput, ...]:
    """What a ControlNet beside the UNet of these examples takes."""
    sample = examples["sample"]
    pictures: Dynamic = {0: "rows", 2: "height", 3: "width"}
    control = sample.new_zeros(sample.shape[0], 3, sample.shape[2] * 8, sample.shape[3] * 8)
    return (
        GraphInput("sample", sample[:, :4], pictures),
        GraphInput("timesteps", examples["timesteps"], {0: "rows"}),
        GraphInput("tokens", examples["tokens"], {0: "rows", 1: "tokens"}),
        GraphInput("control", control, pictures),
        GraphInput("scale", sample.new_ones(sample.shape[0]), {0: "rows"}),
        *(GraphInput(name, examples[name], {0: "rows"}) for name in _ADDED if name in examples),
    )


def _width(cross_attention_dim: int | tuple[int, ...]) -> int:
    return cross_attention_dim if isinstance(cross_attention_dim, int) else cross_attention_dim[0]
