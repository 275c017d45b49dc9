"""Where the picture is repainted: a mask that blends latents at every step and pixels at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from sdbridge.engine.image.seams import ExtensionContext, RoleImages, Rows, StreamExtension, UnetCall
from sdbridge.engine.image.still_file import StillFile
from sdbridge.engine.interface import ResetKind
from sdbridge.engine.preprocess.base import grey
from sdbridge.errors import SdbridgeError
from sdbridge.frame import Role
from sdbridge.parameters.parameter import Value
from sdbridge.parameters.store import Rejection

#: Less than two steps of eight bits is black, so that a compressed or noisy mask still keeps exactly.
BLACK = 2 / 255


_FITTED = "mask.fitted"  # keepsake


@dataclass(frozen=True)
class MaskedFrame:
    """What a frame needs of its mask on the way through."""

    image: Tensor  # [3, H, W] the input as it came, 0..1
    soft: Tensor  # [1, H, W] share of the painted picture; exactly 0 where the input is kept
    cells: Tensor  # [1, h, w] 1 where a latent cell touches the painted part


@dataclass(frozen=True)
class NineChannels:
    """What an inpainting UNet wants besides the noisy latent."""

    cells: Tensor  # [1, h, w]
    hidden: Tensor  # [4, h, w] latent of the input with the painted part grey


@dataclass(frozen=True)
class MaskLuggage:
    """One frame's mask; parts are None where they have no meaning."""

    masked: MaskedFrame | None
    nine: NineChannels | None


