"""How finished latents become pictures on their way to the host: decoded, on a GPU beside the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate import Acceleration
from sdbridge.engine.accelerate.streams import own_stream
from sdbridge.engine.image.painting import Painting, painting_of
from sdbridge.engine.image.pictures import Handout, HostPictures
from sdbridge.engine.image.seams import StreamExtension
from sdbridge.engine.image.travellers import Leaving
from sdbridge.frame import Role


class Outgoing:
    """Decodes and hands out; on a GPU on a stream of its own, while the next frame is encoded."""

    def __init__(self, device: torch.device) -> None:
        #: Gets each generated picture as uint8 ``[H, W, 4]`` on the device (``interface.py`` has the rule).
        self.show: Callable[[Tensor], None] | None = None
        self._device = device
        self._host: defaultdict[Role, HostPictures] = defaultdict(HostPictures)
        self._aside: torch.cuda.Stream | None = None
        self._made: torch.cuda.Event | None = None  # the latent to decode
        self._read: list[torch.cuda.Event] = []  # latents of the run before this and of this one
        if device.type == "cuda":
            self._aside, self._made = own_stream(device), torch.cuda.Event()
            self._read = [torch.cuda.Event(), torch.cuda.Event()]

    def await_room(self) -> None:
        """Once before each run: its latent goes where that of the last but one is, which must have been read.

        It has, nearly always: the GPU decodes a frame while it encodes the next.
        """
        if self._read:
            self._read.reverse()
            torch.cuda.current_stream(self._device).wait_event(self._read[-1])

    def paint(
        self,
        leaving: Leaving,
        acceleration: Acceleration,
        extensions: Sequence[StreamExtension],
        revision: int,
    ) -> Painting:
        """Queue the decoding of ``leaving`` and its copies to the host; nothing is waited for."""
        carried: list[tuple[StreamExtension, Sequence[Any]]] = []
        further: dict[Role, Tensor] = {}
        edited = False
        for index, each in enumerate(extensions):
            own = tuple([tag.luggage[index] for tag in leaving.tags])
            carried.append((each, own))
            further.update(each.outputs(own))
            edited = each.edits_output(own) or edited
        handouts: dict[Role, Handout] = {
            "generated": self._edited(leaving.latent, acceleration, carried)
            if edited
            else self._straight(leaving.latent, acceleration)
        }
        for role, tensor in further.items():
            handouts[role] = Handout(tensor, host=self._host[role])
        return painting_of(handouts, leaving.tags, revision)

    def _edited(
        self,
        latent: Tensor,
        acceleration: Acceleration,
        carried: Sequence[tuple[StreamExtension, Sequence[Any]]],
    ) -> Handout:
        if self._aside is not None:  # the decoder's buffers are shared
            torch.cuda.current_stream(self._device).wait_stream(self._aside)
        image = acceleration.run_decode(latent).float().add(1).mul(0.5)
        for extension, own in carried:
            image = extension.after_decode(image, own)
        return Handout(image, self.show, self._host["generated"])

    def _straight(self, latent: Tensor, acceleration: Acceleration) -> Handout:
        """To pixels at once, on the stream beside."""
        aside, made = self._aside, self._made
        if aside is None or made is None:
            return Handout(acceleration.run_decode_rgba(latent), self.show, self._host["generated"])
        frames = torch.cuda.current_stream(self._device)
        made.record(frames)
        aside.wait_event(made)
        latent.record_stream(aside)  # for when its buffer is let go
        torch.cuda.set_stream(aside)  # torch.cuda.stream() asks and tells a good deal more
        try:
            decoded = acceleration.run_decode_rgba(latent)
            self._read[-1].record(aside)
            return Handout(decoded, self.show, self._host["generated"], aside)
        finally:
            torch.cuda.set_stream(frames)
