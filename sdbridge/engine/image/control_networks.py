"""One interface for the two kinds of networks that bind a picture to a control image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.accelerate.replay import foresee
from sdbridge.engine.image.scratch import Scratch
from sdbridge.engine.image.seams import UnetCall
from sdbridge.engine.preprocess.base import grey

#: What a network keeps of one frame's control image: computed once, used at every step of the frame.
Hint = tuple[Tensor, ...]
#: SDXL's conditions, both or neither.
_ADDED = ("text_embeds", "time_ids")
_PART = 64  # numbers: tensors that share memory begin at multiples, where every kernel can read them


class Network(Protocol):
    """A ControlNet or T2I-Adapter."""

    def hint(self, image: Tensor) -> tuple[Hint, ...]:
        """Control images ``[F, 3, H, W]`` 0..1 -> what each frame carries through the rows."""

    def add(self, call: UnetCall, hints: list[Hint], scale: Tensor) -> UnetCall:
        """The call with this network's effect added. ``hints`` and ``scale [B, 1, 1, 1]`` are per row."""
        ...

    def foresee(self, call: UnetCall, image: Tensor) -> UnetCall | None:
        """``call`` as ``add`` will leave such calls, with zeros; ``image`` is like the pictures to come.

        None while the network's own graphs for these shapes are made beside the stream.
        """
        ...


