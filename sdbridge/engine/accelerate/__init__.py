"""How the model's three calls (encode, denoise, decode) are run on this machine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from sdbridge.errors import SdbridgeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbridge.engine.accelerate.attention import Attend
    from sdbridge.engine.accelerate.replay import TensorCall
    from sdbridge.engine.image.load import LoadedModel
    from sdbridge.engine.image.seams import UnetCall


log = logging.getLogger(__name__)


class Acceleration(Protocol):
    """One way to run a model. ``prepare_*`` may allocate, compile and take seconds; ``run_*`` may not.

    Tensors a ``run_*`` returns may be overwritten by the next call of the same method.

    Three methods more are optional, for an acceleration that gets better while frames run:
    ``settled(timeout_s) -> bool`` waits until it has done its best; ``build(progress) -> lines`` does
    that and leaves on the disk what the next start needs (``sdbridge build``); ``report_progress(tell)``
    names who hears of work under way, and None when there is no more.
    """

    name: str

    def prepare_denoise(self, call: UnetCall) -> None:
        """Get ready for calls of these shapes. Called when a shape or the number of rows changes."""

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        """Get ready to encode and decode ``frames`` pictures of this size at once."""

    @property
    def foresees(self) -> bool:
        """Whether a new shape may have to be waited for; where not, ``foresee_*`` need not be asked."""
        ...

    def foresee_denoise(self, *calls: UnetCall) -> bool:
        """Whether calls of these shapes run at full speed, or never will; else that is begun beside frames.

        Asked at every frame edge until it is so, with the same shapes or others: the last ones are wanted.
        """
        ...

    def foresee_pictures(self, frames: int, height: int, width: int) -> bool:
        """The same for encoding and decoding."""
        ...

    def run_denoise(self, call: UnetCall) -> Tensor:
        """The UNet's answer ``[B, 4, h, w]``."""
        ...

    def run_encode(self, image: Tensor) -> Tensor:
        """``[F, 3, H, W]`` in -1..1 to clean latents ``[F, 4, h, w]``, scaled as the UNet wants them."""
        ...

    def run_decode(self, latent: Tensor) -> Tensor:
        """The way back; the picture may leave -1..1 a little."""
        ...

    def run_encode_rgba(self, rgba: Tensor) -> Tensor:
        """``run_encode`` of uint8 ``[F, H, W, 4]``, whose alpha is left out."""
        ...

    def run_decode_rgba(self, latent: Tensor) -> Tensor:
        """``run_decode``, rounded to uint8 ``[F, H, W, 4]`` with alpha 255."""
        ...

    def room_for_pixels(self, frames: int, height: int, width: int) -> Tensor | None:
        """Where ``run_encode_rgba`` reads pictures of this size, so that they need not be copied there.

        To be asked for in every frame; None where it reads them wherever they lie.
        """
        ...

    def room_for_sample(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The same for the sample of ``run_denoise``."""
        ...

    def wrap(self, run: TensorCall, name: str) -> TensorCall:
        """A call of another network on tensors (a ControlNet) as this acceleration runs it."""
        ...

    def weights_changed(self) -> None:
        """The model's tensors were written: refresh hoisted or folded copies."""

    def close(self) -> None:
        """Give back graphs and buffers; the model itself is not ours."""


def choose_acceleration(choice: str, device: torch.device) -> tuple[str, str]:
    """The acceleration for ``auto``, and the reason: (name, why)."""
    if choice == "auto":
        if device.type == "cuda":
            return "compile", "auto takes compile on CUDA"
        return "eager", f"auto takes eager on {device.type}"
    if choice == "tensorrt":
        from sdbridge.engine.accelerate.tensorrt.library import find_tensorrt

        library, why = find_tensorrt(device.type)
        if library is not None:
            return choice, f"the configuration asks for tensorrt, and {library.__version__} is here"
        instead = "compile" if device.type == "cuda" else "eager"
        log.warning("TensorRT cannot be used: %s; %s runs instead", why, instead)
        return instead, f"TensorRT cannot be used: {why}; {instead} runs instead"
    if choice == "compile" and device.type != "cuda":
        return "eager", f"compile needs CUDA graphs, which {device.type} has not, so eager runs instead"
    return choice, f"the configuration asks for {choice}"


def build_acceleration(name: str, model: LoadedModel, attend: Attend | None = None) -> Acceleration:
    """Make the acceleration ``name`` (eager, compile or tensorrt) for a loaded model.

    ``attend`` is what ``attention.choose_attention`` chose; None is PyTorch's own. A TensorRT engine
    has its own.
    """
    if name == "eager":
        from sdbridge.engine.accelerate.eager import Eager

        return Eager(model, attend)
    if name == "compile":
        from sdbridge.engine.accelerate.compile import Compiled

        return Compiled(model, attend=attend)
    if name == "tensorrt":
        from sdbridge.engine.accelerate.tensorrt.acceleration import build_tensorrt

        made: Acceleration = build_tensorrt(model, attend)
        return made
    raise SdbridgeError("SDB-ENGINE-ACCELERATION", f"there is no acceleration {name!r}")
