"""Latent feedback: the last picture taken into the next input, in clean space, without drift."""

from __future__ import annotations

import torch
from torch import Tensor

from sdbridge.engine.image.scratch import Scratch

#: Devices on which torch has a standard deviation, but none that writes into a tensor that is there.
_NO_STD_IN_PLACE = {"mps"}


def feed_back(
    source: Tensor, previous: Tensor | None, share: float, scratch: Scratch | None = None
) -> Tensor:
    """z' = (1 - f) z + f x0_previous, brought back to z's mean and contrast per channel (section 2.9).

    All ``[F, 4, h, w]``, clean. Blending before noising leaves the noise level what the model expects,
    and blending two pictures lowers contrast, so mean and standard deviation are matched to the input's.
    With ``share`` 0, or nothing to feed back, ``source`` itself is returned.
    """
    if share <= 0.0 or previous is None or previous.shape[1:] != source.shape[1:]:
        return source
    scratch = scratch or Scratch()
    # Half precision may overflow for a frame; fed back, its NaN would stay for ever.
    last = torch.nan_to_num(previous[-1:], 0.0, 0.0, 0.0, out=scratch.like("last", previous[-1:]))
    mixed = torch.sub(last, source, out=scratch.like("mixed", source)).mul_(share).add_(source)
    wanted_mean, wanted_std = _mean_and_std(source, scratch, "wanted")
    mean, std = _mean_and_std(mixed, scratch, "had")
    return mixed.sub_(mean).mul_(wanted_std.div_(std.clamp_min_(1e-6))).add_(wanted_mean)


def _mean_and_std(latent: Tensor, scratch: Scratch, name: str) -> tuple[Tensor, Tensor]:
    """``[F, 4, 1, 1]`` each."""
    shape = (*latent.shape[:2], 1, 1)
    mean, std = scratch.like(f"{name} mean", latent, shape), scratch.like(f"{name} std", latent, shape)
    torch.mean(latent, (2, 3), keepdim=True, out=mean)
    if latent.device.type in _NO_STD_IN_PLACE:
        std.copy_(torch.std(latent, (2, 3), keepdim=True))
    else:
        torch.std(latent, (2, 3), keepdim=True, out=std)
    return mean, std
