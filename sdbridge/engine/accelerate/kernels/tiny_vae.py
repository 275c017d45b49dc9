"""The tiny VAE (diffusers' AutoencoderTiny, the TAESD architecture) run by our own convolution kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdbridge.engine.accelerate.kernels import conv
from sdbridge.engine.accelerate.kernels.choice import chosen

#: The channels every layer inside must have: a multiple that the tensor cores take, and that was tried.
CHANNELS = (32, 64)


def supports(vae: Any) -> tuple[bool, str]:
    """Whether the kernels compute this module exactly, and why not."""
    config = getattr(vae, "config", None)
    if type(vae).__name__ != "AutoencoderTiny" or config is None:
        return False, f"{type(vae).__name__} is no AutoencoderTiny"
    widths = {*config.encoder_block_out_channels, *config.decoder_block_out_channels}
    if len(widths) != 1 or not widths <= set(CHANNELS):
        return False, f"blocks of {sorted(widths)} channels; the kernels know 32 or 64 throughout"
    if config.in_channels != 3 or config.out_channels != 3 or config.latent_channels > 16:
        return False, "pictures must have 3 channels and latents at most 16"
    if config.act_fn != "relu" or config.get("upsample_fn", "nearest") != "nearest":
        return False, f"act_fn {config.act_fn} with upsample_fn {config.get('upsample_fn')}"
    if config.upsampling_scaling_factor != 2 or len(config.decoder_block_out_channels) < 3:
        return False, "the decoder must double its size at least twice"
    if vae.use_tiling or vae.use_slicing:
        return False, "tiling or slicing is on"
    return True, "AutoencoderTiny"


@dataclass(frozen=True)
class Layer:
    """One convolution, its weights packed as its kernel reads them."""

    module: nn.Conv2d
    pack: Callable[[Tensor], Tensor]
    pack_bias: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    up: bool = False
    relu: bool = False
    #: What is added before the ReLU is the input of the block that this layer ends.
    skip: bool = False
    #: The first of a block: its input is kept for the skip.
    opens: bool = False

    def refresh(self) -> None:
        """The module's weights as they are now, into the same memory."""
        self.weight.copy_(self.pack(self.module.weight.detach().float()))
        if self.bias is not None and self.module.bias is not None:
            self.bias.copy_(self.pack_bias(self.module.bias.detach().float()))


def _layer(
    module: nn.Conv2d,
    pack: Callable[[Tensor], Tensor] = conv.pack_taps,
    pack_bias: Callable[[Tensor], Tensor] = torch.clone,
    **how: bool | int,
) -> Layer:
    weight = pack(module.weight.detach().float()).half()
    bias = None if module.bias is None else pack_bias(module.bias.detach().float())
    return Layer(module, pack, pack_bias, weight, bias, **how)  # type: ignore[arg-type]


def _features(modules: list[nn.Module]) -> Iterator[Layer]:
    """The layers between the first and the last."""
    up = False
    for module in modules:
        if isinstance(module, nn.Upsample):
            up = True
        elif isinstance(module, nn.Conv2d):
            pack = conv.pack_upsampled if up else conv.pack_taps
            yield _layer(module, pack, stride=module.stride[0], up=up)
            up = False
        elif hasattr(module, "conv"):  # AutoencoderTinyBlock
            first, _, second, _, third = module.conv  # type: ignore[misc]
            yield _layer(first, relu=True, opens=True)
            yield _layer(second, relu=True)
            yield _layer(third, relu=True, skip=True)


class _Network:
    """The layers of one half."""

    def __init__(self, first: Layer, inner: list[Layer], last: Layer) -> None:
        self.layers = [first, *inner, last]
        self._inner = inner

    def refresh(self) -> None:
        """The module's weights changed: repack them in place, captured graphs stay valid."""
        for layer in self.layers:
            layer.refresh()

    def _space(self, pixels: int) -> tuple[Tensor, ...]:
        """Three buffers that the layers pass on in turn.

        Made in every call: a graph that captures it then has its own, and may replay while another
        form of this network is being tried on another stream.
        """
        count = pixels * self.layers[0].weight.shape[-1]
        device = self.layers[0].weight.device
        return tuple(torch.empty(count, dtype=torch.half, device=device) for _ in range(3))

    def _run_inner(self, space: tuple[Tensor, ...], shape: tuple[int, int, int]) -> Tensor:
        """From the first buffer through the inner layers; what the last layer is to read."""
        frames, height, width = shape
        channels = self.layers[0].weight.shape[-1]
        at = 0
        source = space[0][: frames * height * width * channels].view(frames, height, width, channels)
        kept = source
        kept_at = 0
        for layer in self._inner:
            if layer.opens:
                kept, kept_at = source, at
            if layer.up:
                height, width = height * 2, width * 2
            elif layer.stride == 2:
                height, width = (height + 1) // 2, (width + 1) // 2
            at = next(i for i in range(3) if i not in (at, kept_at if layer.relu else at))
            out = space[at][: frames * height * width * channels].view(frames, height, width, channels)
            # A row of odd length has no pairs of pixels, which the Hopper kernel halves.
            kind = layer_kind(layer)
            hopper = kind in conv.hopper(channels) and not (layer.stride == 2 and source.shape[2] % 2)
            conv.run_taps(
                source, layer.weight, layer.bias, out,
                chosen(kind, channels, (frames, height, width), hopper),
                stride=layer.stride, up=layer.up, relu=layer.relu, skip=kept if layer.skip else None,
            )  # fmt: skip
            source = out
        return source