class InpaintMask(StreamExtension):
    """White is repainted, black keeps the input: its latents at every step, its very pixels at the end.

    A UNet with nine input channels gets mask and masked picture too, also without a mask (then
    everything is repainted). txt2img has no input to keep, so there a mask means nothing.
    """

    name = "mask"
    parameters = ("mask.",)

    def __init__(self, context: ExtensionContext) -> None:
        self._context = context
        self._stills = StillFile(context, "Mask file", _as_mask)
        self._source = "off"
        self._file = ""  # what was asked for last
        self._refused = False  # ... and is not what ``_drawn`` came from
        #: File and size drawn for a picture of this stream, which may run at another since.
        self._fitted: tuple[str, int, int] | None = None
        self._invert = False
        self._soft = 8.0
        self._drawn: Tensor | None = None  # [1, 1, H, W] as the file has it
        self._still: Tensor | None = None  # the same at the stream's size
        self._size = (0, 0)
        self._has_input = False
        self._masked = False  # a frame with a mask has entered, and may still be inside
        self._missing = False
        config = context.model.unet.config
        self._channels = int(config["out_channels"])
        # Nine channels in real ones: noisy latent, mask, masked latent.
        self._nine = int(config["in_channels"]) == 2 * self._channels + 1
        self._all_hidden: Tensor | None = None  # [4, h, w] latent of a grey picture

    @property
    def loads(self) -> int:
        return self._stills.loads

    @property
    def loading(self) -> bool:
        return self._stills.busy

    def apply(self, changes: Mapping[str, Value]) -> tuple[Rejection, ...]:
        self._source = str(changes.get("mask.source", self._source))
        self._invert = bool(changes.get("mask.invert", self._invert))
        self._soft = float(changes.get("mask.soft", self._soft))
        if "mask.file" in changes:
            file = str(changes["mask.file"]).strip()
            if file != self._file or self._refused:
                self._file, self._refused = file, False
                self._stills.ask(file)
                if not file:
                    self._drawn = self._still = None
        return ()

    def resized(self, width: int, height: int, frames: int) -> None:
        self._fit(width, height)
        self._size = (width, height)
        self._all_hidden = None

    def _fit(self, width: int, height: int) -> None:
        """The mask was drawn for this picture, so it follows it, and comes back as it was."""
        if self._drawn is not None:
            same = self._drawn.shape[-2:] == (height, width)
            self._still = (
                self._drawn if same else nn.interpolate(self._drawn, (height, width), mode="bilinear")
            )

    def frame_edge(self) -> bool:
        if self._size == (0, 0):
            return False
        arrived = self._stills.poll(watch=self._source == "file")
        if arrived is None:
            return False
        self._refused = True  # until it fits: it can be asked for again, and is read again once mended
        if arrived.thing is None:
            return False
        height, width = arrived.thing.shape[-2:]
        if (width, height) != self._size and (self._file, width, height) != self._fitted:
            error = SdbridgeError(
                "SDB-MASK-SIZE",
                f"{self._file} is {width}x{height}, the stream runs at {self._size[0]}x{self._size[1]}",
            )
            self._context.report(error)
            return False
        self._drawn, self._refused = arrived.thing, False
        self._fitted = (self._file, width, height)
        self._fit(*self._size)
        return True

    def keepsakes(self) -> Mapping[str, bytes]:
        fitted = self._fitted if self._fitted and self._fitted[0] == self._file else None
        return {_FITTED: json.dumps(fitted).encode()}

    def remember(self, keepsakes: Mapping[str, bytes]) -> None:
        fitted = json.loads(keepsakes.get(_FITTED, b"null"))
        self._fitted = None if fitted is None else (str(fitted[0]), int(fitted[1]), int(fitted[2]))

    # --- one frame ---

    @property
    def edits_input(self) -> bool:
        return self._source != "off"

    @property
    def reads_alpha_of(self) -> Role | None:
        sources: dict[str, Role] = {"alpha": "main", "input": "mask"}
        return sources.get(self._source)

    def edits_output(self, luggage: Sequence[Any]) -> bool:
        return any(one is not None and one.masked for one in luggage)

    def before_encode(self, image: Tensor, roles: RoleImages) -> Tensor:
        self._has_input = True  # only img2img encodes
        return image

    def enter(self, roles: RoleImages, latent: Tensor) -> Sequence[MaskLuggage | None]:
        has_input, self._has_input = self._has_input, False
        frames = int(latent.shape[0])
        mask = self._mask(roles) if has_input and self._source != "off" else None
        self._missing = has_input and self._source != "off" and mask is None
        if mask is None:
            if not self._nine:
                return (None,) * frames
            return (MaskLuggage(None, self._everything(latent)),) * frames
        self._masked = True
        image = roles["main"][:, :3]
        mask = mask.expand(frames, -1, -1, -1)
        soft = soften(mask, self._soft)
        cells = nn.max_pool2d(soft, self._context.model.pixels_per_latent)
        cells = (cells > 0).to(latent.dtype)
        hidden: Tensor | None = None
        if self._nine:
            hidden = self._context.encode(torch.where(mask >= 0.5, 0.5, image))
        return tuple(
            MaskLuggage(
                MaskedFrame(image[frame], soft[frame], cells[frame]),
                None if hidden is None else NineChannels(cells[frame], hidden[frame]),
            )
            for frame in range(frames)
        )

    def _mask(self, roles: RoleImages) -> Tensor | None:
        """``[F or 1, 1, H, W]``, 1 where the picture is repainted; None if the source is not there."""
        if self._source == "alpha":
            mask: Tensor | None = roles["main"][:, 3:4]
        elif self._source == "input":
            mask = _as_mask(roles["mask"]) if "mask" in roles else None
        else:
            mask = self._still
        if mask is None:
            return None
        return 1.0 - mask if self._invert else mask

    def _everything(self, latent: Tensor) -> NineChannels:
        """For an inpainting UNet without a mask: all is hidden, all is painted."""
        if self._all_hidden is None:
            per = self._context.model.pixels_per_latent
            height, width = (int(length) * per for length in latent.shape[-2:])
            flat = torch.full((1, 3, height, width), 0.5, device=latent.device)
            self._all_hidden = self._context.encode(flat)[0]
        return NineChannels(torch.ones_like(latent[0, :1]), self._all_hidden)

    def practise(self, picture: Tensor, rows: int) -> None:
        image, mask = picture[:, :3], 1.0 - _as_mask(picture)
        soft = soften(mask, max(self._soft, 8.0))
        cells = nn.max_pool2d(soft, self._context.model.pixels_per_latent)
        torch.stack([composite(image[0], MaskedFrame(image[0], soft[0], (cells > 0)[0]))])
        torch.where(cells > 0, cells, torch.ones(cells.shape, device=cells.device))

    def foresee(self, rows: Rows, call: UnetCall) -> UnetCall | None:
        if not self._nine:
            return call
        more = int(self._context.model.unet.config.in_channels) - self._channels
        rest = call.sample.new_zeros(call.sample.shape[0], more, *call.sample.shape[2:])
        return replace(call, sample=torch.cat((call.sample[:, : self._channels], rest), dim=1))

    @property
    def steers(self) -> bool:
        return self._nine or self._masked

    def unet_inputs(self, rows: Rows, call: UnetCall) -> UnetCall:
        if not self._nine:
            return call
        found: list[MaskLuggage | None] = list(rows.luggage)
        spare = next((one.nine for one in found if one is not None and one.nine is not None), None)
        nine = [one.nine if one is not None and one.nine is not None else spare for one in found]
        if spare is None:
            spare = self._everything(rows.latents)
            nine = [spare] * len(found)
        more = torch.stack([torch.cat((one.cells, one.hidden)) for one in nine if one is not None])
        if rows.guidance_rows:
            more = torch.cat((more, more[: rows.guidance_rows]))
        return replace(
            call, sample=torch.cat((call.sample[:, : self._channels], more.to(call.sample.dtype)), dim=1)
        )

    def after_x0(self, rows: Rows, x0: Tensor) -> Tensor:
        masked = [one.masked if one is not None else None for one in rows.luggage]
        if self._nine or not any(masked):
            return x0  # an inpainting UNet paints to fit; its outside is put right in the pixels
        shape = x0[:1, :1].shape[1:]
        free = torch.ones(shape, device=x0.device, dtype=x0.dtype)
        cells = torch.stack([free if one is None else one.cells.to(x0.dtype) for one in masked])
        return torch.where(cells > 0, x0, rows.source)

    def after_decode(self, image: Tensor, luggage: Sequence[Any]) -> Tensor:
        frames = [one.masked if one is not None else None for one in luggage]
        if not any(frames):
            return image
        pictures = [
            painted if one is None else composite(painted, one)
            for painted, one in zip(image, frames, strict=True)
        ]
        return torch.stack(pictures)

    def unused(self) -> tuple[str, ...]:
        unread = self._source == "file" and self._refused and bool(self._file)
        return ("mask.source",) * self._missing + ("mask.file",) * unread

    def reset(self, how: ResetKind) -> None:
        self._has_input = False

    def unload(self) -> None:
        self._stills.cancel()
        self._drawn = self._still = self._all_hidden = None