class ControlCall:
    """A ControlNet as a call on tensors alone; an acceleration may know a faster one for its ``network``.

    Tensors: sample, timesteps, text, the embedded control image, then the guidance embedding if there
    is one, then SDXL's two conditions if there are any.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    @staticmethod
    def unet_call(
        sample: Tensor,
        timesteps: Tensor,
        text: Tensor,
        hint: Tensor,
        *more: Tensor,
        of: UnetCall | None = None,
    ) -> UnetCall:
        """What the tensors other than the control image mean; ``of`` as below."""
        rest = list(more)
        guidance = rest.pop(0) if len(rest) % 2 else None
        return UnetCall(
            sample,
            timesteps,
            text,
            dict(zip(_ADDED, rest, strict=False)),
            timestep_cond=guidance,
            timesteps_host=() if of is None else of.timesteps_host,
            text_of=None if of is None else of.text_of,
        )

    def __call__(self, *tensors: Tensor, of: UnetCall | None = None) -> tuple[list[Tensor], Tensor]:
        """Residuals of the skips and of the middle, at scale 1.

        ``of`` is the UNet's call that the tensors are taken from: it tells whether timesteps and text are as
        they were, which is worth something to an acceleration. Here it changes nothing.
        """
        call = self.unet_call(*tensors)
        down, mid = self.network(
            call.sample,
            call.timesteps,
            encoder_hidden_states=call.encoder_hidden_states,
            controlnet_cond=tensors[3],
            timestep_cond=call.timestep_cond,
            added_cond_kwargs=dict(call.added_cond),
            return_dict=False,
        )
        return list(down), mid


class ControlNetwork:
    """A ControlNet. Its hint is the embedded control image, which no timestep changes."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._embed = network.controlnet_cond_embedding
        self._scratch = Scratch()
        self._zeros: list[Tensor] = []
        self._zeros_of: tuple[int, ...] = ()
        self._like: tuple[Tensor, Tensor] | None = None
        self._like_of: tuple[object, ...] = ()
        self._asked = 0
        # The embedding is made when a frame enters; afterwards the network is handed what came of it.
        network.controlnet_cond_embedding = torch.nn.Identity()
        self._flipped = network.config["controlnet_conditioning_channel_order"] == "bgr"
        self._dtype = next(self._embed.parameters()).dtype
        self._channels = int(
            network.config["in_channels"]
        )  # an inpainting UNet has more, which it never sees
        self._takes_guidance = network.time_embedding.cond_proj is not None
        if next(self._embed.parameters()).device.type != "mps":
            self._embed.to(memory_format=torch.channels_last)
        self.run: Callable[..., Any] = ControlCall(network)
        self.embed: Callable[[Tensor], Tensor] = self._embedded

    def hint(self, image: Tensor) -> tuple[Hint, ...]:
        embedded = self.embed(self._scratch.cast("image", image, self._dtype))
        return tuple((one.clone(),) for one in embedded)  # what ran may overwrite its own for the next frame

    def _embedded(self, image: Tensor) -> Tensor:
        if image.device.type != "mps":
            image = image.contiguous(memory_format=torch.channels_last)
        if self._flipped:  # the network flips whatever it is handed, so it gets it flipped beforehand
            return self._embed(image.flip(1)).flip(1)
        return self._embed(image)

    def add(self, call: UnetCall, hints: list[Hint], scale: Tensor) -> UnetCall:
        hint = _rows([hint[0] for hint in hints], self._scratch)
        down, mid = self.run(*self._tensors(call, hint), of=call)
        had: list[Tensor | None] = [None] * (len(down) + 1)
        if call.down_residuals is not None and call.mid_residual is not None:
            had = [*call.down_residuals, call.mid_residual]
        # In buffers of our own, in turn: what ran may overwrite its own when another slot uses this network.
        added: list[Tensor] = []
        for index, (before, residual) in enumerate(zip(had, (*down, mid), strict=True)):
            scaled = self._scratch.laid_out_as(f"residual {index}", residual, turns=2)
            torch.mul(residual, scale, out=scaled)
            added.append(scaled if before is None else torch.add(before, scaled, out=scaled))
        return replace(call, down_residuals=tuple(added[:-1]), mid_residual=added[-1])

    def foresee(self, call: UnetCall, image: Tensor) -> UnetCall | None:
        """See ``Network``. A frame begins one thing at most: all at once were a millisecond of it."""
        picture, hint = self._pictures_like(call.sample, image)
        self._asked += 1
        ready = foresee(self.embed, picture)
        if self._asked > 1:
            ready = foresee(self.run, *self._tensors(call, hint)) and ready
        if self._asked < 3:
            return None
        *down, mid = self._residuals_like(call.sample)
        return replace(call, down_residuals=tuple(down), mid_residual=mid) if ready else None

    def _tensors(self, call: UnetCall, hint: Tensor) -> list[Tensor]:
        tensors = [call.sample[:, : self._channels], call.timesteps, call.encoder_hidden_states, hint]
        if self._takes_guidance and call.timestep_cond is not None:
            tensors.append(call.timestep_cond)
        return tensors + [call.added_cond[name] for name in _ADDED if name in call.added_cond]

    def _pictures_like(self, sample: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """What ``embed`` will be given, and zeros as it gives them, for such a sample.

        Kept, as the residuals are, since a shape may be asked about for many frames.
        """
        shape = (*sample.shape, *image.shape)
        if self._like is None or self._like_of != shape:
            count, _, *size = sample.shape
            one = _zeros((1, self._embed.conv_out.out_channels, *size), image.device, self._dtype)[0]
            self._like, self._like_of = (image.to(self._dtype), _rows([one] * count)), shape
        return self._like

    def _residuals_like(self, sample: Tensor) -> list[Tensor]:
        """Zeros as ``add`` would give them for such a sample: of the skips, then of the middle."""
        if self._zeros_of == sample.shape:
            return self._zeros
        network, (count, _, height, width) = self._network, sample.shape
        sizes = [(height, width)]
        for block in network.down_blocks:
            sizes += [(height, width)] * len(block.resnets)
            if block.downsamplers:  # an odd length is rounded up
                height, width = -(-height // 2), -(-width // 2)
                sizes.append((height, width))
        ways = [*network.controlnet_down_blocks, network.controlnet_mid_block]
        sizes.append(sizes[-1])
        channels = [int(way.out_channels) for way in ways]
        places, end = [], 0
        for deep, (high, wide) in zip(channels, sizes, strict=True):
            places.append(end)
            end += -(-count * deep * high * wide // _PART) * _PART
        # In one piece of memory: the driver may have to be asked for it, in a frame's time.
        flat = torch.zeros(end, device=sample.device, dtype=sample.dtype)
        self._zeros_of = sample.shape
        self._zeros = [
            flat[at : at + count * deep * high * wide].view(count, high, wide, deep).permute(0, 3, 1, 2)
            for at, deep, (high, wide) in zip(places, channels, sizes, strict=True)
        ]
        return self._zeros


class AdapterNetwork:
    """A T2I-Adapter. Its hint is all it has to say: the features depend on the control image alone."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._channels = int(network.config["in_channels"])
        self._factor = int(network.config["downscale_factor"])
        self._foreseen: tuple[tuple[int, ...], Hint] | None = None
        self._dtype = next(network.parameters()).dtype

    def hint(self, image: Tensor) -> tuple[Hint, ...]:
        if self._channels == 1:
            image = grey(image)
        height, width = image.shape[-2:]
        whole = tuple(math.ceil(length / self._factor) * self._factor for length in (height, width))
        if whole != (height, width):
            image = nn.interpolate(image, whole, mode="bilinear")
        features = self._network(image.to(self._dtype))
        return tuple(tuple(level[frame] for level in features) for frame in range(image.shape[0]))

    def add(self, call: UnetCall, hints: list[Hint], scale: Tensor) -> UnetCall:
        features = [_rows([hint[level] for hint in hints]) * scale for level in range(len(hints[0]))]
        if call.intrablock_residuals is not None:
            both = zip_longest(call.intrablock_residuals, features)  # one may have more levels
            features = [new if had is None else had if new is None else had + new for had, new in both]
        return replace(call, intrablock_residuals=tuple(features))

    def foresee(self, call: UnetCall, image: Tensor) -> UnetCall | None:
        """It has no graphs of its own."""
        if self._foreseen is None or self._foreseen[0] != image.shape:
            self._foreseen = image.shape, self.hint(image[:1])[0]
        rows = call.sample.shape[0]
        ones = torch.ones(rows, 1, 1, 1, device=image.device, dtype=call.sample.dtype)
        return self.add(call, [self._foreseen[1]] * rows, ones)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Laid out as networks give their pictures, since a graph's own inputs are laid out as the first ones."""
    return torch.empty(shape, device=device, dtype=dtype, memory_format=torch.channels_last).zero_()


def _rows(frames: list[Tensor], scratch: Scratch | None = None) -> Tensor:
    """``[c, h, w]`` per row -> ``[B, c, h, w]``, without a copy for a single row."""
    if len(frames) == 1:
        return frames[0].unsqueeze(0)
    shape = (len(frames), *frames[0].shape)
    return torch.stack(frames, out=(scratch or Scratch()).like("rows", frames[0], shape))