def layer_kind(layer: Layer) -> str:
    """The name under which a layer's configuration is kept."""
    return "up" if layer.up else "halve" if layer.stride == 2 else "same"


def _to_sixteen(tensor: Tensor) -> Tensor:
    """The few output channels of a last layer, as many as the tensor cores take."""
    return conv.pad_outputs(tensor, 16)


class TinyEncoder(_Network):
    """``vae.encode`` without the module: pictures to latents as ``Eager.run_encode`` gives them."""

    def __init__(self, vae: Any, latent_scale: float = 1.0, latent_shift: float = 0.0) -> None:
        first, *inner, last = vae.encoder.layers
        self._scale, self._shift = latent_scale, latent_shift
        self._latents = int(vae.config.latent_channels)
        super().__init__(
            _layer(first, conv.pack_entry),
            list(_features(inner)),
            _layer(last, lambda weight: _to_sixteen(conv.pack_taps(weight)), _to_sixteen),
        )

    def __call__(self, image: Tensor, out: Tensor | None = None) -> Tensor:
        """``image``: float ``[F, 3, H, W]`` in -1..1, or uint8 RGBA ``[F, H, W, 4]``; to ``[F, C, h, w]``."""
        rgba = image.dtype == torch.uint8
        frames = image.shape[0]
        height, width = (image.shape[1], image.shape[2]) if rgba else (image.shape[2], image.shape[3])
        space = self._space(frames * height * width)
        first, last = self.layers[0], self.layers[-1]
        channels = first.weight.shape[-1]
        entry = space[0].view(frames, height, width, channels)
        given = image.contiguous().view(torch.int32)[..., 0] if rgba else image.contiguous()
        assert first.bias is not None
        conv.run_entry(
            given, first.weight, first.bias, entry, chosen("entry", channels, (frames, height, width)),
            kind=conv.RGBA if rgba else conv.IMAGE,
        )  # fmt: skip
        source = self._run_inner(space, (frames, height, width))
        _, small_height, small_width, _ = source.shape
        if out is None:
            out = image.new_empty(frames, self._latents, small_height, small_width, dtype=torch.half)
        conv.run_taps(
            source, last.weight, last.bias, out,
            chosen("planes", channels, (frames, small_height, small_width)),
            to=conv.PLANES, scale=self._scale, shift=self._shift,
        )  # fmt: skip
        return out


class TinyDecoder(_Network):
    """``vae.decode`` without the module, from latents as ``Eager.run_decode`` takes them."""

    def __init__(self, vae: Any, latent_scale: float = 1.0, latent_shift: float = 0.0) -> None:
        first, _, *inner, last = vae.decoder.layers
        self._scale, self._shift = latent_scale, latent_shift
        super().__init__(
            _layer(first, conv.pack_entry, relu=True),
            list(_features(inner)),
            _layer(last, conv.pack_grouped, conv.pack_grouped_bias),
        )
        self._narrow = _layer(last, lambda weight: _to_sixteen(conv.pack_taps(weight)), _to_sixteen)
        self.layers.append(self._narrow)  # the last layer again, as its Hopper kernel reads it

    def __call__(self, latent: Tensor, out: Tensor | None = None, rgba: bool = False) -> Tensor:
        """``[F, C, h, w]`` to float ``[F, 3, H, W]`` around -1..1, or to uint8 RGBA ``[F, H, W, 4]``.

        Float pictures have the latent's dtype. ``out`` is what a captured graph writes to.
        """
        frames, _, height, width = latent.shape
        times = 2 ** sum(layer.up for layer in self._inner)
        tall, wide = height * times, width * times
        space = self._space(frames * tall * wide)
        first, last = self.layers[0], self.layers[-2]
        channels = first.weight.shape[-1]
        entry = space[0][: frames * height * width * channels].view(frames, height, width, channels)
        assert first.bias is not None
        conv.run_entry(
            latent.contiguous(), first.weight, first.bias, entry,
            chosen("entry", channels, (frames, height, width)),
            relu=True, kind=conv.LATENT, scale=self._scale, shift=self._shift,
        )  # fmt: skip
        source = self._run_inner(space, (frames, height, width))
        if out is None:
            shape = (frames, tall, wide, 4) if rgba else (frames, 3, tall, wide)
            out = latent.new_empty(shape, dtype=torch.uint8 if rgba else latent.dtype)
        given = out.view(torch.int32)[..., 0] if rgba else out
        if "last" in conv.hopper(channels) and self._narrow.bias is not None:
            cut = chosen("last", channels, (frames, tall, wide), True)
            conv.run_last(source, self._narrow.weight, self._narrow.bias, given, cut, rgba=rgba)
        else:
            conv.run_taps(
                source, last.weight, last.bias, given, chosen("group", channels, (frames, tall, wide)),
                to=conv.GROUP_RGBA if rgba else conv.GROUP_PLANES,
            )  # fmt: skip
        return out