def composite(painted: Tensor, frame: MaskedFrame) -> Tensor:
    """The painted picture inside, the input outside; not one bit of it is computed there."""
    mixed = frame.image + frame.soft * (painted[:3] - frame.image)
    return torch.where(frame.soft > 0, mixed, frame.image)


def _as_mask(picture: Tensor) -> Tensor:
    """Brightness of RGBA ``[F, 4, H, W]``, with what is transparent black."""
    return grey(picture[:, :3]) * picture[:, 3:4]


def soften(mask: Tensor, width: float) -> Tensor:
    """Mask ``[F, 1, H, W]`` with edges ``width`` pixels wide, half of them outside; 0 stays exactly 0.

    Two box averages make a ramp without corners. Averages of zeros are zero in every arithmetic,
    which a convolution by Fourier or Winograd transforms does not promise.
    """
    mask = torch.where(mask <= BLACK, 0.0, torch.where(mask >= 1 - BLACK, 1.0, mask))
    reach = round(width / 4)  # of each of two boxes, to each side
    if reach == 0:
        return mask
    reach = min(reach, (min(mask.shape[-2:]) - 1) // 2)
    size = 2 * reach + 1
    for _ in range(2):
        mask = nn.pad(mask, (reach, reach, 0, 0), mode="replicate")
        mask = nn.avg_pool2d(mask, (1, size), stride=1)
        mask = nn.pad(mask, (0, 0, reach, reach), mode="replicate")
        mask = nn.avg_pool2d(mask, (size, 1), stride=1)
    return mask
