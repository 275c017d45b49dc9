"""Is everything captured that frames of another shape would run? Asked with calls of that shape, of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdbridge.engine.accelerate import Acceleration
from sdbridge.engine.image.conditions import added_conditions, guidance_embedding
from sdbridge.engine.image.feature_bank import FeatureBank
from sdbridge.engine.image.foresight import CallShape
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.prompt import Conditioning
from sdbridge.engine.image.seams import Rows, StreamExtension, UnetCall


class Rehearsal:
    """``ready`` begins what is missing beside the stream, once, and says whether nothing is missing."""

    def __init__(self, model: LoadedModel, acceleration: Acceleration, bank: FeatureBank) -> None:
        self._model = model
        self._bank = bank
        self._acceleration = acceleration
        self._key: tuple[object, ...] = ()
        self._rows: Rows | None = None
        self._call: UnetCall | None = None

    @torch.inference_mode()
    def ready(
        self, shape: CallShape, conditioning: Conditioning, extensions: Sequence[StreamExtension]
    ) -> bool:
        """For the UNet's call with all that the extensions will add to it, and for the pictures."""
        ready = self._acceleration.foresee_pictures(shape.frames, shape.height, shape.width)
        if not all(extension.foreseeable for extension in extensions):
            return ready
        rows, call = self._of(shape, conditioning)
        for extension in extensions:
            seen = extension.foresee(rows, call)
            if seen is None:
                return False
            call = seen
        if not shape.bank_frames:
            return self._acceleration.foresee_denoise(call) and ready
        forms = self._bank.forms_for(call.sample, shape.bank_frames)
        ready = self._bank.is_ready(call.sample, shape.bank_frames) and ready
        return self._acceleration.foresee_denoise(*(replace(call, bank=form) for form in forms)) and ready

    def _of(self, shape: CallShape, conditioning: Conditioning) -> tuple[Rows, UnetCall]:
        """The rows and the call that the stream would make, before any extension has seen it."""
        text, pooled = conditioning.positive.tokens, conditioning.positive.pooled
        key = (shape, text.shape, text.dtype, pooled is None)
        if self._rows is None or self._call is None or key != self._key:
            self._key = key
            self._rows = self._rows_of(shape)
            self._call = self._call_of(shape, text, pooled)
        return self._rows, self._call

    def _rows_of(self, shape: CallShape) -> Rows:
        device, per = self._model.device, self._model.pixels_per_latent
        count = shape.rows
        precision = torch.float64 if self._model.dtype == torch.float64 else torch.float32
        size = (self._model.latent_channels, shape.height // per, shape.width // per)
        latents = torch.zeros(count, *size, device=device, dtype=precision)
        ones = torch.ones(count, 1, 1, 1, device=device, dtype=precision)
        return Rows(
            latents=latents,
            timesteps=torch.zeros(count, device=device, dtype=torch.int64),
            timesteps_host=(0,) * count,
            fraction=(0.0,) * count,
            luggage=(None,) * count,
            source=latents,
            mirrors=(*range(count), *range(shape.extra_rows)),
            guidance_rows=shape.extra_rows,
            alpha=ones,
            sigma=ones,
            frames=shape.frames,
        )

    def _call_of(self, shape: CallShape, text: Tensor, pooled: Tensor | None) -> UnetCall:
        model, per = self._model, self._model.pixels_per_latent
        count = shape.rows + shape.extra_rows
        size = (model.latent_channels, shape.height // per, shape.width // per)
        embedding = guidance_embedding(model, 1.0)
        pooled = None if pooled is None else pooled[:1].expand(count, -1)
        return UnetCall(
            sample=torch.zeros(count, *size, device=model.device, dtype=model.dtype),
            timesteps=torch.zeros(count, device=model.device, dtype=torch.int64),
            encoder_hidden_states=text[:1].expand(count, -1, -1),
            added_cond=added_conditions(model, pooled, count, shape.width, shape.height),
            timestep_cond=None if embedding is None else embedding.expand(count, -1),
        )
