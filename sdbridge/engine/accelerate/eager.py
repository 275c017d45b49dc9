"""The model run operation by operation: starts at once, works on every device, needs no preparation."""

from __future__ import annotations

import torch
from torch import Tensor

from sdbridge.engine.accelerate.attention import Attend, put_on, pytorch_attention
from sdbridge.engine.accelerate.replay import TensorCall
from sdbridge.engine.image.load import LoadedModel
from sdbridge.engine.image.pictures import from_rgba, to_rgba
from sdbridge.engine.image.seams import UnetCall


class Eager:
    """Plain calls of the diffusers modules."""

    name = "eager"
    foresees = False

    def __init__(self, model: LoadedModel, attend: Attend | None = None) -> None:
        """``attend`` takes the place of PyTorch's attention in the UNet's modules."""
        self._model = model
        put_on(model.unet, attend or pytorch_attention)
        self._format = torch.contiguous_format if model.device.type == "mps" else torch.channels_last

    def prepare_denoise(self, call: UnetCall) -> None:
        """Nothing to prepare."""

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        """Nothing to prepare."""

    def foresee_denoise(self, *calls: UnetCall) -> bool:
        """Ready for everything."""
        return True

    def foresee_pictures(self, frames: int, height: int, width: int) -> bool:
        """Ready for everything."""
        return True

    def run_denoise(self, call: UnetCall) -> Tensor:
        residuals = call.down_residuals
        return self._model.unet(
            call.sample.contiguous(memory_format=self._format),
            call.timesteps,
            encoder_hidden_states=call.encoder_hidden_states,
            timestep_cond=call.timestep_cond,
            added_cond_kwargs=dict(call.added_cond) or None,
            cross_attention_kwargs=dict(call.cross_attention) or None,
            down_block_additional_residuals=None if residuals is None else tuple(residuals),
            mid_block_additional_residual=call.mid_residual,
            # the UNet pops from this list, so it gets a copy
            down_intrablock_additional_residuals=None
            if call.intrablock_residuals is None
            else list(call.intrablock_residuals),
            return_dict=False,
        )[0]

    def run_encode(self, image: Tensor) -> Tensor:
        model = self._model
        given = image.to(model.vae_dtype).contiguous(memory_format=self._format)
        if model.vae_is_tiny:
            latent = model.vae.encode(given, return_dict=False)[0]
        else:  # the mean, not a sample: the stream's noise is its own, and a still input stays still
            latent = model.vae.encode(given, return_dict=False)[0].mode()
        return (latent - model.latent_shift) * model.latent_scale

    def run_decode(self, latent: Tensor) -> Tensor:
        model = self._model
        given = (latent / model.latent_scale + model.latent_shift).to(model.vae_dtype)
        return model.vae.decode(given.contiguous(memory_format=self._format), return_dict=False)[0]

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        return self.run_encode(from_rgba(rgba))

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        return to_rgba(self.run_decode(latent).float().add(1).mul(0.5))

    def room_for_pixels(self, frames: int, height: int, width: int) -> Tensor | None:
        """They are read wherever they lie."""
        return None

    def room_for_sample(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """It is read wherever it lies."""
        return None

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """``run`` of another network as this acceleration runs it: as it is."""
        return run

    def weights_changed(self) -> None:
        """The modules are the only copy."""

    def close(self) -> None:
        """Nothing is held."""
