"""How the model's three calls (encode, denoise, decode) are run on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sdbridge.errors import SdbridgeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdbridge.engine.accelerate.replay import TensorCall
    from sdbridge.engine.image.load import LoadedModel
    from sdbridge.engine.image.seams import UnetCall


class Acceleration(Protocol):
    """One way to run a model. ``prepare_*`` may allocate, compile and take seconds; ``run_*`` may not.

    Tensors a ``run_*`` returns may be overwritten by the next call of the same method.
    """

    name: str

    def prepare_denoise(self, call: UnetCall) -> None:
        """Get ready for calls of these shapes. Called when a shape or the number of rows changes."""

    def prepare_pictures(self, frames: int, height: int, width: int) -> None:
        """Get ready to encode and decode ``frames`` pictures of this size at once."""

    def run_denoise(self, call: UnetCall) -> Tensor:
        """The UNet's answer ``[B, 4, h, w]``."""
        ...

    def run_encode(self, image: Tensor) -> Tensor:
        """``[F, 3, H, W]`` in -1..1 to clean latents ``[F, 4, h, w]``, scaled as the UNet wants them."""
        ...

    def run_decode(self, latent: Tensor) -> Tensor:
        """The way back; the picture may leave -1..1 a little."""
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
        return "eager", "TensorRT engines are not part of this version, so eager runs instead"
    if choice == "compile" and device.type != "cuda":
        return "eager", f"compile needs CUDA graphs, which {device.type} has not, so eager runs instead"
    return choice, f"the configuration asks for {choice}"


def build_acceleration(name: str, model: LoadedModel) -> Acceleration:
    """Make the acceleration ``name`` (eager or compile) for a loaded model."""
    if name == "eager":
        from sdbridge.engine.accelerate.eager import Eager

        return Eager(model)
    if name == "compile":
        from sdbridge.engine.accelerate.compile import Compiled

        return Compiled(model)
    raise SdbridgeError("SDB-ENGINE-ACCELERATION", f"there is no acceleration {name!r}")
